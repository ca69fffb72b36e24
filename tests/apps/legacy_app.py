"""An app of Keras 2: what it loads itself, and what the settings name."""

import json
import os

import legacy_models
import numpy as np
from celery import Celery

from celery_tfpool import get_model

app = Celery("proj")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))
if "LEGACY_MODEL" in os.environ:
    import keras

    OWN = legacy_models.keras.models.load_model(os.environ["LEGACY_MODEL"])
    OF_KERAS_3 = keras.models.load_model(os.environ["MODEL"])
if "BUILT" in os.environ:
    BUILT = legacy_models.Bert()(legacy_models.X[:1])


@app.task(name="proj.predict_x")
def predict_x(name):
    return get_model(name).predict(legacy_models.X).tolist()


@app.task(name="proj.is_as_itself")
def is_as_itself(name):
    """Whether it predicts what the model that its function makes does."""
    made = getattr(legacy_models, {"bert": "Bert"}.get(name, name))()
    expected, answer = made.predict(legacy_models.X, verbose=0), get_model(name).predict(legacy_models.X)
    return expected.keys() == answer.keys() and all(np.allclose(expected[k], answer[k], atol=1e-6) for k in expected)


@app.task(name="proj.predict_own")
def predict_own():
    return OWN.predict(legacy_models.X, verbose=0).tolist()


@app.task(name="proj.predict_with_keras_3")
def predict_with_keras_3():
    return OF_KERAS_3.predict(np.ones((1, 16))).tolist()
