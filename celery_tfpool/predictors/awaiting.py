"""Await processes and threads in an asyncio program that must never wait for one of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

#: The exit code that `multiprocessing` gives a process whose forkserver has ended and cannot tell.
_UNKNOWN = 255


async def in_thread(function: Callable[..., Any], *args: Any, discard: Callable[[Any], None]) -> Any:
    """What ``function`` returns in a thread that nobody waits for when this one ends.

    Args:
        discard: called with that in place of returning it when nobody waits any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def give(value: Any) -> None:
        if future.done():
            discard(value)
        else:
            future.set_result(value)

    def fail(exc: BaseException) -> None:
        if not future.done():
            future.set_exception(exc)

    def run() -> None:
        try:
            value = function(*args)
        except BaseException as exc:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(fail, exc)
            return
        try:
            loop.call_soon_threadsafe(give, value)
        except RuntimeError:
            discard(value)

    threading.Thread(target=run, name="starter of predictors", daemon=True).start()
    return await future


async def ended(process: Any) -> None:
    """Wait for the end of ``process``, which is no child of this one."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # Linux before 5.3; this one ends with the forkserver, too
        await _readable(process.sentinel)
        return
    try:
        await _readable(descriptor)
    finally:
        os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def ending(process: Any) -> str:
    """How ``process`` ended, which the forkserver says a moment after."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_readable(process.sentinel), 1.0)
    exitcode = process.exitcode
    if exitcode in (None, _UNKNOWN):
        return "ended, nobody knows how"
    if exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        return f"was ended by {signal.Signals(-exitcode).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-exitcode}"
