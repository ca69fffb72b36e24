"""Put another pool in place of Celery's prefork pool, for a whole test run.

Which one, as "module:class", stands in the environment variable
CONFORMANCE_POOL; without it nothing is changed.  An environment variable,
because it reaches the workers that tests start as programs of their own: there
`sitecustomize` reads it.  Celery's tests themselves stay as they are, and so
does the list of pool names, which one of them compares.
"""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "CONFORMANCE_POOL"


def aliases() -> None:
    """Every worker of this process that asks for prefork by name gets the other pool."""
    pool = os.environ.get(VARIABLE)
    if pool:
        from celery import concurrency

        # Names only: the pool is not imported before a worker needs it.
        concurrency.ALIASES["prefork"] = concurrency.ALIASES["processes"] = pool


def task_pool() -> None:
    """Every test of this process that subclasses or starts prefork's TaskPool gets the other pool.

    This also outlives the reload of celery.concurrency in t/unit, which
    restores the aliases: they lead to the class that is replaced here.
    """
    pool = os.environ.get(VARIABLE)
    if pool:
        from celery.concurrency import get_implementation, prefork

        prefork.TaskPool = get_implementation(pool)


def pytest_load_initial_conftests(early_config: Any, parser: Any, args: list[str]) -> None:
    """Substitute before the first conftest.py can import a pool."""
    aliases()
    task_pool()
