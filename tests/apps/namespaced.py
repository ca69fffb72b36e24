"""An app configured as under Django: upper case, with a namespace."""

from __future__ import annotations

import json
import os

from celery import Celery

from celery_tfpool import get_model

conf = json.loads(os.environ["TFPOOL_TEST_CONF"])
settings = {f"CELERY_{key.upper()}": value for key, value in conf.items()}
settings |= {"CELERY_TF_MODEL_PATH": os.environ["TFPOOL_TEST_MODEL"], "TF_ENABLE_SOMETHING": True}

app = Celery("namespaced")
app.config_from_object(settings, namespace="CELERY")


@app.task
def predict():
    import numpy as np

    return get_model().predict(np.ones((1, 16))).tolist()
