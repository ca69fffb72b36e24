"""Load a model as Keras or TensorFlow stores it, or as a function makes it, and choose the runner that calls it.

Knows every form of a model; not when it is loaded, in which process, or what
becomes of an error.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

from .. import _tensorflow
from . import configuration, installed, legacy, location, saved_model, subclassed
from .any_object import ObjectRunner, can_predict
from .convert import short
from .keras_model import KerasRunner
from .location import Kind
from .options import NOTHING, LoadOptions
from .other_backend import OtherBackendRunner
from .protocol import Runner
from .subclassed import FreeRunner


def load_stored(
    name: str, path: str, *, safe_mode: bool, options: LoadOptions = NOTHING, compiled: bool = False
) -> Runner:
    """The model at ``path``, ready to predict.

    Args:
        compiled: load a stored model's loss, metrics and optimizer, too.

    Raises:
        BadSource: there is no such model, or none that can be used here.
        Exception: whatever comes out of the user's file or function.
    """
    if why := installed.missing():
        raise location.BadSource(why)
    kind = location.check(path, safe_mode=safe_mode, weights=options.weights)
    if kind is Kind.PACK:
        raise location.BadSource("it is a pack, which has no other form")
    if kind is Kind.SAVED_MODEL:
        if why := installed.without_tensorflow():
            raise location.BadSource(why)
        return saved_model.runner_of(name, os.path.expanduser(path), options.signature)
    model = _made_by(path) if kind is Kind.FUNCTION else _stored_at(path, kind, safe_mode, compiled, options)
    return _runner_of(model)(name, model)


def _runner_of(model: Any) -> Callable[[str, Any], Runner]:
    import keras

    if legacy.is_its_model(model):
        return legacy.LegacyRunner if subclassed.needed_by(model) else KerasRunner
    if not isinstance(model, keras.Model):
        return ObjectRunner
    if installed.other_backend():
        return OtherBackendRunner
    return FreeRunner if subclassed.needed_by(model) else KerasRunner


def _stored_at(path: str, kind: Kind, safe_mode: bool, compiled: bool, options: LoadOptions) -> Any:

    local = path if kind is Kind.REMOTE else os.path.expanduser(path)
    if kind is Kind.ARCHITECTURE:
        model = _of_config(configuration.json_config(local), options.objects(), safe_mode)
    else:
        model = _load_model(local, kind, safe_mode, compiled, options)
    if options.weights is not None:
        model.load_weights(os.path.expanduser(options.weights))
    return model


def _of_config(config: dict[str, Any], objects: dict[str, Any], safe_mode: bool) -> Any:
    import keras

    if "module" not in config:  # of Keras 2; what may be code was refused already
        return _tensorflow.model_of_keras_2(config, objects)
    return keras.saving.deserialize_keras_object(config, objects, safe_mode=safe_mode)


def _load_model(local: str, kind: Kind, safe_mode: bool, compiled: bool, options: LoadOptions) -> Any:
    import keras

    # Training configuration is not needed to predict, and its custom
    # losses and metrics would have to be importable.
    wanted = {"custom_objects": options.objects(), "compile": compiled, "safe_mode": safe_mode}
    if legacy.loads(local, kind):
        return legacy.load(local, **wanted)
    load_model = inspect.unwrap(keras.models.load_model)  # even where loading is deferred
    try:
        return load_model(local, **wanted)
    except (TypeError, ValueError) as exc:
        if hint := legacy.hint(local, kind):
            raise location.BadSource(f"{type(exc).__name__}: {short(exc)}{hint}") from exc
        raise


def _made_by(function: str) -> Any:
    module_name, _, attributes = function.partition(":")
    make: Any = importlib.import_module(module_name)
    for part in attributes.split("."):
        make = getattr(make, part)
    model = make()
    if not can_predict(model):
        raise location.BadSource(
            f"it returned {type(model).__name__}, which is no keras.Model, has no predict() and cannot be called"
        )
    return model
