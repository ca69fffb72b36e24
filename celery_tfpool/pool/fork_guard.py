"""The fork guard: what to do when TensorFlow, or what Keras runs on, already runs in worker main.

A forked child of such a process waits for ever in its first ``predict``.  So
children are spawned where Celery can (5.7 and newer), and otherwise nothing
is started; either way the reader learns which line did it.
"""

from __future__ import annotations

import logging

import celery
from celery.utils.log import get_logger

from ..errors import ForkGuardError
from ..runners import runtimes

logger: logging.Logger = get_logger(__name__)


def fork_decision(*, evidence: str, fork_guard: str, can_spawn: bool) -> str:
    """Say "fork", "spawn", or "refuse": how to start children of a process with this ``evidence`` of a runtime."""
    if not evidence:
        return "fork"
    return "spawn" if fork_guard == "spawn" and can_spawn else "refuse"


def can_spawn() -> bool:
    """Whether this Celery starts prefork children with spawn (5.7 and newer)."""
    return bool(celery.VERSION >= (5, 7))


def start_method(fork_guard: str, *, can_spawn: bool, why_not: str) -> str:
    """Say "fork" or "spawn", for the next child of this process; says so when it is spawn for such a runtime's sake.

    Args:
        fork_guard: the setting ``tf_fork_guard``.
        can_spawn: whether spawn is possible here and now.
        why_not: why it is not, for the message.

    Raises:
        ForkGuardError: neither is possible, or ``fork_guard`` forbids spawn.
    """
    running = runtimes.running()
    if running is None:
        return "fork"
    decision = fork_decision(evidence=running.evidence(), fork_guard=fork_guard, can_spawn=can_spawn)
    if decision == "refuse":
        reason = 'tf_fork_guard is "error", so nothing is started' if fork_guard == "error" else why_not
        raise ForkGuardError(running.culprit(), reason, running.title)
    if decision == "spawn":
        logger.warning(
            "%s was initialised in the worker's main process by %s. "
            "It does not survive fork(): predict would wait for ever in every child. "
            "Children are spawned instead: each imports the app and %s anew, which takes seconds and memory. "
            "To fork again, load the model in the task: set tf_model_path and call celery_tfpool.get_model() there",
            running.title,
            running.culprit(),
            running.title,
        )
    return decision
