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
import weakref
from pathlib import Path

_PREFIX = "celery_tfpool-"
#: Connections that may wait to be accepted, while a predictor is being replaced.
BACKLOG = 1024
#: Seconds until a folder without a lock is that of a process that was killed, and not one that is just being made.
_YOUNG = 60


class Folder:
    """The folder, its lock, and the sockets that listen in it; of this process, and not of its forks.

    Raises:
        OSError: there is no place for it.
    """

    def __init__(self) -> None:
        path, self._lock = make()
        self.path: str = path
        self._sockets: list[socket.socket] = []
        _folders.add(self)

    def listening(self, path: str) -> socket.socket:
        """A new socket that listens at ``path``.

        Raises:
            OSError: it cannot be made there.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets.append(listener)
        listener.bind(path)
        listener.listen(BACKLOG)
        return listener

    def remove(self) -> None:
        """End all, and what is on disk."""
        self.let_go()
        shutil.rmtree(self.path, ignore_errors=True)

    def let_go(self) -> None:
        """Close all that this process has open of it: in a fork, which would keep the sockets alive, and the lock."""
        _folders.discard(self)
        for listener in self._sockets:
            listener.close()
        os.close(self._lock)


#: Of this process.
_folders: weakref.WeakSet[Folder] = weakref.WeakSet()


def _let_go_in_fork() -> None:
    for folder in list(_folders):
        folder.let_go()


os.register_at_fork(after_in_child=_let_go_in_fork)


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
