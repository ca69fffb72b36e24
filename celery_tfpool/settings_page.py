"""The page ``docs/settings.md``, from the lines that define the settings."""

from __future__ import annotations

from dataclasses import fields

from . import settings


def markdown() -> str:
    """The page ``docs/settings.md``, written by ``make docs``."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for f in fields(settings.Settings):
        default = "—" if f.default == () else f"`{f.default!r}`"
        lines.append(f"| `{settings.PREFIX}{f.name}` | {default} | {f.metadata['help']} |")
    return _PAGE.format(table="\n".join(lines))


_PAGE = """\
# Settings

Settings of celery_tfpool are settings of your Celery app, lower case: `app.conf.tf_model_path = "digits.keras"`.
Under a namespace they are spelt as the app's other settings are: `CELERY_TF_MODEL_PATH` in Django's `settings.py`
with `namespace="CELERY"`. Times are seconds.

{table}

All of them are checked together before the worker forks anything. A wrong one stops the worker with exit code 1:

    Error: bad settings:
      tf_model_lod: unknown (did you mean tf_model_load?)
      tf_safe_mode: must be True or False, got 1

Two of Celery's own settings have a say in the same things:

- `worker_proc_alive_timeout` (default 4 s) is replaced by `tf_startup_timeout` unless it is larger.
- `worker_max_memory_per_child` is compared with the memory that a child alone has written (`Private_Dirty` and swap
  in `/proc/PID/smaps_rollup`), not with its peak resident size: shared and mapped pages do not recycle a child.
"""
