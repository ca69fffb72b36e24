"""One model in a predictor: which requests may share a call of it, and that call.

Rows of different tasks share a call only where that is known to be harmless
(`row_check`).  All other requests are computed one by one, as Keras would.

Knows nothing of sockets, or of who asks and when.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runners import compare
from ..runners.convert import concatenate, short
from ..runners.protocol import BATCH_SIZE, CannotPack, Compiled, Runner, count_rows
from ..runners.spec import Port
from ..runners.structure import CannotEncode
from ..runners.subclassed import FreeRunner
from . import freezing, row_check
from .batching import Part
from .row_check import Reason

logger = logging.getLogger(__name__)

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
#: Calls of one row that a trial, or to freeze a model, takes as long as.
_TRIAL, _FREEZING, _TIMING = 6, 20, 5


#: How to let requests of a model share a call all the same.
_ALLOW = '. To batch them all the same, set "batch": True of this model in tf_model_path'


class NotByRows(Exception):
    """The outputs of a batch do not have a row for each of its rows."""


class Abandoned(Exception):
    """Nobody waits for the outputs any more."""


@dataclass(eq=False)
class Call:
    """One request, ready to be computed: its values, and with whom it may share a batch."""

    model: ServedModel
    compiled: Compiled
    values: list[Any]
    rows: int
    #: Requests with equal keys may share a batch; None: this one goes alone.
    key: Hashable | None
    #: Rows of one call of it at most; None: all.
    batch_size: int | None
    #: Whether nothing else may be computed between its parts, or it has none.
    is_whole: bool = False
    is_wanted: Callable[[], bool] = lambda: True

    @property
    def is_quick(self) -> bool:
        return self.model.is_quick and self.key is not None

    @property
    def parallel(self) -> int:
        """How many such calls may be computed at a time."""
        return self.model.parallel if self.key is not None else 1


class ServedModel:
    """A loaded model that predicts for several processes.

    Args:
        max_size: rows per batch; 1: each request is computed alone.
        threads: how many threads TensorFlow may use, within one call or by as many calls at a time.
        batch: whether requests share a call: True, False, or "auto", where that is known to be harmless.
    """

    def __init__(self, runner: Runner, max_size: int, threads: int = 1, batch: bool | str = "auto") -> None:
        self.runner, self.max_size, self._threads, self._batch = runner, max_size, threads, batch
        #: Rows that count as one batch where it is said how many batches may wait: as set, whatever pays.
        self.rows_that_count = max_size
        self.name = runner.name
        self.only_here = runner.only_here() or _unsendable(runner)
        #: Why requests are computed alone; and what came of a trial that failed.
        self.alone: Reason | None = Reason.SIZE if max_size == 1 else Reason.REFUSED if batch is False else None
        self.detail = ""
        self.is_frozen = False
        #: Whether each call is sure to be over in a moment.
        self.is_quick = False
        self._compiled = runner.compiled() if runner.inputs and not self.only_here else None
        #: Of a model that does not say what it takes: each trace that was looked at, and why it goes alone.
        self._traces: dict[int, tuple[Compiled, Reason | None]] = {}
        #: The same in one thread, where each thread computes batches of its own.
        self.in_one_thread: Compiled | None = None
        self._until = math.inf

    @property
    def parallel(self) -> int:
        """How many batches may be computed at a time."""
        return self._threads if self.in_one_thread is not None else 1

    def warm_up(self, computing: Executor | None = None, budget: float = math.inf) -> None:
        """Choose the fastest call, see whether rows may be batched, and call with the sizes that will come.

        Args:
            computing: has the other threads that will compute, if there are any; this is one of them.
            budget: seconds that it may take; what is not known by then is not tried.
        """
        self._until = time.monotonic() + budget
        if self.only_here or self._compiled is None:
            if not self.only_here and self.alone is None and self._batch == "auto":
                self.alone = Reason.NOT_TRIED
            return
        of_graph = row_check.of_graph(self._compiled, self.runner.inputs)
        self.alone = self.alone or self._unless_allowed(of_graph)
        if of_graph is Reason.STATE:
            return  # each call moves it, and the first is to be that of the first request
        seconds = self._first_call()
        if self.alone is None and self._batch == "auto":
            self.alone = self._tried(seconds)
        if seconds is not None and self._has_time(_FREEZING * seconds):
            self._tune(self._freeze(), computing)

    def _unless_allowed(self, reason: Reason | None) -> Reason | None:
        """``reason``, unless ``batch = True`` makes it void."""
        return None if self._batch is True and reason and not reason.is_absolute else reason

    def _has_time(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self._until

    def _first_call(self) -> float | None:
        """Predict one row of zeros: seconds of a second call, or None where that fails."""
        assert self._compiled is not None
        try:
            zeros, seconds = self._zeros(1), 0.0
            for _ in range(2):
                started = time.perf_counter()
                self._compiled(*zeros)
                seconds = time.perf_counter() - started
                if not self._has_time(seconds):
                    break
        except Exception as exc:  # zeros are not for every model
            logger.warning(
                "model %r: predicting zeros to warm up failed: %s: %s", self.name, type(exc).__name__, short(exc)
            )
            return None
        return seconds

    def _tried(self, seconds: float | None) -> Reason | None:
        """What a trial with noise says, where one call takes so many seconds."""
        assert self._compiled is not None
        reason: Reason | None = Reason.NO_NOISE
        for scales in row_check.SCALES:
            values = row_check.noise(self.runner.inputs, scales)
            if values is None or not self._has_time(_TRIAL * (seconds or 0.0)):
                return Reason.NO_NOISE if values is None else Reason.NO_TIME
            reason = self._trial(self._compiled, values)
            if reason is not Reason.TRIAL_FAILED:
                break
        return reason

    def _trial(self, compiled: Compiled, values: list[Any]) -> Reason | None:
        try:
            return row_check.of_trial(compiled, values)
        except Exception as exc:  # the values are not for every model
            self.detail = f"{type(exc).__name__}: {short(exc)}"
            return Reason.TRIAL_FAILED

    def _tune(self, frozen: freezing.Frozen | None, computing: Executor | None) -> None:
        try:
            self._hurry()
            if self.alone:
                for size in (1, BATCH_SIZE):
                    if self._has_time(size * freezing.fastest(self._call, self._zeros(1))):
                        self._call(*self._zeros(size))
                return
            self.max_size, seconds = self._best_size(lambda size: freezing.fastest(self._call, self._zeros(size)))
            if frozen is not None and computing is not None and self._threads > 1 and not self.is_quick:
                self._divide(frozen, self._call, seconds, computing)
        except Exception as exc:  # some sizes are not for every model
            logger.warning("model %r: warming up failed: %s: %s", self.name, type(exc).__name__, short(exc))

    @property
    def _call(self) -> Compiled:
        assert self._compiled is not None
        return self._compiled

    def why_alone(self) -> str:
        """Why requests are not batched, and how to allow it, for the log; empty when they are."""
        if self.alone is None:
            return ""
        detail = f" ({self.detail})" if self.detail else ""
        allow = "" if self.alone.is_absolute or self.alone is Reason.REFUSED else _ALLOW
        return f"{self.alone.value}{detail}{allow}"

    def _freeze(self) -> freezing.Frozen | None:
        """Call the frozen graph, which is returned, if there is one and it is not slower."""
        plain = self._call
        try:
            if (frozen := freezing.frozen(self.runner)) is not None:
                call, values = frozen.call(self._threads), row_check.noise(self.runner.inputs, row_check.SCALES[-1])
                if values and row_check.agree(plain, call, values, compare.precision_of(plain)):
                    fastest = freezing.faster(plain, call, self._zeros(min(_FEW, self.max_size)))
                    self._compiled, self.is_frozen = fastest, fastest is call
        except Exception as exc:  # an optimisation that fails costs its gain
            logger.warning("model %r cannot be frozen: %s: %s", self.name, type(exc).__name__, short(exc))
        return frozen if self.is_frozen else None

    def _hurry(self) -> None:
        """See whether calls of whatever comes are quick."""
        assert self._compiled is not None
        whatever_comes = all(None not in port.shape[1:] for port in self.runner.inputs)
        if self.alone or not whatever_comes or self._compiled.operations() & _AS_LONG_AS_IT_LIKES:
            return
        # From small to large: 32 rows of a large model take seconds.
        sizes = (1, self.max_size)
        self.is_quick = all(freezing.fastest(self._compiled, self._zeros(size)) < _QUICK for size in sizes)

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
            if not self._has_time(2 * _TIMING * seconds):
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
        if not self._has_time(2 * _FREEZING * seconds * self.max_size):
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
        return [_repeated(port.zeros(), port, rows) for port in self.runner.inputs]

    def facts(self) -> dict[str, Any]:
        """What whoever asks has to know; JSON-friendly."""
        import keras

        return {
            "only_here": self.only_here,
            "inputs": None if self.only_here or not self.runner.inputs else self.runner.inputs_to_json(),
            "floatx": keras.config.floatx(),
            "alone": self.alone.value if self.alone else "",
            "frozen": self.is_frozen,
            "packed": self.runner.pack_folder is not None,
            "max_batch_size": self.max_size,
            "parallel": self.parallel,
        }

    def prepare(self, x: Any, batch_size: int | None, *, alone: bool = False) -> Call | None:
        """Check a request and see with whom it may share a batch; None where that takes long: see `prepare_slowly`.

        Args:
            x: the values in the order of the inputs; for a model that does
                not say what inputs it takes, whatever its call() takes.
            alone: whether it must go alone in any case.

        Raises:
            InvalidInputError: ``x`` does not fit.
        """
        with self.runner.refusal():
            if self._compiled is not None:
                compiled, reason = self._compiled, self.alone
                values = self.runner.fit_flat(x)
            else:
                traced = self.runner.traced(x) if isinstance(self.runner, FreeRunner) else None
                if traced is None or id(traced[0]) not in self._traces:
                    return None
                compiled, values = traced
                reason = self._traces[id(compiled)][1]
            return self._call_of(compiled, values, batch_size, reason, alone)

    def prepare_slowly(self, x: Any, batch_size: int | None, *, alone: bool = False) -> Call:
        """As `prepare`, for a model that does not say what it takes: trace it, and look at the trace.

        Raises:
            InvalidInputError: ``x`` does not fit.
            Exception: whatever else the model's own code raises.
        """
        with self.runner.refusal():
            compiled, values = self.runner.prepare(x)
            if id(compiled) not in self._traces:
                self._traces[id(compiled)] = compiled, self._look_at(compiled, values)
            return self._call_of(compiled, values, batch_size, self._traces[id(compiled)][1], alone)

    def _look_at(self, compiled: Compiled, values: list[Any]) -> Reason | None:
        """Why requests like this one may not share a call of ``compiled``."""
        if self.alone in (Reason.SIZE, Reason.REFUSED):
            return self.alone
        reason = self._unless_allowed(row_check.of_graph(compiled, ()))
        if reason is None and self._batch == "auto":
            rows = row_check.like(values)
            reason = Reason.NO_NOISE if rows is None else self._trial(compiled, rows)
        self.alone = reason
        logger.log(
            logging.WARNING if reason and not reason.is_known else logging.INFO,
            "model %r: after its first request: %s",
            self.name,
            f"requests are not batched: {self.why_alone()}" if reason else "requests like it are batched",
        )
        return reason

    def has_no_rows(self, compiled: Compiled) -> None:
        """A batch of ``compiled`` has shown that its outputs cannot be divided: from now on all go alone."""
        self.alone = Reason.NO_ROWS
        if id(compiled) in self._traces:
            self._traces[id(compiled)] = compiled, Reason.NO_ROWS
        logger.warning("model %r: requests are not batched from now on: %s", self.name, self.why_alone())

    def _call_of(
        self, compiled: Compiled, values: list[Any], batch_size: int | None, reason: Reason | None, alone: bool
    ) -> Call:
        is_cut = self.runner.has_rows or batch_size is not None
        if is_cut and batch_size is None:
            batch_size = BATCH_SIZE
        if is_cut or reason is None:
            rows = count_rows(values)
        else:  # of what, nobody knows
            rows = max((int(value.shape[0]) for value in values if value.shape), default=1)
        key = None
        if reason is None and not alone and rows and (is_cut or rows <= self.max_size):
            key = self.name, id(compiled), tuple((value.dtype, value.shape[1:]) for value in values)
        is_whole = key is None and (reason is Reason.STATE or not is_cut or rows == 0)
        return Call(self, compiled, values, rows, key, batch_size, is_whole)


def _at_once(call: Callable[[], Any], threads: int, computing: Executor) -> float:
    """Seconds of one call where this thread and the others of ``computing`` call at the same time."""
    barrier = threading.Barrier(threads, timeout=_PATIENCE)

    def several() -> float:
        call()  # what a thread's first call makes, it keeps
        barrier.wait()
        started = time.perf_counter()
        for _ in range(_FEW):
            call()
        return (time.perf_counter() - started) / _FEW

    others = [computing.submit(several) for _ in range(threads - 1)]
    return max([several(), *(other.result() for other in others)])


# -- computing -----------------------------------------------------------------


def run(parts: Sequence[Part[Call]], *, in_one_thread: bool = False) -> list[Any]:
    """The outputs of each part, computed in one call, by one thread if that was found to be good.

    Raises:
        NotByRows: the outputs cannot be divided among the parts.
        Exception: whatever the model raises.
    """
    first = parts[0].request
    if first.is_whole:
        return [_whole(first)]
    values = [
        _joined([part.request.values[number][part.start : part.stop] for part in parts])
        for number in range(len(first.values))
    ]
    compiled = (first.model.in_one_thread if in_one_thread else None) or first.compiled
    outputs = compiled(*values)
    if first.key is None:
        return [outputs]
    if len(parts) == 1:
        _check_rows(outputs, parts[0].rows)
        return [outputs]
    return list(_divided(outputs, [part.rows for part in parts]))


def alone(part: Part[Call]) -> Any:
    """The outputs of one part, computed without the others of its batch."""
    call = part.request
    return _whole(call) if call.is_whole else call.compiled(*(value[part.start : part.stop] for value in call.values))


def _whole(call: Call) -> Any:
    """The outputs of all rows, in one go.

    Raises:
        Abandoned: nobody waits for them any more.
    """
    if call.batch_size is None:
        return call.compiled.whole(call.values)
    if call.rows == 0:
        return call.compiled.of_no_rows(call.values)
    size = call.batch_size
    pieces = []
    for start in range(0, call.rows, size):
        if not call.is_wanted():
            raise Abandoned
        pieces.append(call.compiled(*(value[start : start + size] for value in call.values)))
    return pieces[0] if len(pieces) == 1 else concatenate(pieces)


def _joined(pieces: list[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _check_rows(outputs: Any, rows: int) -> None:
    import keras

    for leaf in keras.tree.flatten(outputs):
        if not isinstance(leaf, np.ndarray) or leaf.shape[:1] != (rows,):
            raise NotByRows


def _divided(outputs: Any, counts: list[int]) -> Iterator[Any]:
    import keras

    _check_rows(outputs, sum(counts))
    start = 0
    for count in counts:
        yield keras.tree.map_structure(lambda leaf, a=start, b=start + count: leaf[a:b], outputs)
        start += count


# -- inputs and outputs --------------------------------------------------------


def _repeated(row: Any, port: Port, rows: int) -> Any:
    fixed = bool(port.shape) and port.shape[0] is not None
    return row if fixed else np.repeat(row, rows, axis=0)


def _unsendable(runner: Runner) -> str:
    """Why inputs or outputs of this model cannot be sent to another process; empty when they can."""
    import keras

    try:
        if runner.inputs:
            runner.inputs_to_json()
            known = all(None not in port.shape[1:] for port in runner.inputs)
            for leaf in keras.tree.flatten(runner.compiled().outputs):
                if type(leaf).__name__ in ("RaggedTensor", "SparseTensor", "RaggedTensorSpec", "SparseTensorSpec"):
                    return "its outputs are ragged or sparse"
                if known and leaf.shape.rank and None in leaf.shape[1:]:  # as wide as the longest text, say
                    return "the size of its outputs depends on what is in its inputs"
    except (CannotEncode, CannotPack) as exc:
        return f"its inputs {exc}" if isinstance(exc, CannotEncode) else str(exc)
    return ""
