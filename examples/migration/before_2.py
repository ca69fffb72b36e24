"""The global with a graph: the answer of TensorFlow 1's time, as it is still copied."""

import numpy as np
import tensorflow as tf
from celery import Celery

app = Celery("before_2")
app.config_from_object("celeryconfig")

graph = tf.Graph()
model = tf.keras.models.load_model("model.keras")


@app.task
def predict(row):
    with graph.as_default():
        return model.predict(np.array([row])).item()
