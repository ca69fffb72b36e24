"""What values a setting may have.

Each check returns the value to keep, or raises ValueError in words that follow the setting's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

#: Returns the value to keep; raises ValueError saying what is allowed.
Check = Callable[[Any], Any]


def one_of(*choices: str) -> Check:
    """A check: one of these."""

    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError("must be " + " or ".join(map(repr, choices)))
        return value

    return check


def is_number(value: Any, types: type | tuple[type, ...]) -> bool:
    """Whether it is of ``types``, and no boolean, which Python takes for a number."""
    return isinstance(value, types) and not isinstance(value, bool)


def seconds(value: Any) -> float:
    """More than 0 seconds."""
    if not is_number(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError("must be a number of seconds > 0")
    return float(value)


def duration(value: Any) -> float:
    """0 seconds or more."""
    if not is_number(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError("must be a number of seconds >= 0")
    return float(value)


def at_least(least: int, what: str = "") -> Check:
    """A check: a whole number from ``least`` on; ``what`` says of what."""

    def check(value: Any) -> int:
        if not is_number(value, int) or value < least:
            raise ValueError(f"must be a whole number{what} >= {least}")
        return int(value)

    return check


def thread_count(value: Any) -> int:
    """A number of threads; 0: to be found out."""
    if not is_number(value, int) or value < 0:
        raise ValueError("must be a whole number >= 0 (0 = auto)")
    return int(value)


def port_or_none(value: Any) -> int | None:
    """A TCP port, or None."""
    if value is not None and (not is_number(value, int) or not 1 <= value <= 65535):
        raise ValueError("must be a port, 1 to 65535, or None")
    return value  # type: ignore[no-any-return]


def folder(value: Any) -> str | None:
    """The whole path of a folder, or None."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("must be the path of a folder")
    return os.path.abspath(os.path.expanduser(os.fspath(value)))


def boolean(value: Any) -> bool:
    """True or False, and nothing like them."""
    if not isinstance(value, bool):
        raise ValueError("must be True or False")
    return value


def boolean_or_auto(value: Any) -> bool | str:
    """True, False, or "auto"."""
    if not isinstance(value, bool) and value != "auto":
        raise ValueError('must be True, False or "auto"')
    return value  # type: ignore[no-any-return]


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def path(value: Any) -> str:
    """The path of a file."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("must be the path of a file")
    return os.fspath(value)


def version(value: Any) -> str:
    """A text, or a whole number."""
    return str(value) if is_number(value, int) else text(value)


def objects(value: Any) -> tuple[tuple[str, Any], ...]:
    """A dict of names and objects, or where these are."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else None
    if pairs is None or not all(
        isinstance(name, str) and (":" in where if isinstance(where, str) else callable(where)) for name, where in pairs
    ):
        raise ValueError("must be a dict of name -> class or function, or 'module:name'")
    return pairs
