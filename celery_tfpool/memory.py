"""The memory of a process, with shared pages told apart: ``smaps_rollup`` of Linux, in bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os


def of_process(pid: int) -> dict[str, int]:
    """``private``: what the process alone has written; ``pss``: its fair share of all its pages.

    Pages shared with other processes do not count as private, nor do mapped
    files, which the kernel can drop at any time.  Empty where that cannot be
    read: the process has ended, or this is not Linux 4.14 or newer.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            found = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in list(file)[1:]}
    except OSError:
        return {}
    return {"private": found["Private_Dirty"] + found.get("SwapPss", 0), "pss": found["Pss"]}


def written_here() -> int | None:
    """``private`` of this process; None where that cannot be read."""
    return of_process(os.getpid()).get("private")


#: Of ``mallopt`` in glibc.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_what_is_freed() -> None:
    """Give back what is free now, and from now on reuse large pieces of memory instead of giving each back.

    glibc maps a piece of more than 32 MB anew each time, and the kernel clears
    its pages.  The layers of a convolutional network on a batch are such
    pieces: MobileNetV2 on 32 rows is a quarter faster without.  Threads share
    one arena, since that of a thread ends at 64 MB.  No effect elsewhere.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        mallopt = libc.mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
