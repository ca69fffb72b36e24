"""A process that owns models and predicts for all children, batching their requests.

One event loop receives and answers; `scheduler` decides what is computed, and
threads beside it compute, unless a model's calls are sure to be over in a moment.

Whoever asks (`client`) has one connection for each request in flight.  A
connection that is closed takes its request with it.  What is said is in
`messages`; `supervisor` starts and ends this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import multiprocessing.util
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from socket import socket
from typing import Any, NoReturn

from .. import _tensorflow, processes
from ..errors import TFPoolError
from ..model_path import ModelPath
from ..models.of_process import Models
from ..packs.fingerprint import Content
from ..processes import GRACE
from ..runners import installed, runtimes
from ..runners.convert import short
from ..settings import Settings
from .conversation import Conversation
from .folder import BACKLOG
from .messages import Failed, Ready, line_of
from .scheduler import Scheduler
from .served_model import ServedModel

logger: logging.Logger = logging.getLogger(__name__)

#: The part of ``tf_startup_timeout`` that warming up all models of a predictor may take.
_WARMING_UP = 0.25


@dataclass(frozen=True)
class Job:
    """What one predictor process is told when it starts."""

    index: int
    models: tuple[ModelPath, ...]
    packs: tuple[tuple[str, str], ...]
    contents: tuple[tuple[str, Content], ...]
    settings: Settings
    intra_op: int
    inter_op: int
    #: The folder of sockets, removed by this process if worker main is gone, and so is the one of the forkserver.
    folder: str
    parent: int
    #: When worker main was started, which tells it from a later process of its number.
    parent_started: str
    #: Makes known what a fork of worker main would inherit: the app's modules, where the log goes.
    prepare: Callable[[], Any] | None = None
    #: Where `multiprocessing` keeps worker main's temporary files.
    temporary: str = field(default_factory=multiprocessing.util.get_temp_dir)
    #: The environment of worker main, which may have changed since the forkserver was started.
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))


# -- the process ---------------------------------------------------------------


def main(job: Job, listener: socket, link: Connection) -> None:
    """Load, say so over ``link``, and predict until killed; the program of the process.

    Writes to ``link`` one line, `messages.Ready` or `messages.Failed`.
    """
    # It ends when worker main says so or is gone: children need it until their last task is done.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)
    os.environ.clear()
    os.environ.update(job.environ)
    runtimes.limit_threads(intra_op=job.intra_op, inter_op=job.inter_op, explicit=True)
    _tensorflow.threads_per_session()
    try:
        asyncio.run(_serve(job, listener, link))
    finally:
        os._exit(1)  # TensorFlow's threads, and what the user's code registered for the end, have no say here


def _say(link: Connection, words: Ready | Failed) -> None:
    with open(link.fileno(), "wb", closefd=False) as file:
        file.write(line_of(words))


async def _serve(job: Job, listener: socket, link: Connection) -> None:
    loop = asyncio.get_running_loop()
    _watch_parent(loop, job)
    computing = ThreadPoolExecutor(job.intra_op, "compute")
    try:
        models = await loop.run_in_executor(computing, _load, job, computing)
    except Exception as exc:  # anything at all may come out of the user's file or function
        reason = str(exc) if isinstance(exc, TFPoolError) else f"{type(exc).__name__}: {short(exc)}"
        _say(link, Failed(reason))
        return
    processes.keep_what_is_freed()  # not what loading took
    scheduler = Scheduler(models, job.settings, computing, threads=job.intra_op, folder=job.folder, index=job.index)
    listener.setblocking(False)
    await loop.create_unix_server(
        lambda: Conversation(scheduler, job.index, job.settings.max_request_bytes), sock=listener, backlog=BACKLOG
    )
    _watch_itself(loop, job, scheduler)
    _say(link, Ready({name: model.facts() for name, model in models.items()}))
    await loop.create_future()  # for ever


def _load(job: Job, computing: ThreadPoolExecutor) -> dict[str, ServedModel]:
    """Load and warm up all models, in a thread of ``computing``.

    Raises:
        ModelLoadError: of the first that fails.
    """
    if job.prepare is not None:
        job.prepare()
    processes.say_what_is_gone(runtimes.names_gone(), installed.other_backend() or "TensorFlow")
    _start_threads(computing, job.intra_op)
    models = Models(job.models, safe_mode=job.settings.safe_mode, packs=dict(job.packs), contents=dict(job.contents))
    served = {}
    budget = _WARMING_UP * job.settings.startup_timeout / len(job.models)
    for model in job.models:
        started = time.monotonic()
        lazy = models.find(model.name)
        size = model.max_batch_size or job.settings.max_batch_size
        one = ServedModel(lazy.load(), size, job.intra_op, model.batch)
        one.warm_up(computing, budget)
        served[model.name] = one
        logger.log(
            logging.WARNING if one.alone and not one.alone.is_known else logging.INFO,
            "predictor %d (pid %d): model %r from %r, loaded in %.2f s, warm after %.2f s%s; %s",
            job.index,
            os.getpid(),
            model.name,
            model.path,
            lazy.load_time,
            time.monotonic() - started,
            ", frozen" if one.is_frozen else "",
            _batches_of(one),
        )
    return served


def _start_threads(computing: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of ``computing`` now, of which this is one; later the system may not give them.

    Raises:
        RuntimeError: it does not give them now.
    """
    all_there = threading.Barrier(count)
    for _ in range(count - 1):
        computing.submit(all_there.wait)
    all_there.wait()


def _batches_of(model: ServedModel) -> str:
    if model.alone:
        return f"requests are not batched: {model.why_alone()}"
    at_a_time = f", {model.parallel} at a time" if model.parallel > 1 else ""
    return f"batches of up to {model.max_size} row{'s' * (model.max_size > 1)}{at_a_time}"


def started_at(pid: int) -> str:
    """When a process was started, in words of the kernel's own; empty where that cannot be read or it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _watch_parent(loop: asyncio.AbstractEventLoop, job: Job) -> None:
    """End this process, and remove the folder of sockets, when worker main is gone."""

    def gone() -> None:
        logger.error("predictor %d (pid %d): worker main is gone", job.index, os.getpid())
        _end_without_parent(job)

    def look() -> None:
        if started_at(job.parent) != job.parent_started:
            gone()
        loop.call_later(1.0, look)

    with contextlib.suppress(OSError):  # Linux before 5.3, or it is gone, which `look` sees
        loop.add_reader(os.pidfd_open(job.parent), gone)
    look()


def _end_without_parent(job: Job) -> NoReturn:
    for folder in (job.folder, job.temporary):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _watch_itself(loop: asyncio.AbstractEventLoop, job: Job, scheduler: Scheduler) -> None:
    """End this process when a batch takes longer than anybody waits for it, or when the loop hangs."""
    limit = job.settings.response_timeout + GRACE
    if late := scheduler.overdue(limit):
        logger.critical(
            "predictor %d (pid %d): a batch of %d rows is not done after %g s; ending, see stderr for where it was",
            job.index,
            os.getpid(),
            late.rows,
            limit,
        )
        os.abort()
    # By a thread that needs neither this loop nor the GIL.
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
    loop.call_later(min(1.0, limit / 4), _watch_itself, loop, job, scheduler)
