"""What the worker does."""

from __future__ import annotations

from celery import shared_task

from celery_tfpool import get_model


@shared_task
def classify(image: list[list[int]]) -> int:
    """The digit on ``image``: 8 rows of 8 grey levels, 0 … 16."""
    return int(get_model().predict([image])[0].argmax())
