"""The folder of sockets and notes of one worker's predictors: made, locked, and removed when its maker was killed.

Not in ``XDG_RUNTIME_DIR``, which is removed when the user logs out while the
worker lives on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

_PREFIX = "celery_tfpool-"
#: Connections that may wait to be accepted, while a predictor is being replaced.
_BACKLOG = 1024
#: Seconds until a folder without a lock is that of a process that was killed, and not one that is just being made.
_YOUNG = 60


def make() -> tuple[str, int]:
    """A new folder that only its owner can enter, and the descriptor that locks it; removes those of killed workers.

    Raises:
        OSError: there is no place for one.
    """
    parent = tempfile.gettempdir()
    if len(parent) > 60 or not os.access(parent, os.W_OK):  # a socket's path ends at 107 characters
        parent = "/tmp"
    for old in Path(parent).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if old.stat().st_uid == os.getuid() and _is_abandoned(old):
                shutil.rmtree(old, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return folder, descriptor


def _is_abandoned(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return time.time() - folder.stat().st_mtime > _YOUNG


def listening(path: str) -> socket.socket:
    """A new socket that listens at ``path``.

    Raises:
        OSError: it cannot be made there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
