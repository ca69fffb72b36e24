"""Two models of one name in two folders, and the same file twice."""

import json
import os

import numpy as np
from celery import Celery
from keras.models import load_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))

first = load_model(os.environ["MODEL"])
second = load_model(os.environ["OTHER_MODEL"])
again = load_model(filepath=os.environ["MODEL"], compile=False)


@app.task(name="proj.predict")
def predict(row):
    return [model.predict(np.array([row])).item() for model in (first, second, again)]
