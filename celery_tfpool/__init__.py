"""A Celery worker pool in which TensorFlow and Keras models just work.

Start a worker with ``celery -A proj worker --pool=celery_tfpool:TFPrefork``,
set ``tf_model_path``, and call `get_model` in a task.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .errors import (
    ForkGuardError,
    InvalidInputError,
    ModelLoadError,
    PredictionError,
    PredictionTimeout,
    PredictorOverloaded,
    PredictorUnavailable,
    SettingsError,
    TFPoolError,
    UnknownModelError,
)

if TYPE_CHECKING:
    from .models.handle import Handle
    from .pool.prefork import TFPrefork

__version__ = "0.1.0"

__all__ = (
    "ForkGuardError",
    "InvalidInputError",
    "ModelLoadError",
    "PredictionError",
    "PredictionTimeout",
    "PredictorOverloaded",
    "PredictorUnavailable",
    "SettingsError",
    "TFPoolError",
    "TFPrefork",
    "UnknownModelError",
    "defer_loading",
    "get_model",
)


def get_model(name: str | None = None) -> Handle:
    """The model ``name`` of ``tf_model_path``, or the only one.  Loaded at its first use, once per process.

    Works in a task under every pool, at the top of a module, and outside a
    worker (a shell, a web process, ``task_always_eager``, a unit test): there
    the settings are those of the current Celery app, or, in a thread that has
    none, of the only app that has ``tf_model_path``.

    Raises:
        UnknownModelError: no such name, or several models and no name.
        SettingsError: outside a worker of this pool, a ``tf_*`` setting is wrong.
    """
    from .pool.child import get_model as find  # a process that only sends tasks needs none of that

    return find(name)


def defer_loading() -> None:
    """In a worker's main process, let ``keras.models.load_model`` and ``tf.saved_model.load`` return at once.

    They give a stand-in, and the model is loaded in the children.  For the top of a module that loads a model where the
    pool is chosen in the configuration; ``--pool=celery_tfpool:TFPrefork`` on the command line does the same.  Without
    effect in any other process.
    """
    if "worker" in sys.argv:
        from .pool.deferral import arm

        arm()


def __getattr__(name: str) -> Any:
    # An app that calls get_model() under another pool need not import prefork.
    if name == "TFPrefork":
        from .pool.prefork import TFPrefork

        return TFPrefork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
