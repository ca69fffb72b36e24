"""The web side: sends tasks by their name, so that it needs neither the model nor TensorFlow."""

from __future__ import annotations

from typing import Any

from celery import Celery
from flask import Flask, request, url_for

flask = Flask(__name__)
# CELERY_BROKER_URL and CELERY_RESULT_BACKEND in the environment go before.
celery = Celery("web", broker="redis://localhost", backend="redis://localhost")


@flask.post("/digits")
def send() -> tuple[dict[str, str], int]:
    """Take an image, and say where its digit is going to be."""
    task = celery.send_task("classify", [request.get_json()])
    return {"answer": url_for("show", task_id=task.id, _external=True)}, 202


@flask.get("/digits/<task_id>")
def show(task_id: str) -> dict[str, Any]:
    """PENDING, SUCCESS with the digit, or FAILURE with the reason."""
    result = celery.AsyncResult(task_id)
    if not result.ready():
        return {"state": "PENDING"}
    if result.failed():
        return {"state": "FAILURE", "error": str(result.result)}
    return {"state": "SUCCESS", "digit": result.result}
