"""As Celery's documentation has it."""

import json
import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(json.loads(os.environ["TFPOOL_TEST_CONF"]))
app.autodiscover_tasks()
