"""How busy each predictor is: a file of numbers that all processes of a worker map.

Each predictor writes its own number, and `supervisor` that of a dead one, so
no lock is needed; whoever asks takes the smallest, which may be a moment old.
"""

from __future__ import annotations

import mmap
import os

#: Of a predictor that is not ready.
NOT_READY = 2**31 - 1
_FILE = "load"


def make(folder: str, count: int) -> None:
    """Make the file for so many predictors, none of them ready."""
    with open(os.path.join(folder, _FILE), "wb") as file:
        file.write(NOT_READY.to_bytes(4, "little") * count)


class LoadBoard:
    """Rows that wait or are being computed, by predictor."""

    def __init__(self, folder: str) -> None:
        with open(os.path.join(folder, _FILE), "r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("i")
        # Processes that find all idle at the same moment should not all ask the same one.
        self._offset = os.getpid()

    def write(self, index: int, rows: int) -> None:
        self._numbers[index] = rows

    def least_busy(self, indices: tuple[int, ...]) -> int:
        """Of these predictors the one with the fewest rows; of several the first for this process, which differs."""
        count = len(self._numbers)
        return min(indices, key=lambda index: (self._numbers[index], (index - self._offset) % count))
