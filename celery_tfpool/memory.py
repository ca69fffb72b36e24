"""The memory of a process, with shared pages told apart: ``smaps_rollup`` of Linux, in bytes."""

from __future__ import annotations

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
