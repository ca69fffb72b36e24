"""One model of this process: nothing until its first use, then loaded once.

A model that predictors have is asked of them, one that has a pack is called from
there, and the Keras model is loaded only when something is asked that only Keras has.
It may be let go, and is loaded again at its next use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..errors import ModelLoadError, TFPoolError
from ..runners import location, runtimes, tf_state
from ..runners.convert import short
from ..runners.location import Kind
from ..runners.protocol import Predicts, Runner
from . import words
from .source import Source

logger: logging.Logger = logging.getLogger(__name__)

#: Entered around each load with the model's name and path.
AroundLoad = Callable[[str, str], AbstractContextManager[None]]


#: Forms of models that have a pack, or are one, and no Keras model.
_WITHOUT = {Kind.SAVED_MODEL: "SavedModel", Kind.PACK: "pack"}


def load_plainly(name: str, path: str) -> AbstractContextManager[None]:
    """An `AroundLoad` that adds nothing."""
    return contextlib.nullcontext()


@dataclass(eq=False)
class LazyModel(Source):
    """One model of this process: where it comes from, and once it was needed, the thing itself."""

    #: Predictors that have it; then nothing is loaded here until something is asked that only Keras has.
    remote: Predicts | None = None
    around_load: AroundLoad = load_plainly
    #: Called with this one before it is loaded, and when it has been.
    make_room: Callable[[LazyModel], None] = lambda model: None
    #: Called with the Keras model itself, once, when somebody asks for it.
    when_whole: Callable[[Any], None] = lambda model: None
    #: Seconds; None until it is loaded.
    load_time: float | None = field(default=None, init=False)
    #: When it was used last, by ``time.monotonic``.
    used: float = field(default=0.0, init=False)
    _runner: Runner | None = field(default=None, init=False)
    #: Whether somebody has asked for the Keras model itself, which stays the same one from then on.
    _is_whole: bool = field(default=False, init=False)
    # Re-entrant: a "module:function" that uses its own handle ends in RecursionError and not in a deadlock.
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)

    @property
    def loaded(self) -> bool:
        """Whether it is in this process."""
        return self._runner is not None

    @property
    def packed(self) -> bool:
        """Whether predictions come from mapped files."""
        return self._runner is not None and self._runner.pack_folder is not None

    @property
    def is_whole(self) -> bool:
        """Whether the Keras model itself was asked for here, whose weights may have changed since."""
        return self._is_whole

    def who_predicts(self) -> Predicts:
        """The predictors that have the model, if there are any and it is not loaded here all the same; else `load`."""
        if self.remote is not None and self._runner is None:
            return self.remote
        self.used = time.monotonic()
        self._refuse_in_fork()
        return self.load()

    def _refuse_in_fork(self) -> None:
        """A runtime that was inherited by a fork would wait for ever.

        Raises:
            ModelLoadError: this process has one.
        """
        if (found := runtimes.inherited()) is not None:
            raise ModelLoadError(
                self.name,
                self.path,
                f"this process ({os.getpid()}) is a fork of {found[0]}, in which {found[1]} was in use: predict "
                "would wait for ever. Fork before the model is first used, start the helper with spawn, or set "
                "tf_predictors, of which forks can ask, too",
            )

    def load(self) -> Runner:
        """The model, from its pack if it has one; loads it unless somebody has already.

        Raises:
            ModelLoadError: with the reason, and never anything else that
                loading raised, except what ends the process or the task.
        """
        with self._lock:
            if self._runner is None:
                return self._take(self.load_first)
            return self._runner

    def let_go(self) -> bool:
        """Forget the loaded model, unless it is being loaded, or is the Keras model itself, which may have changed."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._runner is None or self._is_whole:
                return False
            self._runner = self.load_time = None
            self.forget()
            return True
        finally:
            self._lock.release()

    def original(self) -> Runner:
        """The model itself, from now on for predictions as well: its weights may change, and the pack's do not.

        Raises:
            ModelLoadError: as `load`.
        """
        with self._lock:
            self._refuse_in_fork()
            if self._runner is None or (self.packed and self.pack):
                return self._take(self.load_plainly)
            return self._runner

    def _take(self, load_it: Callable[[], Runner]) -> Runner:
        if self._runner is None:
            self.make_room(self)
            self.used = time.monotonic()
        started = time.monotonic()
        with self.around_load(self.name, self.path), tf_state.eagerly():
            runner = load_it()
            self.load_time = round(time.monotonic() - started, 3)
            self._runner = runner
        self.make_room(self)  # others may have been loaded meanwhile
        return runner

    def _form_without(self) -> str:
        """What it is, if it is known, without loading it, that there is no Keras model; else empty."""
        with contextlib.suppress(location.BadSource):
            if self.pack is not None or self.remote is not None or self.packed:
                return _WITHOUT.get(location.kind_of(self.path), "")
        return ""

    def _whole(self, attribute: str) -> Runner:
        """`original`, with the loss, metrics and optimizer that it was saved with: what Keras itself loads.

        Raises:
            ModelLoadError: as `load`.
        """
        with self._lock:
            if not self._is_whole:
                was_elsewhere = self.packed or self.pack is not None or self.remote is not None
                self._load_whole()
                whole = self.original().keras_model
                self._is_whole = True
                self.when_whole(whole)
                if was_elsewhere and (model := self.original().keras_model) is not None:
                    cost = words.of_cost(model, self.load_time or 0.0, is_asked=self.remote is not None)
                    logger.warning("model %r: %r needs the Keras model itself, %s", self.name, attribute, cost)
            return self.original()

    def _load_whole(self) -> None:
        """Load what predicting does not need, if the file has it and if it can be loaded."""
        passed_on: tuple[type[BaseException], ...] = (TFPoolError, *self.interrupts)
        try:
            if location.is_compiled(self.path):
                self._take(lambda: self.load_unchanged(compiled=True))
        except passed_on:
            raise
        except Exception as exc:  # custom losses and metrics, say, that are not imported here
            logger.warning(
                "model %r from %r cannot be loaded with its loss, metrics and optimizer (%s: %s): to train or evaluate "
                "it, call compile() first",
                self.name,
                self.path,
                type(exc).__name__,
                short(exc),
            )

    def keras_model(self, attribute: str) -> Any:
        """The real Keras model, for what only it has.

        Raises:
            AttributeError: it has none.
        """
        form = self._form_without()
        model = None if form else self._whole(attribute).keras_model
        if model is None:
            form = form or ("pack" if self.packed else "SavedModel")
            raise AttributeError(
                f"model {self.name!r} is a {form}, which has predict() only, no {attribute!r}. "
                "Save it with model.save('….keras') to have the whole Keras model"
            )
        return model
