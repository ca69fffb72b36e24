"""An app with a handler of its own that predicts before the first task."""

from celery import signals
from proj import app, get_model

predicted = []


@signals.worker_process_init.connect
def warm_up(**_):
    predicted.append(get_model().predict([[1.0] * 16]).tolist())


@app.task(name="proj.predicted_before")
def predicted_before():
    return predicted
