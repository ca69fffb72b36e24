"""Models that the app's own code loads while worker main imports it: a stand-in each, loaded where it is used.

As Celery's gevent pool patches sockets before the app is imported, so `arm`
lets ``keras.models.load_model`` and ``tf.saved_model.load`` return at once in
this process.  In forks of it, and in all others, they are Keras's and
TensorFlow's own.

What is loaded plainly, ``load_model(path)``, becomes a model of the worker, as
one of ``tf_model_path``; it has a pack, and predictors.  What is loaded with
options, or is no Keras model, is loaded by the same call in each child.

Knows nothing of Celery, or of how children find their models; it is told.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import wrapt

from .. import _tensorflow
from ..runners import legacy, location
from ..runners.culprit import blame
from ..runners.location import Kind
from ..runners.options import is_importable
from .stand_in import Deferred, Later, LaterModel, StandIn

#: The process in which loading is deferred; what it has deferred so far; says whether it must not be.
_pid: int | None = None
_models: list[Deferred] = []
_is_off: Callable[[], bool] | None = None


def arm(is_off: Callable[[], bool] | None = None) -> None:
    """From now on defer what this process loads.

    Args:
        is_off: asked at each load whether the user does not want that.
    """
    global _pid, _is_off
    _pid, _is_off = os.getpid(), is_off
    for module, name, library in _tensorflow.loaders():
        wrapt.register_post_import_hook(functools.partial(_patch, name=name, defer=_WAYS[library]), module)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Defer what this process loads while it imports the app, of which it needs the classes and no model."""
    global _pid
    if _pid == os.getpid():
        yield
        return
    arm()
    try:
        yield
    finally:
        _pid = None


def models(taken: Collection[str]) -> list[Deferred]:
    """What was deferred here so far, by names that are not ``taken``."""
    names = set(taken)
    for one in _models:
        stem, number = one.name, 1
        while one.name in names:
            number += 1
            one.name = f"{stem}-{number}"
        names.add(one.name)
    return list(_models)


def _patch(module: Any, name: str, defer: Callable[..., Any]) -> None:
    original = getattr(module, name)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        if _pid != os.getpid() or (_is_off is not None and _is_off()):
            return original(*args, **kwargs)
        return defer(original, *args, **kwargs)

    for other in list(sys.modules.values()):  # whoever has imported it by then
        if getattr(other, "__dict__", {}).get(name) is original:
            setattr(other, name, load)


# -- in place of the functions -------------------------------------------------------------


def _absolute(path: Any) -> str | None:
    """``path`` for a process of another working directory; None of what is not there, of which the original tells."""
    return os.path.abspath(path) if isinstance(path, (str, Path)) and os.path.exists(path) else None


def _keras_model(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``keras.models.load_model``.

    Raises:
        ValueError: there is no such file, or it is no model, as far as that can be seen.
    """
    if (path := _absolute(filepath)) is None:
        return original(filepath, *args, **kwargs)
    options = {**dict(zip(["custom_objects", "compile", "safe_mode"], args, strict=False)), **kwargs}
    options = {name: value for name, value in options.items() if name != "compile" and value not in (None, {})}
    objects = options.pop("custom_objects", {})
    are_known = isinstance(objects, dict) and all(map(is_importable, objects.values()))
    if options not in ({}, {"safe_mode": True}) or not are_known:
        call = functools.partial(original, path, *args, **kwargs)
        return LaterModel(call, f"model from {path!r} with {', '.join(sorted(kwargs))}", "keras")
    if (kind := location.check(path, safe_mode=True)) not in (Kind.KERAS, Kind.H5):
        return original(filepath, *args, **kwargs)
    if legacy.loads(path, kind):  # and this one was asked of Keras 3
        return LaterModel(functools.partial(original, path, *args, **kwargs), f"model from {path!r}", "keras")
    line = blame(traceback.extract_stack(sys._getframe(2)))
    deferred = Deferred(Path(path).stem, path, line, os.getpid(), custom_objects=tuple(objects.items()))
    _models.append(deferred)
    return StandIn(deferred)


def _legacy_model(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``tf_keras.models.load_model``."""
    if (path := _absolute(filepath)) is None:
        return original(filepath, *args, **kwargs)
    return LaterModel(functools.partial(original, path, *args, **kwargs), f"model from {path!r}", "tf_keras")


def _tensorflow_object(original: Callable[..., Any], export_dir: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``tf.saved_model.load``."""
    if (path := _absolute(export_dir)) is None or not os.path.isdir(path):
        return original(export_dir, *args, **kwargs)
    return Later(functools.partial(original, path, *args, **kwargs), f"SavedModel from {path!r}")


_WAYS: dict[str, Callable[..., Any]] = {
    "keras": _keras_model,
    "tensorflow": _tensorflow_object,
    "tf_keras": _legacy_model,
}
