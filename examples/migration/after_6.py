"""No handler: ``"eager"`` loads the model in each child when it starts."""

import numpy as np
from celery import Celery

from celery_tfpool import get_model

app = Celery("after_6")
app.config_from_object("celeryconfig")
app.conf.tf_model_path = "model.keras"
app.conf.tf_model_load = "eager"


@app.task
def predict(row):
    return get_model().predict(np.array([row])).item()
