"""The answer of that time, as people have carried it over to TensorFlow 2."""

import json
import os

import numpy as np
import tensorflow as tf
from celery import Celery

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

graph = tf.Graph()
model = tf.keras.models.load_model(os.environ["MODEL"])


@app.task(name="proj.predict")
def predict(row):
    with graph.as_default():
        return model.predict(np.array([row])).tolist()
