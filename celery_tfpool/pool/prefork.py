"""TFPrefork: Celery's prefork pool with time to load, a fork guard, and an end to crash loops.

`TFPrefork` is Celery's own ``TaskPool`` on the two engines of `engines`.

Importing this module is how the pool is chosen, so it adds `bootstep.Models`
to Celery's worker blueprint, where it does nothing for other pools.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import celery
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.worker import WorkController
from celery.worker import state as worker_state

from .. import processes
from .._celery import bring_cffi, engine_of
from ..errors import ForkGuardError
from ..model_path import ModelPath
from ..models import deferred
from ..packs import cache
from ..packs.build import Packing
from ..predictors import server
from ..predictors.server import Job
from ..predictors.supervisor import CannotStart, Supervisor
from ..runners import runtimes
from . import fork_guard
from .async_engine import TFAsynPool
from .bases import TaskPool
from .blocking_engine import TFBlockingPool
from .plan import Plan, assign, preimport

logger: logging.Logger = get_logger(__name__)

WorkController.Blueprint.default_steps.add("celery_tfpool.pool.startup:Models")


class TFPrefork(TaskPool):
    """Celery's prefork pool, in which TensorFlow and Keras work.

    Choose it with ``celery -A proj worker --pool=celery_tfpool:TFPrefork``.
    """

    Pool = TFAsynPool
    BlockingPool = TFBlockingPool

    #: What `bootstep.Models` decided; a pool without a worker has the defaults.
    plan: Plan = Plan()
    #: What became of each model, as `bootstep.Models` found out.
    packings: Sequence[Packing] = ()
    #: Threads of one predictor, as `bootstep.Models` decided.
    predictor_threads: tuple[int, int] = (1, 1)
    supervisor: Supervisor | None = None
    forking_enable: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: list[int] = []
        self._must_unfreeze = False

    def on_start(self) -> None:
        """Guard the fork, start predictors, then children.

        Raises:
            WorkerShutdown: one of these cannot be.
        """
        try:
            self.guard_fork()
        except ForkGuardError as exc:
            logger.critical("%s", exc)
            raise WorkerShutdown(EX_FAILURE) from exc
        self._start_predictors()
        # A C parser, where cffi is installed: 50 ms and 4 MB in each child.
        with contextlib.suppress(OSError):
            bring_cffi()
        # What is there now stays for all children and predictors: the collector would write to the pages of each
        # object it looks at, and so copy them, in each of these processes.
        gc.collect()
        self._must_unfreeze = gc.get_freeze_count() == 0  # else the program that embeds this worker has a say
        gc.freeze()
        self.options["plan"] = self.plan
        super().on_start()

    def on_stop(self) -> None:
        """Let tasks finish, then end children and predictors."""
        try:
            super().on_stop()
        finally:  # children need them until their last task is done
            self._stop_predictors()
            self._let_go()

    def on_terminate(self) -> None:
        """End children at once, and predictors."""
        try:
            super().on_terminate()
        finally:
            self._stop_predictors()
            self._let_go()

    def _start_predictors(self) -> None:
        settings = self.plan.settings
        if not (models := settings.of_predictors):
            return
        self.supervisor = Supervisor(
            [has for has in assign(models, settings.predictors) if has],
            job=self._job_of,
            give_up=self._give_up,
            startup_timeout=self.plan.startup_timeout,
            preload=self.preload,
        )
        try:
            self.supervisor.start(worker_state.maybe_shutdown)
        except CannotStart as exc:
            logger.critical("%s", exc)
            raise WorkerShutdown(EX_FAILURE) from exc
        predictors = self.supervisor.client(settings.response_timeout, settings.max_request_bytes)
        self.plan = replace(self.plan, predictors=predictors)
        if settings.preimport and any(facts.only_here for _, facts in predictors.models.values()):
            preimport()  # some model turned out to be loaded by children

    def _job_of(self, index: int, models: tuple[ModelPath, ...], folder: str) -> Job:
        intra_op, inter_op = self.predictor_threads
        pid = os.getpid()
        return Job(
            index,
            models,
            self.plan.packs,
            self.plan.contents,
            self.plan.settings,
            intra_op,
            inter_op,
            folder,
            parent=pid,
            parent_started=server.started_at(pid),
            prepare=preparation(self.app),
        )

    def _give_up(self, reason: str) -> None:
        worker_state.should_stop = EX_FAILURE

    def _stop_predictors(self) -> None:
        if self.supervisor is not None:
            self.supervisor.stop()
            self.supervisor = None

    def hold(self, folder: str) -> bool:
        """Keep the pack in ``folder`` from being removed until the pool stops; whether it is there."""
        descriptor = cache.hold(folder)
        if descriptor is not None:
            self._held.append(descriptor)
        return descriptor is not None

    def _let_go(self) -> None:
        """Undo what was done to this process: a worker that is embedded in a program ends before it."""
        if self._must_unfreeze:
            gc.unfreeze()
        while self._held:
            os.close(self._held.pop())

    def guard_fork(self) -> None:
        """Decide between fork and spawn for the children that are to be started.

        Raises:
            ForkGuardError: TensorFlow is initialised here, and spawn is not
                possible or not wanted.
        """
        if not self.forking_enable:
            return
        runtimes.protect_forks()
        method = fork_guard.start_method(
            self.plan.settings.fork_guard,
            can_spawn=fork_guard.can_spawn(),
            why_not=f"Celery {celery.__version__} cannot spawn children instead (5.7 and newer can)",
        )
        self.forking_enable = method == "fork"

    @property
    def preload(self) -> Sequence[str]:
        """What a forkserver imports, of which predictors are forked."""
        preimport = self.plan.settings.preimport
        return ["celery_tfpool.predictors.nursery" if preimport else "celery_tfpool.predictors.server"]

    @property
    def start_method(self) -> str:
        """By which children are started: fork or spawn."""
        return "fork" if self.forking_enable else "spawn"

    def children(self) -> list[dict[str, Any]]:
        """Of each child: slot, pid, whether it is ready, its models and its memory in bytes; JSON-friendly."""
        known = getattr(engine_of(self), "children", {})
        return [
            {
                "slot": state.slot,
                "pid": pid,
                "ready": state.ready,
                "loading": state.loading,
                "models": state.models,
                "memory": processes.memory_of(pid),
            }
            for pid, state in sorted(known.items(), key=lambda item: item[1].slot)
            if state.slot >= 0  # the last words of a child that has ended have none
        ]


def preparation(app: Any) -> Callable[[], None]:
    """Does in another process what Celery's own spawned children do; can be pickled.

    The app is found there where its module has it: its configuration may hold what cannot be pickled.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("celery", "celery_tfpool"):
            for attribute, value in list(getattr(module, "__dict__", {}).items()):
                if value is app:
                    return functools.partial(prepare_as, name, attribute)
    return functools.partial(prepare, app)


def prepare_as(module: str, attribute: str) -> None:
    """`prepare` for the app that is ``attribute`` of ``module``."""
    with deferred.importing():
        prepare(getattr(importlib.import_module(module), attribute))


def prepare(app: Any) -> None:
    """Know the app, log where worker main logs, import the app's modules."""
    app.set_current()
    app.log.setup(int(os.environ.get("CELERY_LOG_LEVEL") or 0), os.environ.get("CELERY_LOG_FILE") or None)
    with deferred.importing():
        app.loader.import_default_modules()
