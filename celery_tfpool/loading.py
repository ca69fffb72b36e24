"""Load what stands at a path, and choose the runner that calls it.

Knows every form of a model; not when it is loaded, in which process, or what
becomes of an error.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from . import free_runner, pack, runtime, sources
from .free_runner import FreeRunner
from .keras_runner import KerasRunner
from .pack_runner import PackRunner
from .runner import Runner
from .signature_runner import SignatureRunner
from .sources import Kind


def load(name: str, path: str, *, safe_mode: bool, compiled: bool = False) -> Runner:
    """The model at ``path``, ready to predict.

    Args:
        compiled: load a stored model's loss, metrics and optimizer, too.

    Raises:
        BadSource: there is no such model, or none that can be used here.
        Exception: whatever comes out of the user's file or function.
    """
    if why := runtime.missing():
        raise sources.BadSource(why)
    kind = sources.check(path, safe_mode=safe_mode)
    if kind is Kind.PACK:
        folder = os.path.expanduser(path)
        if why := pack.made_elsewhere(pack.read_manifest(folder)):
            raise sources.BadSource(why)
        return PackRunner(name, folder)
    if kind is Kind.SAVED_MODEL:
        return SignatureRunner(name, os.path.expanduser(path))
    _check_backend()
    model = _made_by(path) if kind is Kind.FUNCTION else _stored_at(path, kind, safe_mode, compiled)
    runner = FreeRunner if free_runner.needed_by(model) else KerasRunner
    return runner(name, model)


def _check_backend() -> None:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise sources.BadSource(
            f"Keras runs on {keras.backend.backend()!r} (KERAS_BACKEND or ~/.keras/keras.json); "
            "this pool needs 'tensorflow'"
        )


def _stored_at(path: str, kind: Kind, safe_mode: bool, compiled: bool) -> Any:
    import keras

    local = path if kind is Kind.REMOTE else os.path.expanduser(path)
    # Training configuration is not needed to predict, and its custom
    # losses and metrics would have to be importable.
    return keras.models.load_model(local, compile=compiled, safe_mode=safe_mode)


def _made_by(function: str) -> Any:
    import keras

    module_name, _, attributes = function.partition(":")
    make: Any = importlib.import_module(module_name)
    for part in attributes.split("."):
        make = getattr(make, part)
    model = make()
    if not isinstance(model, keras.Model):
        raise sources.BadSource(f"it returned {type(model).__name__}, not a keras.Model")
    return model
