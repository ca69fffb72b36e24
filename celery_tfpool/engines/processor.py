"""Which processor this is.

Engines lay weights out for the instructions that they find, so a file which
one machine wrote may be of no use, or worse, on another.
"""

from __future__ import annotations

import hashlib
import platform

#: Of ``/proc/cpuinfo``: what a person knows it by, on x86 and on ARM, and what it can do.
_NAMES = ("model name", "CPU implementer", "CPU part", "CPU variant")
_FEATURES = ("flags", "Features")


def name() -> str:
    """Its architecture and model, and a digest of its features; the same on machines that compute alike."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return of_cpuinfo(file.read(), platform.machine())
    except OSError:
        return platform.machine()


def of_cpuinfo(text: str, machine: str) -> str:
    """The name of the first processor that ``text`` lists."""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    known = [facts[key] for key in _NAMES if key in facts]
    features = sorted(word for key in _FEATURES for word in facts.get(key, "").split())
    digest = hashlib.sha256(" ".join(features).encode()).hexdigest()[:8]
    return ", ".join([machine, *known, digest])
