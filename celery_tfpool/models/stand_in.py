"""What stands for a model that is loaded elsewhere: it is loaded at its first use, in the process of that use."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..runners.options import LoadOptions
from .handle import ASKED_OF_ANYTHING, Handle
from .lazy_model import LazyModel


@dataclass(eq=False)
class Deferred:
    """A model that was to be loaded here, and is loaded where it is used."""

    name: str
    path: str
    #: Where it was to be loaded, for messages.
    line: str
    #: The process in which it was not loaded.
    pid: int = 0
    custom_objects: tuple[tuple[str, Any], ...] = ()
    #: What it was compiled with, if it was.
    compiled: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    #: The model in each process that has used it: this one, and whichever was forked to this one.
    _in_process: dict[int, LazyModel] = field(default_factory=dict)

    def here(self) -> LazyModel:
        """The model in this process: the worker's of that name, or one that no worker knows of."""
        pid = os.getpid()
        if pid not in self._in_process:
            found = _find(self.name) if _find is not None else None
            if found is None or found.path != self.path:
                options = LoadOptions(custom_objects=self.custom_objects)
                found = LazyModel(self.name, self.path, safe_mode=True, options=options)
            self._in_process.setdefault(pid, found).when_whole = self.compile_again
        return self._in_process[pid]

    def compile_again(self, model: Any) -> None:
        """Do with the model itself what was done with its stand-in."""
        if self.compiled is not None:
            args, kwargs = self.compiled
            model.compile(*args, **kwargs)


#: How this process finds the model of a worker by its name, if it has a worker's.
_find: Callable[[str], LazyModel | None] | None = None


def find_by(find: Callable[[str], LazyModel | None]) -> None:
    """Let stand-ins be the models that ``find`` gives for their names, in this process and its forks."""
    global _find
    _find = find


class StandIn(Handle):
    """Of a Keras model: a handle that ``isinstance(…, keras.Model)`` takes for one, without loading it."""

    __slots__ = ("_deferred",)
    _deferred: Deferred

    def __init__(self, deferred: Deferred) -> None:
        object.__setattr__(self, "_deferred", deferred)
        super().__init__(deferred.here)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        import keras

        return keras.Model

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As Keras's, which people call at once; done when the model itself is needed."""
        if self._deferred.pid == os.getpid() and not self._lazy.loaded:
            self._deferred.compiled = args, kwargs
        else:
            self.keras_model.compile(*args, **kwargs)

    def make_predict_function(self, force: bool = False) -> Any:
        """As Keras's, which people call at once; not needed here."""
        is_here = self._deferred.pid == os.getpid() and not self._lazy.loaded
        return None if is_here else self.keras_model.make_predict_function(force=force)

    def __reduce__(self) -> Any:
        deferred = self._deferred
        return _again, (deferred.name, deferred.path, deferred.line, deferred.custom_objects)


def _again(name: str, path: str, line: str, custom_objects: tuple[tuple[str, Any], ...]) -> StandIn:
    return StandIn(Deferred(name, path, line, custom_objects=custom_objects))


class Later:
    """Of anything else: loaded by the call that was made here, at its first use in each process."""

    __slots__ = ("_call", "_loaded", "_locks", "_what")
    _call: Callable[[], Any]

    def __init__(self, call: Callable[[], Any], what: str) -> None:
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_what", what)
        object.__setattr__(self, "_loaded", {})
        object.__setattr__(self, "_locks", {})

    def _get(self) -> Any:
        pid, loaded = os.getpid(), self._loaded
        if pid not in loaded:
            # Of each process its own: one that was held at a fork stays held there.
            with self._locks.setdefault(pid, threading.RLock()):
                if pid not in loaded:
                    loaded[pid] = self._call()
        return loaded[pid]

    def __getattr__(self, name: str) -> Any:
        if name.startswith(ASKED_OF_ANYTHING):
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
