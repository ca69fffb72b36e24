"""As the Flask templates of those years have it: compiled and prepared where it is loaded."""

import json
import os

import keras
import numpy as np
from celery import Celery

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

model = keras.models.load_model(os.environ["MODEL"], compile=False)
model.compile(optimizer="sgd", loss="mse")
model.make_predict_function()


@app.task(name="proj.predict")
def predict(row):
    return model.predict(np.array([row])).tolist()


@app.task(name="proj.train")
def train():
    """It is compiled where it is needed."""
    x = np.ones((4, 16), "float32")
    model.fit(x, np.zeros((4, 1)), verbose=0)
    return type(model.optimizer).__name__, float(model.predict(x)[0, 0]) < 16
