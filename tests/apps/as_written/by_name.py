"""A model that the module loads, beside one of the settings."""

import json
import os

import numpy as np
from celery import Celery
from keras.models import load_model

from celery_tfpool import get_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

model = load_model(os.environ["MODEL"])


@app.task(name="proj.predict")
def predict(row):
    x = np.array([row])
    return [one.predict(x).item() for one in (model, get_model(), get_model("sum"))]
