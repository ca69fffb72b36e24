"""A Flask module that serves, and has the tasks as well: both use the model."""

import json
import os

import numpy as np
from celery import Celery, shared_task
from flask import Flask, request
from keras.models import load_model


def celery_of(flask):
    made = Celery("proj")
    made.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))
    made.set_default()
    flask.extensions["celery"] = made
    return made


def create_app():
    made = Flask(__name__)
    made.extensions["model"] = load_model(os.environ["MODEL"])
    celery_of(made)
    return made


flask = create_app()
app = flask.extensions["celery"]


@flask.post("/predict")
def serve():
    return flask.extensions["model"].predict(np.array(request.json)).tolist()


@shared_task(name="proj.predict")
def predict(row):
    return flask.extensions["model"].predict(np.array([row])).tolist()
