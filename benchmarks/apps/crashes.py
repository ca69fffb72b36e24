"""An app with the model of the tests that raises, dies or sleeps when its input says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from recipe import celery_app

from celery_tfpool import get_model

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "apps"))

#: Seconds until nobody waits for an answer any more.
RESPONSE_TIMEOUT = 5.0

app = celery_app(__name__)
app.conf.tf_model_path = {
    "default": {"path": "trapped:model", "batch": True}
}  # its Python code takes each row by itself
app.conf.tf_predictors = int(os.environ.get("BENCH_PREDICTORS", "0"))
app.conf.tf_response_timeout = RESPONSE_TIMEOUT


@app.task(name="double")
def double(value: float) -> float:
    return float(get_model().predict([[value]])[0, 0])
