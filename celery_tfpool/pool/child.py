"""The process that runs tasks: which models it has, how many threads, what it tells worker main.

In a pool child `prepare` comes first, before any code of the user's.  In any
other process (a shell, a test, ``-P threads``) nothing prepares it, and
`get_model` loads in place, from the current app's settings.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_app, signals

from .. import arrays
from .._celery import known_apps
from ..errors import ModelLoadError
from ..models import stand_in
from ..models.handle import Handle
from ..models.lazy_model import LazyModel
from ..models.of_process import Models
from ..packs.cache import PackCache
from ..predictors.client import Client, Predictors
from ..predictors.remote_model import RemoteRunner
from ..runners import runtimes
from ..settings import Settings, read
from . import deadlines
from .child_rules import Status
from .interruption import interruptible
from .plan import Plan

logger: logging.Logger = logging.getLogger(__name__)


#: The plan of this process if it is a pool child.
_plan: Plan | None = None
#: Of the settings of a child, or of each app of another process: its models.
_models: dict[Settings, Models] = {}
_lock = threading.Lock()

#: Sends `status` to worker main; set while that is possible, in this process but not in a fork of it.
_report: Callable[[Status], None] | None = None
_pid = 0
#: Set when this process must not take another task.
_retired = False
#: What became of `on_process_init`.
_has_models = False
_init_failure: Exception | None = None


def get_model(name: str | None = None) -> Handle:
    """`celery_tfpool.get_model`."""
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
    settings = _settings_of_app() if _plan is None else _plan.settings
    with _lock:
        if settings not in _models:
            _models[settings] = Models(
                settings.model_path,
                safe_mode=settings.safe_mode,
                packs=dict(_plan.packs) if _plan else {},
                contents=dict(_plan.contents) if _plan else {},
                remote=_remote_models(_plan.predictors) if _plan and _plan.predictors else {},
                cache=PackCache.of(settings, os.environ) if _plan and settings.share_weights else None,
                code=_plan.code if _plan else None,
                max_loaded=settings.max_loaded_models,
                around_load=_around_load,
                interrupts=(SoftTimeLimitExceeded,),
            )
        return _models[settings]


def _deferred_model(name: str) -> LazyModel | None:
    """The model of this worker that a stand-in of that name stands for, if this is a child of one."""
    names = [model.name for model in _plan.settings.model_path] if _plan else []
    return _models_of_this_process().find(name) if name in names else None


def _settings_of_app() -> Settings:
    """Those of the current app; in a thread that has none, of the only app that has models."""
    settings = read(current_app.conf, os.environ)
    if not settings.model_path and current_app.main == "default":  # Celery's fallback
        others = [app for app in known_apps() if app.conf.get("tf_model_path")]
        if len(others) == 1:
            return read(others[0].conf, os.environ)
    return settings


def _remote_models(predictors: Predictors) -> dict[str, RemoteRunner]:
    client = Client(predictors, deadlines.of_current_task)
    return {
        name: RemoteRunner(name, indices, facts, client)
        for name, (indices, facts) in predictors.models.items()
        if not facts.only_here
    }


def prepare(plan: Plan) -> None:
    """Make this process a child of ``plan``.  Starts nothing and loads nothing."""
    global _plan, _lock, _report, _pid, _retired, _has_models, _init_failure
    _plan, _pid = plan, os.getpid()
    _has_models, _init_failure = False, None
    _models.clear()  # those of worker main know of no pack
    _lock = threading.Lock()  # a thread of the parent may have held it at the fork
    _report, _retired = None, False
    stand_in.find_by(_deferred_model)
    arrays.register()  # what `predict` returns is a result that JSON knows
    deadlines.follow_tasks()
    if "numpy" in sys.modules:  # or all children, and their replacements, would draw the same numbers
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    runtimes.protect_forks()
    runtimes.limit_threads(intra_op=plan.intra_op, inter_op=plan.inter_op, explicit=plan.explicit_threads)


def follow_init(report: Callable[[Status], None]) -> None:
    """Have `on_process_init` called, after the user's own handlers of that signal, and from now on ``report`` loads."""
    global _report
    _report = report
    signals.worker_process_init.connect(on_process_init, weak=False, dispatch_uid=__name__)


def on_process_init(**_: Any) -> None:
    """Make the models of this child, and load those that ``tf_model_load = "eager"`` wants loaded."""
    global _has_models, _init_failure
    try:
        models = _models_of_this_process()
        if _plan is not None and _plan.settings.model_load == "eager":
            models.load_all()
        _has_models = True
    except Exception as exc:  # Celery would log and forget it
        _init_failure = exc


def check_init() -> None:
    """See what became of `on_process_init`.

    Raises:
        Exception: what it met, or that it was not called: this process must not take tasks.
    """
    if _init_failure is not None:
        raise _init_failure
    if not _has_models:
        raise RuntimeError("no handler of worker_process_init gave this child its models")


def must_retire() -> bool:
    """Whether this child should end after the task it runs."""
    return _retired


def _retire() -> None:
    """Take no other task: a load was interrupted half-way, perhaps in the middle of TensorFlow's import."""
    global _retired
    _retired = True


def status() -> Status:
    """What worker main shows of this child."""
    models = next(iter(_models.values()), None)
    return Status(models.status() if models else {})


@contextlib.contextmanager
def _around_load(name: str, path: str) -> Iterator[None]:
    """Limit a load in a pool child to the start-up time, and tell worker main of it."""
    if _plan is None:
        yield
        return
    limit, started = _plan.startup_timeout, time.monotonic()
    logger.info("child %d: loading model %r from %r", os.getpid(), name, path)
    _tell(replace(status(), loading=name))
    try:
        too_long = ModelLoadError(name, path, f"it took longer than {limit:g} s (tf_startup_timeout)")
        with interruptible(limit, too_long, on_interruption=_retire):
            yield
    finally:
        _tell(status())
    logger.info("child %d: loaded model %r in %.2f s", os.getpid(), name, time.monotonic() - started)


def _tell(status: Status) -> None:
    # Only the thread that runs tasks may write to the pipe of results: two
    # writers would mix their bytes.
    if _report is not None and _pid == os.getpid() and threading.current_thread() is threading.main_thread():
        _report(status)
