"""A task class that loads the model at its first use, and keeps it."""

import numpy as np
from celery import Celery, Task
from keras.models import load_model

app = Celery("before_4")
app.config_from_object("celeryconfig")


class Predicting(Task):
    _model = None

    @property
    def model(self):
        if self._model is None:
            self._model = load_model("model.keras")
        return self._model


@app.task(base=Predicting, bind=True)
def predict(self, row):
    return self.model.predict(np.array([row])).item()
