"""TFPrefork; with BENCH_CACHE=new as if it had never run here, with BENCH_SHARE=no as if nothing could be shared."""

from __future__ import annotations

import os
import tempfile

from recipe import PACKS, PATHS, add_tasks, celery_app

from celery_tfpool import get_model

app = celery_app(__name__)
app.conf.tf_model_path = PATHS
if os.environ.get("BENCH_CACHE") == "new":
    _folder = tempfile.TemporaryDirectory(prefix="bench-packs-")
    app.conf.tf_cache_dir = _folder.name
else:
    app.conf.tf_cache_dir = PACKS
app.conf.tf_predictors = int(os.environ.get("BENCH_PREDICTORS", "0"))
app.conf.tf_batch_timeout = float(os.environ.get("BENCH_BATCH_TIMEOUT", "0"))
if os.environ.get("BENCH_SHARE") == "no":
    app.conf.tf_preimport = app.conf.tf_share_weights = False

add_tasks(app, lambda name, x: get_model(name).predict(x))
