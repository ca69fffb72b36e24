"""The property asks the pool, which keeps one copy for all children."""

import numpy as np
from celery import Celery, Task

from celery_tfpool import get_model

app = Celery("after_4")
app.config_from_object("celeryconfig")
app.conf.tf_model_path = "model.keras"


class Predicting(Task):
    @property
    def model(self):
        return get_model()


@app.task(base=Predicting, bind=True)
def predict(self, row):
    return self.model.predict(np.array([row])).item()
