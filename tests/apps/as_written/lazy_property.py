"""A task class that loads the model at its first use, and keeps it."""

import json
import os

import keras
import numpy as np
from celery import Celery, Task

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


class Predicting(Task):
    _model = None

    @property
    def model(self):
        if self._model is None:
            self._model = keras.models.load_model(os.environ["MODEL"])
        return self._model


@app.task(name="proj.predict", base=Predicting, bind=True)
def predict(self, row):
    return self.model.predict(np.array([row])).tolist()
