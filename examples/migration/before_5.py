"""Loaded anew in each call, so that no fork can harm it."""

import numpy as np
from celery import Celery

app = Celery("before_5")
app.config_from_object("celeryconfig")


@app.task
def predict(row):
    from keras.models import load_model

    model = load_model("model.keras")
    return model.predict(np.array([row])).item()
