"""Load whatever stands at a path."""

from __future__ import annotations

from ..packs.attach import opened
from ..runners import location
from ..runners.location import Kind
from ..runners.protocol import Runner
from ..runners.stored import load_stored


def load(name: str, path: str, *, safe_mode: bool, compiled: bool = False) -> Runner:
    """As `load_stored`, and packs as well."""
    if location.check(path, safe_mode=safe_mode) is Kind.PACK:
        return opened(name, path)
    return load_stored(name, path, safe_mode=safe_mode, compiled=compiled)
