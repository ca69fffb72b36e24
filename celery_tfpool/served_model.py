"""One model in a predictor: which requests may share a call of it, and that call.

Rows of different tasks share a call only where every row's outputs depend on
that row alone.  A model of which that is not so (it keeps a state, has a fixed
number of rows, or looks across its rows) is noticed here, and its requests are
computed one by one, as Keras would.

Knows nothing of sockets, or of who asks and when.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import freezing
from .arrays import CannotEncode
from .batching import Part
from .models import BATCH_SIZE
from .pack_runner import PackRunner
from .ports import Port
from .runner import CannotPack, Compiled, Runner, count_rows
from .values import short

logger = logging.getLogger(__name__)

#: By how much, relative to the largest, outputs of a row may differ when it is computed with others.
_TOLERANCE, _TOLERANCE_16_BIT = 1e-3, 5e-2

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


class NotByRows(Exception):
    """The outputs of a batch do not have a row for each of its rows."""


@dataclass(frozen=True)
class Call:
    """One request, ready to be computed: its values, and with whom it may share a batch."""

    model: ServedModel
    compiled: Compiled
    values: list[Any]
    rows: int
    #: Requests with equal keys may share a batch; None: this one goes alone.
    key: Hashable | None
    batch_size: int

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
    """

    def __init__(self, runner: Runner, max_size: int, threads: int = 1) -> None:
        self.runner, self.max_size, self._threads = runner, max_size, threads
        #: Rows that count as one batch where it is said how many batches may wait: as set, whatever pays.
        self.rows_that_count = max_size
        self.name = runner.name
        self.only_here = runner.only_here() or _unsendable(runner)
        self.alone = "max_batch_size is 1" if max_size == 1 else ""
        self.is_frozen = False
        #: Whether each call is sure to be over in a moment.
        self.is_quick = False
        self._compiled = runner.compiled() if runner.inputs and not self.only_here else None
        #: The same in one thread, where each thread computes batches of its own.
        self.in_one_thread: Compiled | None = None

    @property
    def parallel(self) -> int:
        """How many batches may be computed at a time."""
        return self._threads if self.in_one_thread is not None else 1

    def warm_up(self, computing: Executor | None = None) -> None:
        """Choose the fastest call, see whether rows may be batched, and call with the sizes that will come.

        Args:
            computing: has the other threads that will compute, if there are any; this is one of them.
        """
        if self.only_here or self._compiled is None:
            return
        self.alone = self.alone or _needs_to_be_alone(self._compiled, self.runner.inputs)
        frozen = self._freeze()
        try:
            self._hurry()
            if self.alone:
                for size in (1, BATCH_SIZE):
                    self._compiled(*self._zeros(size))
            else:
                compiled = self._compiled
                self.max_size, seconds = self._best_size(lambda size: freezing.fastest(compiled, self._zeros(size)))
                if frozen is not None and computing is not None and self._threads > 1 and not self.is_quick:
                    self._divide(frozen, compiled, seconds, computing)
        except Exception as exc:  # zeros are not for every model
            logger.warning("model %r: predicting zeros to warm up failed: %s: %s", self.name, type(exc).__name__, exc)
            return
        if not self.alone and not _is_by_rows(self._compiled, self.runner.inputs):
            self.alone = "the outputs of a row depend on the other rows"

    def _freeze(self) -> freezing.Frozen | None:
        """Call the frozen graph, which is returned, if there is one and it is not slower."""
        assert self._compiled is not None
        if self.alone.startswith("it keeps"):  # constants keep none
            return None
        try:
            if (frozen := freezing.frozen(self.runner)) is not None:
                call = frozen.call(self._threads)
                if _agree(self._compiled, call, self.runner.inputs):
                    fastest = freezing.faster(self._compiled, call, self._zeros(min(_FEW, self.max_size)))
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
        return {
            "only_here": self.only_here,
            "inputs": None if self.only_here or not self.runner.inputs else self.runner.inputs_to_json(),
            "alone": self.alone,
            "frozen": self.is_frozen,
            "packed": isinstance(self.runner, PackRunner),
            "max_batch_size": self.max_size,
            "parallel": self.parallel,
        }

    def prepare(self, x: Any, batch_size: int) -> Call:
        """Check a request and see with whom it may share a batch.

        Args:
            x: the values in the order of the inputs; for a model that does
                not say what inputs it takes, whatever its call() takes.

        Raises:
            InvalidInputError: ``x`` does not fit.
        """
        with self.runner.refusal():
            if self._compiled is None:
                compiled, values = self.runner.prepare(x)
            else:
                compiled, values = self._compiled, self.runner.fit_flat(x)
            rows = count_rows(values)
        key = None
        if not self.alone and rows:
            key = self.name, id(compiled), tuple((value.dtype, value.shape[1:]) for value in values)
        return Call(self, compiled, values, rows, key, batch_size)


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
    if first.key is None:
        return [first.compiled.in_batches(first.values, first.rows, first.batch_size)]
    values = [
        _joined([part.request.values[number][part.start : part.stop] for part in parts])
        for number in range(len(first.values))
    ]
    compiled = (first.model.in_one_thread if in_one_thread else None) or first.compiled
    outputs = compiled(*values)
    if len(parts) == 1:
        _check_rows(outputs, parts[0].rows)
        return [outputs]
    return list(_divided(outputs, [part.rows for part in parts]))


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


# -- may rows of different requests share a call? --------------------------------


def _needs_to_be_alone(compiled: Compiled, inputs: list[Port]) -> str:
    """Why requests may not share a call, as far as the graph tells; empty when nothing speaks against it."""
    import keras

    if any(port.shape and port.shape[0] is not None for port in inputs):
        return "it takes a fixed number of rows"
    if any(_writes(operation) for operation in compiled.operations()):
        return "it keeps a state from one call to the next"
    for symbol in keras.tree.flatten(compiled.outputs):
        shape = symbol.shape
        if shape.rank is not None and (shape.rank == 0 or shape[0] is not None):
            return "its outputs do not have a row for each row of its inputs"
    return ""


def _writes(operation: str) -> bool:
    return (
        operation.startswith(("Assign", "ResourceScatter", "ResourceApply"))
        or operation == "ResourceStridedSliceAssign"
    )


def _is_by_rows(compiled: Compiled, inputs: list[Port]) -> bool:
    """Whether three rows that are computed together give what each of them gives alone."""
    import keras

    random = np.random.default_rng(0)
    values = [_noise(port, random) for port in inputs]
    try:
        together = keras.tree.flatten(compiled(*values))
        apart = [keras.tree.flatten(compiled(*(value[row : row + 1] for value in values))) for row in range(3)]
    except Exception as exc:  # noise is not for every model, and then a batch that fails is sorted out when it comes
        logger.debug("predicting noise failed: %s", exc)
        return True
    return all(
        leaf.shape[:1] == (3,) and _close(leaf, np.concatenate([one[number] for one in apart]))
        for number, leaf in enumerate(together)
    )


def _agree(one: Compiled, other: Compiled, inputs: list[Port]) -> bool:
    """Whether two calls give the same for the same noise."""
    import keras

    random = np.random.default_rng(0)
    values = [_noise(port, random) for port in inputs]
    both = zip(keras.tree.flatten(one(*values)), keras.tree.flatten(other(*values)), strict=True)
    return all(_close(leaf, expected) for expected, leaf in both)


def _noise(port: Port, random: np.random.Generator) -> Any:
    zeros = _repeated(port.zeros(), port, 3)
    if zeros.dtype.kind in "OSUb":
        return zeros
    drawn = random.integers(0, 2, zeros.shape) if zeros.dtype.kind in "iu" else random.random(zeros.shape)
    return drawn.astype(zeros.dtype)


def _repeated(row: Any, port: Port, rows: int) -> Any:
    fixed = bool(port.shape) and port.shape[0] is not None
    return row if fixed else np.repeat(row, rows, axis=0)


def _close(one: Any, other: Any) -> bool:
    if one.dtype.kind in "OSUb" or one.shape != other.shape:
        return bool(np.array_equal(one, other))
    if one.dtype.kind in "iu":
        return bool(np.mean(one != other) < _TOLERANCE_16_BIT)
    limit = _TOLERANCE_16_BIT if one.dtype.itemsize <= 2 else _TOLERANCE
    one, other = one.astype("complex128"), other.astype("complex128")
    finite = np.isfinite(other)
    if not np.array_equal(finite, np.isfinite(one)):
        return False
    largest = np.abs(other[finite]).max(initial=0.0)
    return bool(np.abs(one[finite] - other[finite]).max(initial=0.0) <= limit * largest + 1e-30)


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
