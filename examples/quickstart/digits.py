"""A Celery app with a Keras model: copy it, and change the broker, the model and the task."""

from __future__ import annotations

import os
import tempfile

from celery import Celery

from celery_tfpool import get_model

folder = os.environ.get("DIGITS_FOLDER") or os.path.join(tempfile.gettempdir(), "digits")
queue, results = os.path.join(folder, "queue"), os.path.join(folder, "results")
for path in (queue, results):
    os.makedirs(path, exist_ok=True)

app = Celery("digits", broker="filesystem://", backend=f"file://{results}")
app.conf.broker_transport_options = {
    "data_folder_in": queue,
    "data_folder_out": queue,
    "control_folder": os.path.join(folder, "control"),
    "polling_interval": 0.01,  # kombu looks for messages once a second unless told otherwise
}
app.conf.tf_model_path = os.path.join(folder, "digits.keras")


@app.task
def classify(image: list[list[float]]) -> int:
    """The digit on ``image``: 8 rows of 8 grey levels, 0 … 16."""
    return int(get_model().predict([image])[0].argmax())
