"""No more of Django than the example needs, and all that Celery and its pool are told."""

from __future__ import annotations

from pathlib import Path

BASE_DIR = Path(__file__).parent.parent

SECRET_KEY = "for trying out only"
DEBUG = True
ROOT_URLCONF = "mysite.urls"
INSTALLED_APPS = ["digits"]
MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
TIME_ZONE = "UTC"

# Variables of these two names in the environment go before.
CELERY_BROKER_URL = "redis://localhost"
CELERY_RESULT_BACKEND = "redis://localhost"
CELERY_WORKER_POOL = "celery_tfpool:TFPrefork"
CELERY_TF_MODEL_PATH = BASE_DIR / "digits.keras"
