"""Kernel locks on files and folders, which end with the process that has them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def is_locked(folder: Path) -> bool:
    """Whether a process uses it."""
    try:
        with open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def open_locked(folder: Path, kind: int) -> Iterator[None]:
    """Open and locked (``fcntl.LOCK_…``) until the end of the block.

    Raises:
        OSError: it is not there, or locked and ``kind`` says not to wait.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Exclusive among all processes.  The file is gone at the end: whoever has waited for it makes a new one."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            if not is_at(descriptor, path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def is_at(descriptor: int, path: str | Path) -> bool:
    """Whether an open file or folder is the one at ``path``, which may have been removed or replaced meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
