"""Let GNU OpenMP's threads end before a fork, in whose child they would be missing.

PyTorch computes with them on a CPU.  The runtime keeps the threads of a
parallel region for the next one; a forked child has none of them, and waits
for them for ever (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=60035).  OpenMP
5.0 has a call that gives them back, and both processes start new ones when
they need them.  Intel's and LLVM's runtimes do as much by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

#: ``omp_pause_soft``: threads may go, and settings stay.
_SOFT = 1


def give_threads_back() -> bool:
    """End the threads that this thread computes with, until it needs them again; False where that is impossible."""
    given = [_pause(path) for path in _loaded()]
    return all(given)


def _pause(path: str) -> bool:
    with contextlib.suppress(OSError, AttributeError):  # not that file any more, or GCC before 9
        return int(ctypes.PyDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).omp_pause_resource_all(_SOFT)) == 0
    return False


def _loaded() -> set[str]:
    """The files of GNU's runtime that this process has mapped."""
    try:
        with open("/proc/self/maps") as maps:
            found = (line.rstrip("\n").partition("/") for line in maps)
            return {f"/{path}" for _, _, path in found if os.path.basename(path).startswith("libgomp")}
    except OSError:
        return set()


def before_fork() -> None:
    """`give_threads_back`, where PyTorch has been imported."""
    if "torch" in sys.modules:
        give_threads_back()
