"""What values a setting may have.

Each check returns the value to keep, or raises ValueError in words that follow the setting's name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

#: The name of a model whose path is given alone, without a name.
DEFAULT_MODEL = "default"

#: Returns the value to keep; raises ValueError saying what is allowed.
Check = Callable[[Any], Any]


class ModelPath(NamedTuple):
    """A model by name: where it comes from, and what is said of it alone."""

    name: str
    path: str
    #: Of a SavedModel; and, by name, what a Keras file needs: the thing itself or "module:name".
    signature: str | None = None
    custom_objects: tuple[tuple[str, Any], ...] = ()
    #: Instead of ``tf_max_batch_size``, and at most so many of ``tf_predictors``; None where nothing is said.
    max_batch_size: int | None = None
    predictors: int | None = None
    #: Whether rows of different tasks share a call: True, False, or "auto", where that is known to be harmless.
    batch: bool | str = "auto"
    #: Whether the app loads it itself, in worker main, and no setting names it.
    is_deferred: bool = False


def one_of(*choices: str) -> Check:
    """A check: one of these."""

    def check(value: Any) -> Any:
        if value not in choices:
            raise ValueError("must be " + " or ".join(map(repr, choices)))
        return value

    return check


def _is_number(value: Any, types: type | tuple[type, ...]) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def seconds(value: Any) -> float:
    """More than 0 seconds."""
    if not _is_number(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError("must be a number of seconds > 0")
    return float(value)


def duration(value: Any) -> float:
    """0 seconds or more."""
    if not _is_number(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError("must be a number of seconds >= 0")
    return float(value)


def at_least(least: int, what: str = "") -> Check:
    """A check: a whole number from ``least`` on; ``what`` says of what."""

    def check(value: Any) -> int:
        if not _is_number(value, int) or value < least:
            raise ValueError(f"must be a whole number{what} >= {least}")
        return int(value)

    return check


def thread_count(value: Any) -> int:
    """A number of threads; 0: to be found out."""
    if not _is_number(value, int) or value < 0:
        raise ValueError("must be a whole number >= 0 (0 = auto)")
    return int(value)


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


def objects(value: Any) -> tuple[tuple[str, Any], ...]:
    """A dict of names and objects, or where these are."""
    pairs = tuple(value.items()) if isinstance(value, Mapping) else None
    if pairs is None or not all(
        isinstance(name, str) and (":" in where if isinstance(where, str) else callable(where)) for name, where in pairs
    ):
        raise ValueError("must be a dict of name -> class or function, or 'module:name'")
    return pairs


#: What a dict of per-model settings may hold beside its path.
_OF_ONE_MODEL: dict[str, Check] = {
    "signature": text,
    "custom_objects": objects,
    "max_batch_size": at_least(1),
    "predictors": at_least(0),
    "batch": boolean_or_auto,
}


#: A name and its path in a text, ``faces=models/faces.keras``; in an address a "/" or ":" comes before any "=".
_NAMED = re.compile(r"([\w.-]+)=(.+)")


def model_names(value: Any) -> tuple[str, ...]:
    """Names, in a list or in a text with commas; none for all."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError('must be names of models: ["faces", "masks"], or "faces,masks"')
    return tuple(dict.fromkeys(names))


def from_text(text: str) -> str | dict[str, str]:
    """What is meant by ``--tf-model-path``: a path, or names and paths: ``faces=faces.keras,masks=masks.keras``."""
    named = [_NAMED.fullmatch(part) for part in text.split(",")]
    return {match[1]: match[2] for match in named if match} if all(named) else text


def model_paths(value: Any) -> tuple[ModelPath, ...]:
    """Named models, in the order in which they were given."""
    if value is None:
        return ()
    named = value if isinstance(value, Mapping) else {DEFAULT_MODEL: value}
    if not named:
        raise ValueError("must name at least one model")
    return tuple(_model_path(name, source) for name, source in named.items())


def _model_path(name: Any, source: Any) -> ModelPath:
    if not isinstance(name, str) or not name:
        raise ValueError(f"model names must be non-empty strings, not {name!r}; it")
    more: dict[str, Any] = {}
    if isinstance(source, Mapping):
        more = dict(source)
        source = more.pop("path", None)
        for key, given in more.items():
            if key not in _OF_ONE_MODEL:
                near = difflib.get_close_matches(str(key), ["path", *_OF_ONE_MODEL], n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"of model {name!r} may have path, {', '.join(_OF_ONE_MODEL)}, not {key!r}{hint}; it")
            try:
                more[key] = _OF_ONE_MODEL[key](given)
            except ValueError as exc:
                raise ValueError(f"of model {name!r}: {key} {exc}; it") from exc
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise ValueError(
            "must be a path, 'module:function', or a dict of name -> one of these or a dict with a path of its own"
        )
    return ModelPath(name, os.fspath(source), **more)
