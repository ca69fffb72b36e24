"""The worker's side: a Keras model loaded at the top of a module, as people write it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from celery import Celery

# CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment go before.
app = Celery("tasks", broker="redis://localhost", backend="redis://localhost")

model = keras.models.load_model(Path(__file__).with_name("digits.keras"))


@app.task(name="classify")
def classify(image: list[list[float]]) -> int:
    """The digit on ``image``: 8 rows of 8 grey levels, 0 … 16."""
    return int(model.predict(np.array([image]))[0].argmax())
