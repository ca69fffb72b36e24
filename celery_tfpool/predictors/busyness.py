"""How busy each predictor is and what it has done: a file of numbers that all processes of a worker map.

Each predictor writes its own numbers, and `supervisor` that of a dead one, so
no lock is needed; whoever asks takes the smallest load, which may be a moment
old.  What a predictor has done is still there when it has been killed, and its
replacement goes on counting from there.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

#: Load of a predictor that is not ready.
NOT_READY = 2**31 - 1
#: Counters of one predictor.
COUNTERS = 8
_FILE = "load"


def make(folder: str, count: int) -> None:
    """Make the file for so many predictors, none of them ready, of which none has done anything."""
    with open(os.path.join(folder, _FILE), "wb") as file:
        file.write(bytes(8 * COUNTERS * count) + NOT_READY.to_bytes(4, "little") * count)


class LoadBoard:
    """Of each predictor its load, rows that wait or are being computed, and its counters."""

    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, _FILE), "r+b") as file:
            everything = memoryview(mmap.mmap(file.fileno(), 0))
        count = len(everything) // (8 * COUNTERS + 4)
        self._counters = everything[: 8 * COUNTERS * count].cast("d")
        self._loads = everything[8 * COUNTERS * count :].cast("i")
        # Processes that find all idle at the same moment should not all ask the same one.
        self._offset = os.getpid()

    def write(self, index: int, rows: int) -> None:
        """Predictor ``index`` has so many rows to compute."""
        self._loads[index] = min(rows, NOT_READY - 1)

    def rows(self, index: int) -> int:
        """What `write` said last; 0 of one that is not ready."""
        return self._loads[index] if self._loads[index] != NOT_READY else 0

    def not_ready(self, index: int) -> None:
        """Predictor ``index`` is not there."""
        self._loads[index] = NOT_READY

    def least_busy(self, indices: tuple[int, ...]) -> int:
        """Of these predictors the one with the fewest rows; of several the first for this process, which differs."""
        count = len(self._loads)
        return min(indices, key=lambda index: (self._loads[index], (index - self._offset) % count))

    def count(self, index: int, counters: Sequence[float]) -> None:
        """Write what predictor ``index`` has done, `COUNTERS` numbers at most."""
        for number, value in enumerate(counters, COUNTERS * index):
            self._counters[number] = value

    def counters(self, index: int) -> list[float]:
        """What `count` wrote last, at first zeros."""
        return list(self._counters[COUNTERS * index : COUNTERS * (index + 1)])
