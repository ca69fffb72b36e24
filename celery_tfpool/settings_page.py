"""The page ``docs/settings.md``, from the lines that define the settings."""

from __future__ import annotations

from dataclasses import fields

from . import settings
from .model_path import OF_ONE_MODEL


def markdown() -> str:
    """The page ``docs/settings.md``, written by ``make docs``."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for f in fields(settings.Settings):
        default = "—" if f.default == () else f"`{f.default!r}`"
        lines.append(f"| `{settings.PREFIX}{f.name}` | {default} | {f.metadata['help']} |")
    of_one = ["| key | meaning |", "|---|---|", *(f"| `{key}` | {words} |" for key, (_, words) in OF_ONE_MODEL.items())]
    return _PAGE.replace("TABLE", "\n".join(lines)).replace("OF_ONE", "\n".join(of_one))


_PAGE = """\
# Settings

Settings of celery_tfpool are settings of your Celery app, lower case: `app.conf.tf_model_path = "digits.keras"`.
Under a namespace they are spelt as the app's other settings are: `CELERY_TF_MODEL_PATH` in Django's `settings.py`
with `namespace="CELERY"`. Times are seconds.

TABLE

Of one model, `{"faces": {"path": "faces.keras", "batch": True}}`:

OF_ONE

A **pattern** stands for many models: with `{"customers/*": "models/{name}.keras"}`, `get_model("customers/acme")` is
the one in `models/acme.keras`. The star is letters, digits, `_`, `-` and dots, and begins with none of the last two, so
a name that a task was sent reaches no other folder. Each child loads such a model at its first use, the first of all
makes its pack, and `tf_max_loaded_models` limits how many it has at a time. Predictors have none of them.

All of them are checked together before the worker forks anything. A wrong one stops the worker with exit code 1:

    Error: bad settings:
      tf_model_lod: unknown (did you mean tf_model_load?)
      tf_safe_mode: must be True or False, got 1

Two of Celery's own settings have a say in the same things:

- `worker_proc_alive_timeout` (default 4 s) is replaced by `tf_startup_timeout` unless it is larger.
- `worker_max_memory_per_child` is compared with the memory that a child alone has written (`Private_Dirty` and swap
  in `/proc/PID/smaps_rollup`), not with its peak resident size: shared and mapped pages do not recycle a child.
"""
