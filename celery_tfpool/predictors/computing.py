"""Compute a batch, in a thread that does nothing else: whatever comes out of a model is an answer to somebody."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from ..runners.convert import short
from . import calls as model_calls
from .batching import Part
from .calls import Call, NotByRows
from .requests import Request

logger: logging.Logger = logging.getLogger(__name__)


def compute(parts: Sequence[Part[Request]], *, in_one_thread: bool) -> tuple[list[Any], int]:
    """Of each part the outputs, or the exception that is to be its answer; and how many calls it took.

    Of a request that is to be prepared only here, the prepared call.
    """
    if (request := parts[0].request).call is None:
        return [_prepared(request)], 0
    calls = [Part(part.request.call, part.start, part.stop) for part in parts if part.request.call is not None]
    model = calls[0].request.model
    started = time.monotonic()
    try:
        results = model_calls.run(calls, in_one_thread=in_one_thread)
        model.took(calls[0].request.compiled, time.monotonic() - started)
        return results, 1
    except NotByRows:
        model.has_no_rows(calls[0].request.compiled)
    except BaseException as exc:  # anything at all may come out of a model
        if len(parts) == 1:
            return [exc], 1
        logger.warning(
            "model %r: a batch of %d requests failed (%s: %s); computing them one by one",
            model.name,
            len(parts),
            type(exc).__name__,
            short(exc),
        )
    return [_alone(call) for call in calls], 1 + len(calls)


def _prepared(request: Request) -> Any:
    try:
        asked = request.asked
        time_left = asked.deadline - time.monotonic()
        return request.model.prepare_slowly(
            request.x, asked.batch_size, time_left, alone=asked.alone, outputs=asked.outputs
        )
    except BaseException as exc:  # whatever the model's own code raises is the answer
        return exc


def _alone(part: Part[Call]) -> Any:
    try:
        return model_calls.alone(part)
    except BaseException as exc:  # the answer to this one
        return exc
