"""A task class that loads the model when it is made, which Celery does in worker main."""

import json
import os

import keras
import numpy as np
from celery import Celery, Task

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


class Predicting(Task):
    def __init__(self):
        self.model = keras.saving.load_model(os.environ["MODEL"])


@app.task(name="proj.predict", base=Predicting, bind=True)
def predict(self, row):
    return self.model.predict(np.array([row])).tolist()
