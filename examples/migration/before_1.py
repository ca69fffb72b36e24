"""A global of the module: the code of most questions."""

import numpy as np
from celery import Celery
from keras.models import load_model

app = Celery("before_1")
app.config_from_object("celeryconfig")

model = load_model("model.keras")


@app.task
def predict(row):
    return model.predict(np.array([row])).item()
