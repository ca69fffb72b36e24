"""Try what other engines would make of a loaded model: do they take it, with whose numbers, and in how much time?

The pool itself computes with TensorFlow; this is what ``celery tfpool check`` shows.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engines import compared, onnxruntime
from ..engines.protocol import CannotConvert, CannotOpen, Engine, FlatCall
from ..runners.convert import short
from ..runners.protocol import CannotPack, Compiled, Runner

ENGINES: tuple[Engine, ...] = (onnxruntime.ENGINE,)
#: Rows of the calls that are timed.
_ROWS = (1, 8)
#: Calls of each size, of each engine in turn; fewer where they take longer than so many seconds.
_CALLS, _SECONDS = 30, 2.0


@dataclass(frozen=True)
class Trial:
    """What became of one engine; ``reason`` says why it cannot be used, and is empty where it can."""

    engine: str
    reason: str = ""
    #: CPU seconds a row, by rows of a call.
    seconds: tuple[float, ...] = ()
    #: The largest from TensorFlow's numbers, relative to the largest value of an output.
    difference: float = 0.0
    bytes: int = 0


def table(runner: Runner) -> Iterator[str]:
    """The trials of all engines, as lines of text."""
    try:
        trials = tried(runner)
    except CannotPack as exc:
        yield f"engines are not tried: {exc}"
        return
    yield f"{'engine':<14}{'CPU ms a row':>14}{f'of {_ROWS[1]} rows':>12}{'difference':>12}{'MB':>8}"
    for one in trials:
        if one.reason:
            yield f"{one.engine:<14}not used: {one.reason}"
            continue
        alone, together = (1000 * seconds for seconds in one.seconds)
        size = f"{one.bytes / 1e6:.1f}" if one.bytes else ""
        difference = f"{one.difference:.0e}" if one.bytes else ""
        yield f"{one.engine:<14}{alone:>14.3f}{together:>12.3f}{difference:>12}{size:>8}".rstrip()
    yield "The pool computes with TensorFlow; the others are what it may choose among one day."


def tried(runner: Runner) -> list[Trial]:
    """Of TensorFlow and each other engine.

    Raises:
        CannotPack: the model has no graph that others could compute, or takes no rows of zeros.
    """
    _, compiled = runner.single_call()
    expected = compared.call_of(compiled.function)
    with tempfile.TemporaryDirectory(prefix="tfpool-engines-") as folder:
        found = [(Trial("tensorflow"), expected), *(_tried(engine, compiled, expected, folder) for engine in ENGINES)]
        calls = [call for trial, call in found if not trial.reason]
        try:
            seconds = iter(zip(*(_timed(calls, runner, rows) for rows in _ROWS), strict=True))
        except Exception as exc:  # zeros are not for every model
            raise CannotPack(f"it cannot be called with rows of zeros ({type(exc).__name__}: {short(exc)})") from exc
    return [trial if trial.reason else replace(trial, seconds=next(seconds)) for trial, _ in found]


def _tried(engine: Engine, compiled: Compiled, expected: FlatCall, folder: str) -> tuple[Trial, FlatCall]:
    """What became of one, and its call; TensorFlow's where it has none."""
    if why := engine.cannot_convert_here():
        return Trial(engine.name, why), expected
    try:
        made = engine.convert(compiled.function, folder, expected)
        difference = max(made.differences, default=0.0)
        return Trial(engine.name, difference=difference, bytes=made.bytes), engine.open(folder, 1)
    except (CannotConvert, CannotOpen) as exc:
        return Trial(engine.name, short(exc)), expected


def _timed(calls: Sequence[Callable[..., Any]], runner: Runner, rows: int) -> list[float]:
    """CPU seconds a row of each of ``calls``, which take turns: what else the machine does is the same for all."""
    values = [port.zeros(rows) for port in runner.inputs]
    took: list[list[float]] = [[] for _ in calls]
    started = time.monotonic()
    for number in range(_CALLS + 1):
        for call, seconds in zip(calls, took, strict=True):
            before = time.process_time()
            call(*values)
            if number:  # the first makes what the others use
                seconds.append((time.process_time() - before) / rows)
        if number > 2 and time.monotonic() - started > _SECONDS:
            break
    return [statistics.median(seconds) for seconds in took]
