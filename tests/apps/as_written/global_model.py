"""The code of the question: a global model beside the task."""

import json
import os

import numpy as np
from celery import Celery
from keras.models import load_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

model = load_model(os.environ["MODEL"])


@app.task(name="proj.predict")
def predict(row):
    return model.predict(np.array([row])).tolist()


@app.task(name="proj.is_model")
def is_model():
    import keras

    return isinstance(model, keras.Model), repr(model)


@app.task(name="proj.load")
def load():
    """In a child the function is Keras's own."""
    return type(load_model(os.environ["MODEL"])).__name__
