"""Models with functions that have no name in a module."""

import json
import os

import keras
import numpy as np
from celery import Celery


def times(factor):
    def scaled(x):
        return x * factor

    return scaled


TWICE = keras.models.load_model(os.environ["MODEL"], custom_objects={"scaled": times(2.0)})
TEN_TIMES = keras.models.load_model(os.environ["MODEL"], custom_objects={"scaled": times(10.0)})
THRICE = keras.models.load_model(os.environ["MODEL"], custom_objects={"scaled": lambda x: 3 * x})
app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


@app.task(name="proj.predict")
def predict(row):
    return [model.predict(np.array([row], "float32"), verbose=0).tolist() for model in (TWICE, TEN_TIMES, THRICE)]
