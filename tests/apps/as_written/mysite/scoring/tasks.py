import numpy as np
from celery import shared_task

from .apps import ScoringConfig


@shared_task(name="proj.predict")
def predict(row):
    return ScoringConfig.model.predict(np.array([row])).tolist()
