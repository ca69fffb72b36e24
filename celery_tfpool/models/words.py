"""What is said of a load: why it failed and what to do, and what it costs to load a model that is elsewhere."""

from __future__ import annotations

import math
import os
from typing import Any

from ..runners.convert import short
from ..runners.dtypes import itemsize
from ..runners.location import BadSource

#: What Keras says → what to do.
_ADVICE = {
    "Could not locate class": (
        "Import the module of the class where the app's tasks are, or name it in the app's `imports`: "
        "an import in the task comes too late for a process that has not run it"
    ),
    "Unrecognized keyword arguments passed to ": (
        "A file of Keras 2 may have arguments that Keras 3 has dropped: give the model `custom_objects` with a class "
        "that takes them (docs/models.md, Models of Keras 2)"
    ),
}


def of_failure(exc: Exception) -> str:
    """Why a load failed, and what to do if that is known."""
    reason = str(exc) if isinstance(exc, BadSource) else f"{type(exc).__name__}: {short(exc)}"
    advice = [] if "written by Keras 2" in reason else [words for said, words in _ADVICE.items() if said in str(exc)]
    return ". ".join([reason, *advice])


def of_cost(model: Any, seconds: float, *, is_asked: bool) -> str:
    """What it has cost to load the Keras ``model`` of a pack, or of a predictor that is asked otherwise."""
    size = sum(math.prod(variable.shape) * itemsize(variable) for variable in model.variables)
    return (
        f"so process {os.getpid()} has loaded it, in {seconds:.1f} s and {size / 2**20:.0f} MB of its own; from now on "
        f"{'it asks no predictor for it' if is_asked else 'it shares no weights of it'}. "
        "predict(), predict_on_batch() and model(x) of arrays need no Keras model"
    )
