"""A task class that loads the model when it is made.  Celery makes it in the worker's main process."""

import numpy as np
from celery import Celery, Task
from keras.models import load_model

app = Celery("before_3")
app.config_from_object("celeryconfig")


class Predicting(Task):
    def __init__(self):
        self.model = load_model("model.keras")


@app.task(base=Predicting, bind=True)
def predict(self, row):
    return self.model.predict(np.array([row])).item()
