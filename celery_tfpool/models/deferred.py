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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wrapt

from .. import _tensorflow
from ..runners import location
from ..runners.culprit import blame
from ..runners.location import Kind
from .handle import Handle
from .lazy_model import LazyModel


@dataclass(eq=False)
class Deferred:
    """A model that was to be loaded here, and is loaded where it is used."""

    name: str
    path: str
    #: Where it was to be loaded, for messages.
    line: str


#: The process in which loading is deferred; what it has deferred so far; says whether it must not be.
_pid: int | None = None
_models: list[Deferred] = []
_is_off: Callable[[], bool] | None = None
#: How this process finds the model of a worker by its name, if it has a worker's.
_find: Callable[[str], LazyModel | None] | None = None
#: Of this process alone: models that no worker knows of.
_own: dict[tuple[int, int], LazyModel] = {}


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


def find_by(find: Callable[[str], LazyModel | None]) -> None:
    """Let stand-ins be the models that ``find`` gives for their names, in this process and its forks."""
    global _find
    _find = find


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


# -- what stands for a model -------------------------------------------------------------


class StandIn(Handle):
    """Of a Keras model: a handle that ``isinstance(…, keras.Model)`` takes for one, without loading it."""

    __slots__ = ("_deferred",)
    _deferred: Deferred

    def __init__(self, deferred: Deferred) -> None:
        object.__setattr__(self, "_deferred", deferred)
        super().__init__(functools.partial(_lazy_of, deferred))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        import keras

        return keras.Model

    def __reduce__(self) -> Any:
        return _again, (self._deferred.name, self._deferred.path, self._deferred.line)


def _again(name: str, path: str, line: str) -> StandIn:
    return StandIn(Deferred(name, path, line))


def _lazy_of(deferred: Deferred) -> LazyModel:
    found = _find(deferred.name) if _find is not None else None
    if found is not None and found.path == deferred.path:
        return found
    key = os.getpid(), id(deferred)
    if key not in _own:
        _own[key] = LazyModel(deferred.name, deferred.path, safe_mode=True)
    return _own[key]


class Later:
    """Of anything else: loaded by the call that was made here, at its first use in each process."""

    __slots__ = ("_call", "_loaded", "_what")
    _call: Callable[[], Any]

    def __init__(self, call: Callable[[], Any], what: str) -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_what", what)
        object.__setattr__(self, "_loaded", {})

    def _get(self) -> Any:
        loaded = self._loaded
        if os.getpid() not in loaded:
            loaded[os.getpid()] = self._call()
        return loaded[os.getpid()]

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_is_coroutine", "_partialmethod", "_repr_", "_ipython_")):
            raise AttributeError(name)
        return getattr(self._get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get(), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the loaded object's own call gives."""
        return self._get()(*args, **kwargs)

    def __repr__(self) -> str:
        state = "loaded" if os.getpid() in self._loaded else "loaded where it is used"
        return f"<{self._what}, {state}>"


# -- in place of the functions -------------------------------------------------------------


def _keras_model(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``keras.models.load_model``.

    Raises:
        ValueError: there is no such file, or it is no model, as far as that can be seen.
    """
    is_file = isinstance(filepath, (str, Path)) and "://" not in str(filepath)
    if not is_file or not os.path.exists(filepath) or len(args) > 1:
        return original(filepath, *args, **kwargs)  # or its own words on what is not there
    path = os.path.abspath(filepath)
    options = {**dict(zip(["custom_objects"], args, strict=False)), **kwargs}
    options = {name: value for name, value in options.items() if name != "compile" and value not in (None, {})}
    if options not in ({}, {"safe_mode": True}):
        call = functools.partial(original, path, *args, **kwargs)
        return LaterModel(call, f"model from {path!r} with {', '.join(sorted(options))}", "keras")
    if location.check(path, safe_mode=True) not in (Kind.KERAS, Kind.H5):
        return original(filepath, *args, **kwargs)
    line = blame(traceback.extract_stack(sys._getframe(2)))
    deferred = Deferred(Path(path).stem, path, line)
    _models.append(deferred)
    return StandIn(deferred)


class LaterModel(Later):
    """Of a Keras model, which ``isinstance`` takes it for."""

    __slots__ = ("_library",)
    _library: str

    def __init__(self, call: Callable[[], Any], what: str, library: str) -> None:
        object.__setattr__(self, "_library", library)
        super().__init__(call, what)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return sys.modules[self._library].Model


def _legacy_model(original: Callable[..., Any], filepath: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``tf_keras.models.load_model``."""
    if not isinstance(filepath, (str, Path)) or not os.path.exists(filepath):
        return original(filepath, *args, **kwargs)
    path = os.path.abspath(filepath)
    return LaterModel(functools.partial(original, path, *args, **kwargs), f"model from {path!r}", "tf_keras")


def _tensorflow_object(original: Callable[..., Any], export_dir: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of ``tf.saved_model.load``."""
    if not isinstance(export_dir, (str, Path)) or not os.path.isdir(export_dir):
        return original(export_dir, *args, **kwargs)
    path = os.path.abspath(export_dir)
    return Later(functools.partial(original, path, *args, **kwargs), f"SavedModel from {path!r}")


_WAYS: dict[str, Callable[..., Any]] = {
    "keras": _keras_model,
    "tensorflow": _tensorflow_object,
    "tf_keras": _legacy_model,
}
