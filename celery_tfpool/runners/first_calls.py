"""Remember which line of the user's code made the first call of a function: the one that starts a runtime, say."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Iterable
from operator import attrgetter
from types import ModuleType
from typing import Any

import wrapt

from .culprit import blame

#: What was started → by which line of this process.
_lines: dict[str, str] = {}


def watch(what: str, functions: Iterable[tuple[str, str]]) -> None:
    """From now on remember the line that calls one of these functions first, each a module and a name in it."""
    for module, name in functions:
        wrapt.register_post_import_hook(functools.partial(_watch, what=what, name=name), module)


def line(what: str) -> str | None:
    """The line that started it in this process, if it was watched."""
    return _lines.get(what)


def _watch(module: ModuleType, *, what: str, name: str) -> None:
    owner, _, attribute = name.rpartition(".")
    try:
        target: Any = attrgetter(owner)(module) if owner else module
        original = getattr(target, attribute)
    except AttributeError:  # `gone` says so
        return

    @functools.wraps(original)
    def first_call(*args: Any, **kwargs: Any) -> Any:
        # Once is enough, and it may be on the path of every operation.
        setattr(target, attribute, original)
        _lines.setdefault(what, blame(traceback.extract_stack(sys._getframe(1))))
        return original(*args, **kwargs)

    setattr(target, attribute, first_call)
