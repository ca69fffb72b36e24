"""TFPrefork and the code of the original question: models are loaded at the top of the module, in worker main."""

from __future__ import annotations

import keras
from recipe import PACKS, PATHS, add_tasks, celery_app

app = celery_app(__name__)
app.conf.tf_cache_dir = PACKS
MODELS = {name: keras.models.load_model(path) for name, path in PATHS.items()}

add_tasks(app, lambda name, x: MODELS[name].predict(x))
