"""A Django project; the model is loaded when its app is ready."""

from .celery import app as celery_app

__all__ = ("celery_app",)
