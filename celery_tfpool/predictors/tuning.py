"""Which call of a model is fastest, how many rows a batch should have, and how many batches at a time.

Found out by timing, within a budget; what is not known when it is spent stays as it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor
from typing import Any

from ..runners import compare
from ..runners.convert import short
from ..runners.protocol import BATCH_SIZE, Compiled, Runner
from . import freezing, row_check

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds of a quick call; of one that may be of full size whether that pays or not; of one that is long for a try.
_QUICK, _SHORT, _LONG = 1e-3, 20e-3, 0.5
#: More rows in a call pay where each then takes so much less; where threads have calls of their own, small ones are
#: sooner full.
_PAYS, _PAYS_DIVIDED = 0.95, 0.9
#: Bytes of weights of which a second copy is worth it.
_SMALL = 2**26
#: Seconds until the threads that compute have all started.
_PATIENCE = 60.0
#: Operations that may take as long as they like: Python code, loops and branches.
_AS_LONG_AS_IT_LIKES = {
    *("PyFunc", "PyFuncStateless", "EagerPyFunc"),
    *("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "Switch"),
}

#: Rows on which the plain and the frozen call are compared; calls of a thread that are timed together.
_FEW = 4
#: Calls of one row that freezing, and timing a size, take as long as.
_FREEZING, _TIMING = 20, 5


class Tuning:
    """What is found out about one model.

    Args:
        compiled: its plain call.
        max_size: rows per batch at most.
        threads: how many may compute.
        budget: seconds that there are for all of it, from now on.
    """

    def __init__(self, runner: Runner, compiled: Compiled, max_size: int, threads: int, budget: float) -> None:
        self._runner, self._threads = runner, threads
        self._until = time.monotonic() + budget
        self._is_batched = True
        #: The fastest call; whether it is the frozen one, and sure to be over in a moment.
        self.compiled: Compiled = compiled
        self.is_frozen: bool = False
        self.is_quick: bool = False
        #: Rows per batch from which more do not pay.
        self.max_size: int = max_size
        #: The same call in one thread, where each thread should compute batches of its own.
        self.in_one_thread: Compiled | None = None

    def has_time(self, seconds: float) -> bool:
        """Whether there are so many seconds left."""
        return time.monotonic() + seconds < self._until

    def tune(self, seconds: float, computing: Executor | None, *, is_batched: bool) -> None:
        """Find out, if there is time.

        Args:
            seconds: that a call of one row takes.
            computing: has the other threads that will compute, if there are any.
            is_batched: whether requests share calls; else no size is better than another.
        """
        self._is_batched = is_batched
        if self.has_time(_FREEZING * seconds):
            self._choose(self._freeze(), computing)

    def first_call(self) -> float | None:
        """Predict one row of zeros: seconds of a second call, or None where that fails."""
        try:
            zeros, seconds = self._zeros(1), 0.0
            for _ in range(2):
                started = time.perf_counter()
                self.compiled(*zeros)
                seconds = time.perf_counter() - started
                if not self.has_time(seconds):
                    break
        except Exception as exc:  # zeros are not for every model
            logger.warning(
                "model %r: predicting zeros to warm up failed: %s: %s",
                self._runner.name,
                type(exc).__name__,
                short(exc),
            )
            return None
        return seconds

    def _choose(self, frozen: freezing.Frozen | None, computing: Executor | None) -> None:
        try:
            self._hurry()
            if not self._is_batched:
                for size in (1, BATCH_SIZE):
                    if self.has_time(size * freezing.fastest(self.compiled, self._zeros(1))):
                        self.compiled(*self._zeros(size))
                return
            self.max_size, seconds = self._best_size(lambda size: freezing.fastest(self.compiled, self._zeros(size)))
            if frozen is not None and computing is not None and self._threads > 1 and not self.is_quick:
                self._divide(frozen, self.compiled, seconds, computing)
        except Exception as exc:  # some sizes are not for every model
            logger.warning("model %r: warming up failed: %s: %s", self._runner.name, type(exc).__name__, short(exc))

    def _freeze(self) -> freezing.Frozen | None:
        """Call the frozen graph, which is returned, if there is one and it is not slower."""
        plain = self.compiled
        try:
            if (frozen := freezing.frozen(self._runner)) is not None:
                call, values = frozen.call(self._threads), row_check.noise(self._runner.inputs, row_check.SCALES[-1])
                if values and row_check.agree(plain, call, values, compare.precision_of(plain)):
                    fastest = freezing.faster(plain, call, self._zeros(min(_FEW, self.max_size)))
                    self.compiled, self.is_frozen = fastest, fastest is call
        except Exception as exc:  # an optimisation that fails costs its gain
            logger.warning("model %r cannot be frozen: %s: %s", self._runner.name, type(exc).__name__, short(exc))
        return frozen if self.is_frozen else None

    def _hurry(self) -> None:
        """See whether calls of whatever comes are quick."""
        whatever_comes = all(None not in port.shape[1:] for port in self._runner.inputs)
        if not self._is_batched or not whatever_comes or self.compiled.operations() & _AS_LONG_AS_IT_LIKES:
            return
        # From small to large: 32 rows of a large model take seconds.
        sizes = (1, self.max_size)
        self.is_quick = all(freezing.fastest(self.compiled, self._zeros(size)) < _QUICK for size in sizes)

    def _best_size(self, seconds_of: Callable[[int], float], pays: float = _PAYS) -> tuple[int, float]:
        """How many rows a batch should have, at most `max_size`, and seconds of each row then.

        Tries one row, two, four, …; where more rows only make a call longer, which takes memory, it is fewer.

        Args:
            seconds_of: how long a call with so many rows takes.
            pays: how much less each row must take.
        """
        per_row: dict[int, float] = {}
        size, in_vain = 1, 0
        while True:
            seconds = seconds_of(size)
            better = not per_row or seconds / size < pays * min(per_row.values())
            in_vain = 0 if better else in_vain + 1
            per_row[size] = seconds / size
            if size == self.max_size or (seconds > _SHORT and in_vain == 2) or (seconds > _LONG and in_vain):
                break
            if not self.has_time(2 * _TIMING * seconds):
                break
            size = min(2 * size, self.max_size)
        best = self.max_size
        if seconds > _SHORT:
            for size in [size for size in per_row if per_row[size] * pays**2 <= min(per_row.values())]:
                # Close to the best: which it is must not be a matter of a slow moment.
                per_row[size] = min(per_row[size], seconds_of(size) / size)
            best = min(size for size, one in per_row.items() if one * pays <= min(per_row.values()))
        return best, per_row[best]

    def _divide(self, frozen: freezing.Frozen, compiled: Compiled, seconds: float, computing: Executor) -> None:
        """Let each thread compute a batch of its own, if in all they need no more than ``compiled`` for each row.

        On busy cores they then need less: no thread waits for another within a call.

        Args:
            seconds: of each row in a batch of ``compiled``, as far as is known.
        """
        import tensorflow as tf

        if frozen.size > _SMALL or tf.config.list_logical_devices("GPU"):  # which threads of ours do not make faster
            return
        if not self.has_time(2 * _FREEZING * seconds * self.max_size):
            return
        call = frozen.call(1)

        def seconds_of(size: int) -> float:
            values = self._zeros(size)
            return min(_at_once(lambda: call(*values), self._threads, computing) for _ in range(2))

        size, divided = self._best_size(seconds_of, _PAYS_DIVIDED)
        for _ in range(2):  # in turns: the machine may be slow for a while
            divided = min(divided, seconds_of(size) / size)
            seconds = min(seconds, freezing.fastest(compiled, self._zeros(self.max_size)) / self.max_size)
        if divided / self._threads <= seconds:
            self.in_one_thread, self.max_size = call, size

    def _zeros(self, rows: int) -> list[Any]:
        return [port.zeros(rows) for port in self._runner.inputs]


def _at_once(call: Callable[[], Any], threads: int, computing: Executor) -> float:
    """Seconds of one call where this thread and the others of ``computing`` call at the same time."""
    barrier = threading.Barrier(threads, timeout=_PATIENCE)

    def several() -> float:
        try:
            call()  # what a thread's first call makes, it keeps
        except BaseException:
            barrier.abort()  # nobody is to wait for this thread
            raise
        barrier.wait()
        started = time.perf_counter()
        for _ in range(_FEW):
            call()
        return (time.perf_counter() - started) / _FEW

    others = [computing.submit(several) for _ in range(threads - 1)]
    try:
        own = several()
    finally:
        futures.wait(others)
    return max([own, *(other.result() for other in others)])
