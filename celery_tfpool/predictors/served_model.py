"""One model in a predictor: which requests may share a call of it, and that call.

Rows of different tasks share a call only where that is known to be harmless
(`row_check`).  All other requests are computed one by one, as Keras would.

Knows nothing of sockets, or of who asks and when.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ..runners.layers import Wanted
from ..runners.other_backend import OwnCall
from ..runners.protocol import BATCH_SIZE, Compiled, Runner
from ..runners.rows import count_rows
from ..runners.subclassed import FreeRunner
from . import row_check
from .calls import Call
from .codec import why_not_sent
from .messages import ModelFacts
from .row_check import Reason
from .tuning import Tuning

logger: logging.Logger = logging.getLogger(__name__)

#: Calls of one row that a trial takes as long as; and where the time of a call is known by a larger one.
_TRIAL, _TRIAL_LIKE = 20, 16
#: The part of the time that somebody still waits, which a trial may take of it.
_OF_HIS_TIME = 0.5
#: How to let requests of a model share a call all the same.
_ALLOW = '. To batch them all the same, set "batch": True of this model in tf_model_path'


@dataclass
class _Trace:
    """One trace of a model that does not say what it takes, and why requests like those it was made for go alone."""

    compiled: Compiled
    reason: Reason | None
    #: Of its slowest call so far.
    seconds: float = 0.0


class ServedModel:
    """A loaded model that predicts for several processes.

    Args:
        max_size: rows per batch; 1: each request is computed alone.
        threads: how many threads TensorFlow may use, within one call or by as many calls at a time.
        batch: whether requests share a call: True, False, or "auto", where that is known to be harmless.
    """

    def __init__(self, runner: Runner, max_size: int, threads: int = 1, batch: bool | str = "auto") -> None:
        self.runner: Runner = runner
        self.name: str = runner.name
        self.max_size: int = max_size
        self._threads, self._batch = threads, batch
        #: Rows that count as one batch where it is said how many batches may wait: as set, whatever pays.
        self.rows_that_count: int = max_size
        self.only_here: str = runner.only_here() or why_not_sent(runner)
        #: Why requests are computed alone; and what came of a trial that failed.
        self.alone: Reason | None = Reason.SIZE if max_size == 1 else Reason.REFUSED if batch is False else None
        self.detail: str = ""
        self.is_frozen: bool = False
        #: Whether each call is sure to be over in a moment.
        self.is_quick: bool = False
        self._compiled = runner.compiled() if runner.inputs and not self.only_here else None
        #: Of a model that does not say what it takes.
        self._traces: dict[int, _Trace] = {}
        #: The same in one thread, where each thread computes batches of its own.
        self.in_one_thread: Compiled | None = None

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
        if self.only_here or self._compiled is None:
            if not self.only_here and self.alone is None and self._batch == "auto":
                self.alone = Reason.NOT_TRIED
            return
        if isinstance(self._compiled, OwnCall):
            self.alone = self.alone or Reason.NO_GRAPH
            return self._compiled.try_once(self.runner.inputs)
        of_graph = row_check.of_graph(self._compiled, self.runner.inputs)
        self.alone = self.alone or self._unless_allowed(of_graph)
        if of_graph in (Reason.STATE, Reason.PYTHON):
            return  # a call may move a state, and the first is to be that of the first request
        tuning = Tuning(self.runner, self._compiled, self.max_size, self._threads, budget)
        seconds = tuning.first_call()
        if self.alone is None and self._batch == "auto":
            has_time = tuning.has_time(_TRIAL * (seconds or 0.0))
            self.alone, self.detail = row_check.with_noise(self._compiled, self.runner.inputs, has_time)
        if seconds is not None:
            tuning.tune(seconds, computing, is_batched=self.alone is None)
        self._compiled, self.in_one_thread, self.max_size = tuning.compiled, tuning.in_one_thread, tuning.max_size
        self.is_frozen, self.is_quick = tuning.is_frozen, tuning.is_quick

    def _unless_allowed(self, reason: Reason | None) -> Reason | None:
        """``reason``, unless ``batch = True`` makes it void."""
        return None if self._batch is True and reason and not reason.is_absolute else reason

    def why_alone(self) -> str:
        """Why requests are not batched, and how to allow it, for the log; empty when they are."""
        if self.alone is None:
            return ""
        detail = f" ({self.detail})" if self.detail else ""
        allow = "" if self.alone.is_absolute or self.alone is Reason.REFUSED else _ALLOW
        return f"{self.alone.value}{detail}{allow}"

    def facts(self) -> ModelFacts:
        """What whoever asks has to know."""
        import keras

        return ModelFacts(
            only_here=self.only_here,
            inputs=None if self.only_here or not self.runner.inputs else self.runner.inputs_to_json(),
            floatx=keras.config.floatx(),
            alone=self.alone.value if self.alone else "",
            frozen=self.is_frozen,
            packed=self.runner.pack_folder is not None,
            max_batch_size=self.max_size,
            parallel=self.parallel,
            layers=[] if self.only_here else list(self.runner.layers),
        )

    def prepare(
        self, x: Any, batch_size: int | None, alone: bool = False, outputs: Wanted | None = None
    ) -> Call | None:
        """Check a request and see with whom it may share a batch; None where that takes long: see `prepare_slowly`.

        Args:
            x: the values in the order of the inputs; for a model that does
                not say what inputs it takes, whatever its call() takes.
            alone: whether it must go alone in any case.
            outputs: the layers whose outputs are wanted.

        Raises:
            InvalidInputError: ``x`` does not fit.
        """
        if outputs is not None:
            return None
        with self.runner.refusal():
            if self._compiled is not None:
                compiled, reason = self._compiled, self.alone
                values = self.runner.fit_flat(x)
            else:
                traced = self.runner.traced(x) if isinstance(self.runner, FreeRunner) else None
                if traced is None or (trace := self._traces.get(id(traced[0]))) is None:
                    return None
                (compiled, values), reason = traced, trace.reason
                if reason is Reason.NOT_TRIED and not alone:
                    return None
            return self._call_of(compiled, values, batch_size, reason, alone)

    def prepare_slowly(
        self, x: Any, batch_size: int | None, time_left: float, *, alone: bool = False, outputs: Wanted | None = None
    ) -> Call:
        """As `prepare`, for outputs of layers, and for a model that does not say what it takes: trace it, and look.

        The first request for a trace is computed alone, which shows how long that takes.  Trials are made before the
        next one, if they are over soon enough for it.

        Args:
            time_left: seconds that somebody still waits for the answer.

        Raises:
            InvalidInputError: ``x`` does not fit.
            Exception: whatever else the model's own code raises.
        """
        with self.runner.refusal():
            if outputs is not None:
                of_layers, values = self.runner.of_layers(outputs), self.runner.fit_flat(x)
                return self._call_of(of_layers, values, batch_size, Reason.LAYERS, alone=True)
            compiled, values = self.runner.prepare(x)
            trace = self._traces.get(id(compiled))
            if trace is None:
                trace = self._traces[id(compiled)] = _Trace(compiled, self._without_trial(compiled))
                if trace.reason is not Reason.NOT_TRIED:
                    self._note_trace(trace.reason)
            elif trace.reason is Reason.NOT_TRIED and trace.seconds and not alone:
                has_time = _TRIAL_LIKE * trace.seconds < _OF_HIS_TIME * time_left
                trace.reason, self.detail = row_check.with_request(compiled, values, has_time)
                self._note_trace(trace.reason)
            return self._call_of(compiled, values, batch_size, trace.reason, alone)

    def took(self, compiled: Compiled, seconds: float) -> None:
        """A call of ``compiled`` has taken so long."""
        if (trace := self._traces.get(id(compiled))) is not None:
            trace.seconds = max(trace.seconds, seconds)

    def _without_trial(self, compiled: Compiled) -> Reason | None:
        """Why requests may not share a call of ``compiled``, as far as that is known without a trial."""
        if self.alone in (Reason.SIZE, Reason.REFUSED):
            return self.alone
        reason = self._unless_allowed(row_check.of_graph(compiled, ()))
        return Reason.NOT_TRIED if reason is None and self._batch == "auto" else reason

    def _note_trace(self, reason: Reason | None) -> None:
        self.alone = reason
        logger.log(
            logging.WARNING if reason and not reason.is_known else logging.INFO,
            "model %r: after its first requests: %s",
            self.name,
            f"requests are not batched: {self.why_alone()}" if reason else "requests like them are batched",
        )

    def has_no_rows(self, compiled: Compiled) -> None:
        """A batch of ``compiled`` has shown that its outputs cannot be divided: from now on all go alone."""
        self.alone = Reason.NO_ROWS
        if (trace := self._traces.get(id(compiled))) is not None:
            trace.reason = Reason.NO_ROWS
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
