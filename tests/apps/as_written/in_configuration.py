"""A pool that the configuration chooses: known too late for the command line to tell."""

import json
import os

import numpy as np
from celery import Celery

import celery_tfpool

celery_tfpool.defer_loading()

from keras.models import load_model  # noqa: E402

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))
app.conf.worker_pool = "celery_tfpool:TFPrefork"

model = load_model(os.environ["MODEL"])


@app.task(name="proj.predict")
def predict(row):
    return model.predict(np.array([row])).tolist()
