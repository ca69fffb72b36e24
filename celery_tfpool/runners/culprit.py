"""Which line of the user's code it was."""

from __future__ import annotations

import ast
import functools
import linecache
import os
import sys
import sysconfig
import traceback
from typing import Any

#: Whose lines nobody can change.
_LIBRARIES = ("tensorflow", "keras", "tf_keras", "jax", "torch", "wrapt")


def blame(stack: list[traceback.FrameSummary]) -> str:
    """The line of ``stack`` (innermost last) that a reader can change.

    That is the innermost one outside Keras and what it runs on, and, where that is
    in an installed package, also the innermost line of the user's own.
    """
    callers = [f for f in reversed(stack) if not _is_inside(f.filename, _LIBRARIES)]
    own = next((f for f in callers if is_own_code(f.filename)), None)
    first = callers[0] if callers else None
    if first is None:
        return "an unknown line"
    text = _place(first)
    return text if own is None or own is first else f"{text}, called from {_place(own)}"


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno}" + (f": {frame.line}" if frame.line else "")


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple({sysconfig.get_paths()[key] for key in ("purelib", "platlib", "stdlib")})


def _is_inside(filename: str, packages: tuple[str, ...]) -> bool:
    return any(f"{os.sep}{package}{os.sep}" in filename for package in packages) and not is_own_code(filename)


def is_own_code(filename: str) -> bool:
    """Whether a file is the user's, and neither installed nor of this package."""
    return (
        os.path.isabs(filename)
        and not filename.startswith(_installed())
        and f"{os.sep}site-packages{os.sep}" not in filename
        and not filename.startswith(os.path.dirname(os.path.dirname(__file__)))
    )


def search_modules(packages: tuple[str, ...]) -> str | None:
    """A module-level model, layer or tensor of these packages in the user's own code, which must have started it."""
    for module in list(sys.modules.values()):
        filename = getattr(module, "__file__", None)
        if not filename or not is_own_code(filename):
            continue
        for name, value in list(vars(module).items()):
            if type(value).__module__.partition(".")[0] in packages and _holds_numbers(value):
                line = _line_of(filename, name)
                place = f"{filename}:{line}: {linecache.getline(filename, line).strip()}" if line else filename
                return f"{place} (it holds a {type(value).__name__})"
    return None


def _holds_numbers(value: Any) -> bool:
    return hasattr(value, "dtype") or hasattr(value, "parameters")  # a module of PyTorch's


def _line_of(filename: str, name: str) -> int | None:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.lineno
    return None
