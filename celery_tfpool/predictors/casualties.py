"""Which requests a process had in hand when it died: a file that outlives it.

A predictor notes the number of each request while it prepares, computes or
answers it, in memory that it maps from a file of its own, so that a note costs
nothing and is there after SIGKILL.  Whoever has asked reads there whether its
own request may have been the cause.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

#: So many files of dead processes are kept: who asks looks within moments.
_KEPT = 8


def _path(folder: str, index: int, pid: int) -> str:
    return os.path.join(folder, f"computing-{index}-{pid}")


class Computing:
    """The notes of this process, predictor ``index``; at most ``capacity`` at a time."""

    def __init__(self, folder: str, index: int, capacity: int) -> None:
        _remove_old(folder, index)
        with open(_path(folder, index, os.getpid()), "w+b") as file:
            file.truncate(8 * capacity)
            self._numbers = memoryview(mmap.mmap(file.fileno(), 8 * capacity)).cast("Q")
        self._free = list(range(capacity))

    def note(self, number: int) -> int:
        """From now on ``number`` is computed, until `erase` of what this returns."""
        place = self._free.pop()
        self._numbers[place] = number
        return place

    def erase(self, place: int) -> None:
        """The request that `note` gave this place is computed no more."""
        self._numbers[place] = 0
        self._free.append(place)

    @contextlib.contextmanager
    def noted(self, number: int) -> Iterator[None]:
        """`note` and `erase`."""
        place = self.note(number)
        try:
            yield
        finally:
            self.erase(place)


def was_computing(folder: str, index: int, pid: int, number: int) -> bool:
    """Whether process ``pid`` of predictor ``index`` was computing request ``number`` when it ended."""
    try:
        with open(_path(folder, index, pid), "rb") as file:
            return number in memoryview(file.read()).cast("Q")
    except FileNotFoundError:  # it ended before it computed anything
        return False


def _remove_old(folder: str, index: int) -> None:
    files = sorted(Path(folder).glob(f"computing-{index}-*"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-_KEPT]:
        with contextlib.suppress(OSError):
            file.unlink()
