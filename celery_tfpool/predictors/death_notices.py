"""Tell children how a predictor ended, which only worker main knows."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence

from ..runners.convert import short
from .keeper import Keeper

logger: logging.Logger = logging.getLogger(__name__)

#: Bytes of a question.
MOST_BYTES = 1000
#: Seconds that somebody may take to say which predictor's end he asks for, and that he is let wait for it.
_PATIENCE = 10.0


async def tell(predictors: Sequence[Keeper], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer ``[index, pid or null]`` on one line by how that predictor ended, as soon as it has."""
    try:
        index, pid = json.loads(await asyncio.wait_for(reader.readline(), _PATIENCE))
        one = predictors[int(index)]
        gone = asyncio.ensure_future(reader.read(1))  # whoever asked has closed
        deadline = time.monotonic() + _PATIENCE
        while not (words := one.end_of(pid)) and not gone.done() and time.monotonic() < deadline:
            news = asyncio.ensure_future(one.news.wait())
            await asyncio.wait({news, gone}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
        gone.cancel()
        writer.write(words.encode() + b"\n")
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError, OSError, asyncio.TimeoutError) as exc:
        logger.debug("somebody asked how a predictor ended in words that make no sense: %s", short(exc))
    finally:
        writer.close()
