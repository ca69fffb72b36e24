"""A signal handler that loads the model in each child when it starts."""

import numpy as np
from celery import Celery
from celery.signals import worker_process_init
from keras.models import load_model

app = Celery("before_6")
app.config_from_object("celeryconfig")

model = None


@worker_process_init.connect
def load(**kwargs):
    global model
    model = load_model("model.keras")


@app.task
def predict(row):
    return model.predict(np.array([row])).item()
