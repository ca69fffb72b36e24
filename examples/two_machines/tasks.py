"""The app of all machines: two models, and a queue for each.  A worker serves the queues and models of its machine."""

from __future__ import annotations

import os
import socket

from celery import Celery

from celery_tfpool import get_model

app = Celery("tasks", broker=os.environ.get("BROKER", "amqp://tasks:secret@10.0.0.1//"), backend="rpc://")
app.conf.tf_model_path = {"faces": "faces.keras", "masks": "masks.keras"}
app.conf.task_routes = {"tasks.find_faces": {"queue": "faces"}, "tasks.find_masks": {"queue": "masks"}}
# A task is done when it is answered: what a machine has taken and not answered when it dies, another one gets.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True
app.conf.broker_connection_retry_on_startup = True


@app.task
def find_faces(row: list[float]) -> tuple[float, str]:
    """The answer, and the machine that gave it."""
    return get_model("faces").predict([row]).item(), socket.gethostname()


@app.task
def find_masks(row: list[float]) -> tuple[float, str]:
    return get_model("masks").predict([row]).item(), socket.gethostname()
