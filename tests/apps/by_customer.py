"""One model for each customer, whose name comes with the task."""

import json
import os

import numpy as np
from celery import Celery

from celery_tfpool import UnknownModelError, get_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))


@app.task(name="proj.predict")
def predict(model, row):
    try:
        return get_model(model).predict(np.array([row], "float32"))
    except UnknownModelError as exc:
        return type(exc).__name__
