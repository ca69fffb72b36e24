"""What a predictor has done, kept for all processes of the worker to see."""

from __future__ import annotations

from dataclasses import dataclass

from .busyness import LoadBoard


@dataclass
class Statistics:
    """What a predictor has done since the worker started, in Triton's words; seconds are sums."""

    request_success: int = 0
    request_failure: int = 0
    #: Rows, and calls that computed them.
    inference_count: int = 0
    execution_count: int = 0
    #: Requests that have waited, and how long.
    queue_count: int = 0
    queue_duration: float = 0.0
    compute_duration: float = 0.0

    @classmethod
    def of_board(cls, board: LoadBoard, index: int) -> Statistics:
        """Of predictor ``index`` and all that it has replaced."""
        statistics, numbers = cls(), board.counters(index)
        for (name, default), number in zip(list(vars(statistics).items()), numbers, strict=False):
            setattr(statistics, name, type(default)(number))
        return statistics

    def count_start(self, waited: float) -> None:
        """The first part of a request is computed, for which it has waited so many seconds."""
        self.queue_count += 1
        self.queue_duration += waited

    def count_batch(self, seconds: float, executions: int, inferences: int) -> None:
        """A batch took so many seconds, calls and rows."""
        self.compute_duration += seconds
        self.execution_count += executions
        self.inference_count += inferences

    def __str__(self) -> str:
        return (
            f"{self.request_success + self.request_failure} requests, {self.request_failure} of them failed; "
            f"{self.inference_count} rows in {self.execution_count} batches "
            f"({self.inference_count / max(1, self.execution_count):.1f} rows a batch); "
            f"a request waited {1e3 * self.queue_duration / max(1, self.queue_count):.1f} ms, "
            f"a batch took {1e3 * self.compute_duration / max(1, self.execution_count):.1f} ms"
        )


@dataclass(frozen=True)
class Figures:
    """Of one predictor at one moment, without asking it."""

    index: int
    is_ready: bool
    restarts: int
    #: Rows that wait or are being computed.
    pending_rows: int
    #: Of it and all that it has replaced.
    statistics: Statistics
