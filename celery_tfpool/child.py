"""The process that runs tasks: which models it has, how many threads, what it tells worker main.

In a pool child `prepare` comes first, before any code of the user's.  In any
other process (a shell, a test, ``-P threads``) nothing prepares it, and
`get_model` loads in place, from the current app's settings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT
from celery import current_app

from . import config, deadlines, runtime
from .config import Settings
from .errors import ModelLoadError
from .models import Handle, LazyModel, Models
from .predictor_client import Client, Predictors, RemoteRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What worker main decides for all its children."""

    settings: Settings = field(default_factory=Settings)
    intra_op: int = 1
    inter_op: int = 1
    #: Name of a model → folder of its pack, for those that have one.
    packs: tuple[tuple[str, str], ...] = ()
    #: Who predicts for the children, if anybody does.
    predictors: Predictors | None = None
    #: Seconds until a child must be ready, and a model loaded.
    startup_timeout: float = 120.0

    @property
    def explicit_threads(self) -> bool:
        return bool(self.settings.intra_op_parallelism or self.settings.inter_op_parallelism)


#: The plan of this process if it is a pool child.
_plan: Plan | None = None
_models: Models | None = None
_models_settings: Settings | None = None
_lock = threading.Lock()

#: Sends `status` to worker main; set while that is possible.
_report: Callable[[dict[str, Any]], None] | None = None
#: Set when this process must not take another task.
_retired = False


def get_model(name: str | None = None) -> Handle:
    """The model ``name`` of ``tf_model_path``, or the only one.  Loaded at its first use, once per process.

    Works in a task under every pool, at the top of a module, and outside a
    worker (a shell, ``task_always_eager``, a unit test): there the settings
    are those of the current Celery app.

    Raises:
        UnknownModelError: no such name, or several models and no name.
        SettingsError: outside a worker of this pool, a ``tf_*`` setting is wrong.
    """
    models = _models_of_this_process()
    if _plan is not None:
        return models.get(name)
    here = models.find(name) if models else None

    def find() -> LazyModel:
        # At the top of a module that worker main imports, perhaps before the app is configured: at the first use
        # this may be a child, whose plan knows of packs.
        return here if here is not None and _plan is None else _models_of_this_process().find(name)

    return Handle(find)


def _models_of_this_process() -> Models:
    global _models, _models_settings
    settings = config.read(current_app.conf, os.environ) if _plan is None else _plan.settings
    with _lock:
        if _models is None or _models_settings != settings:
            _models_settings, _models = (
                settings,
                Models(
                    settings.model_path,
                    safe_mode=settings.safe_mode,
                    packs=dict(_plan.packs) if _plan else {},
                    remote=_remote_models(_plan.predictors) if _plan and _plan.predictors else {},
                    around_load=_around_load,
                    interrupts=(SoftTimeLimitExceeded,),
                ),
            )
        return _models


def _remote_models(predictors: Predictors) -> dict[str, RemoteRunner]:
    client = Client(predictors, deadlines.of_current_task)
    return {
        name: RemoteRunner(name, indices, facts, client)
        for name, (indices, facts) in predictors.models.items()
        if not facts["only_here"]
    }


def prepare(plan: Plan) -> None:
    """Make this process a child of ``plan``.  Starts nothing and loads nothing."""
    global _plan, _models, _models_settings, _lock, _report, _retired
    _plan = plan
    _models = _models_settings = None  # those of worker main know of no pack
    _lock = threading.Lock()  # a thread of the parent may have held it at the fork
    _report, _retired = None, False
    deadlines.follow_tasks()
    runtime.limit_threads(intra_op=plan.intra_op, inter_op=plan.inter_op, explicit=plan.explicit_threads)


def load_eagerly(report: Callable[[dict[str, Any]], None]) -> None:
    """Load what ``tf_model_load = "eager"`` wants loaded, and from now on ``report`` each load.

    Raises:
        ModelLoadError: this process must not take tasks.
    """
    global _report
    _report = report
    if _plan is not None and _plan.settings.model_load == "eager" and _plan.settings.model_path:
        _models_of_this_process().load_all()


def must_retire() -> bool:
    """Whether this child should end after the task it runs."""
    return _retired


def _retire() -> None:
    """Take no other task: a load was interrupted half-way, perhaps in the middle of TensorFlow's import."""
    global _retired
    _retired = True


def status() -> dict[str, Any]:
    """What worker main shows of this child; JSON-friendly."""
    return {"models": _models.status() if _models else {}, "loading": None}


@contextlib.contextmanager
def _around_load(name: str, path: str) -> Iterator[None]:
    """Limit a load in a pool child to the start-up time, and tell worker main of it."""
    if _plan is None:
        yield
        return
    limit, started = _plan.startup_timeout, time.monotonic()
    logger.info("child %d: loading model %r from %r", os.getpid(), name, path)
    _tell({**status(), "loading": name})
    try:
        with _interruptible(limit, ModelLoadError(name, path, f"it took longer than {limit:g} s (tf_startup_timeout)")):
            yield
    finally:
        _tell(status())
    logger.info("child %d: loaded model %r in %.2f s", os.getpid(), name, time.monotonic() - started)


def _tell(facts: dict[str, Any]) -> None:
    # Only the thread that runs tasks may write to the pipe of results: two
    # writers would mix their bytes.
    if _report is not None and threading.current_thread() is threading.main_thread():
        _report(facts)


@contextlib.contextmanager
def _interruptible(seconds: float, too_long: Exception) -> Iterator[None]:
    """Let ``seconds`` (with ``too_long``) and the task's soft time limit end the block, and retire this process then.

    TensorFlow's import, as many a library, catches here and there whatever
    is raised in its middle and goes on.  So an interruption is raised again
    every second, and once more at the end of the block.

    Interrupts Python code only, and only in the main thread.  A load stuck in
    native code is ended by worker main, which kills the child.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruption: list[Exception] = []

    def interrupt(error: Exception) -> None:
        _retire()
        interruption.append(error)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
        raise interruption[0]

    def on_soft_time_limit(*arguments: Any) -> None:
        try:
            soft_time_limit(*arguments)  # type: ignore[operator,misc]
        except Exception as error:
            interrupt(error)

    soft_time_limit = signal.getsignal(SIG_SOFT_TIMEOUT)
    if callable(soft_time_limit):
        signal.signal(SIG_SOFT_TIMEOUT, on_soft_time_limit)
    alarm = signal.signal(signal.SIGALRM, lambda *_: interrupt(too_long))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if alarm is None else alarm)
        if callable(soft_time_limit):
            signal.signal(SIG_SOFT_TIMEOUT, soft_time_limit)
        if interruption:
            raise interruption[0]
