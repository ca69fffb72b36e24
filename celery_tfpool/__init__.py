"""A Celery worker pool in which TensorFlow and Keras models just work.

Start a worker with ``celery -A proj worker --pool=celery_tfpool:TFPrefork``,
set ``tf_model_path``, and call `get_model` in a task.
"""

from __future__ import annotations

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
from .pool.child import get_model

if TYPE_CHECKING:
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
    "get_model",
)


def __getattr__(name: str) -> Any:
    # An app that calls get_model() under another pool need not import prefork.
    if name == "TFPrefork":
        from .pool.prefork import TFPrefork

        return TFPrefork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
