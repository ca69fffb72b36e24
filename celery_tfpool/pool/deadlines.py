"""When the task that runs in this thread must be done: its time limits and its ``expires``."""

from __future__ import annotations

import time
from typing import Any

from celery import current_task, signals
from celery.utils.time import maybe_iso8601

from ..predictors.client import Limits

#: When each task that runs here was started, by ``time.monotonic``.
_started: dict[str, float] = {}


def follow_tasks() -> None:
    """From now on know when each task of this process was started."""
    signals.task_prerun.connect(_on_start, weak=False, dispatch_uid=__name__)
    signals.task_postrun.connect(_on_end, weak=False, dispatch_uid=__name__)


def _on_start(task_id: str, **_: Any) -> None:
    _started[task_id] = time.monotonic()


def _on_end(task_id: str, **_: Any) -> None:
    _started.pop(task_id, None)


def of_current_task() -> Limits:
    """The limits of the task that runs in this thread.

    One that has passed already says nothing: the task runs all the same.
    """
    if not current_task or current_task.request.called_directly:
        return Limits()
    now = time.monotonic()
    hard, soft = current_task.request.timelimit or (None, None)
    started = _started.get(current_task.request.id, now)
    ends = [
        started + seconds
        for seconds in (soft or current_task.soft_time_limit, hard or current_task.time_limit)
        if seconds
    ]
    expires = maybe_iso8601(current_task.request.expires)
    expired = now + expires.timestamp() - time.time() if expires else 0.0
    return Limits(min((end for end in ends if end > now), default=None), expired if expired > now else None)
