"""The project; its Celery app is there whenever Django is, so that ``shared_task`` finds it."""

from .celery import app as celery_app

__all__ = ("celery_app",)
