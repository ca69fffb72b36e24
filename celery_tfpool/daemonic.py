"""Start processes from a daemonic one, as a worker is that somebody starts with `multiprocessing`.

`multiprocessing` forbids it, so that no grandchild is left behind; billiard,
whose children Celery's are, does not.  Whoever starts one here ends it himself.

Private names used, because there is no public way: ``_config`` of a process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator


@contextlib.contextmanager
def allowed_to_start() -> Iterator[None]:
    """Let this process start others, daemonic or not."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon
