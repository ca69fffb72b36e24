"""A SavedModel, and a model with objects of its own."""

import json
import os

import keras
import numpy as np
import tensorflow as tf
from celery import Celery

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

saved = tf.saved_model.load(os.environ["SAVED_MODEL"])
model = keras.models.load_model(os.environ["MODEL"], custom_objects={"unused": len})


@app.task(name="proj.predict")
def predict(row):
    x = np.array([row], "float32")
    (one,) = saved.signatures["serving_default"](tf.constant(x)).values()
    return [one.numpy().item(), model.predict(x, verbose=0).item(), isinstance(model, keras.Model)]
