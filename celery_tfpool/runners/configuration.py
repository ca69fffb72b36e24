"""What the configuration in a model's file says, read without TensorFlow: is it whole, has it code, whose classes?

Plain reading of zip, HDF5 and JSON, of files that may be damaged or hostile.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from typing import Any


class BadSource(ValueError):
    """The text says what is wrong and what to do."""


def unreadable(exc: Exception) -> str:
    """Why a file or folder that is there cannot be read."""
    if isinstance(exc, PermissionError):
        return f"it may not be read by user {os.geteuid()} ({exc.strerror}); change its owner or mode"
    if isinstance(exc, BlockingIOError) or "unable to lock file" in str(exc):
        return (
            f"it is locked by a process that writes it ({exc}); wait for that, or, on a file system without locks, "
            "set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return f"it is damaged or truncated ({exc}); save or copy the model again"


#: Bytes of a model's configuration that are read; those of the largest networks are a few millions.
_MOST_CONFIG = 2**28


def keras_config(path: str) -> Any:
    """Of a .keras file or such a folder.

    Raises:
        BadSource: it cannot be read, or is none.
    """
    try:
        if os.path.isdir(path):
            with open(os.path.join(path, "config.json"), "rb") as file:
                return _parsed(file.read(_MOST_CONFIG + 1))
        with open(path, "rb") as whole, zipfile.ZipFile(whole) as archive:
            if "config.json" not in archive.namelist():
                raise BadSource("the file is no Keras model: it holds no config.json")
            with archive.open("config.json") as member:
                return _parsed(member.read(_MOST_CONFIG + 1))
    except BadSource:
        raise
    except Exception as exc:  # of a damaged archive there are many kinds
        raise BadSource(unreadable(exc)) from exc


def h5_config(path: str) -> Any:
    """Of a .h5 file; None where h5py is missing.

    Raises:
        BadSource: it cannot be read, or is none.
    """
    try:
        import h5py
    except ImportError:  # comes with Keras; whoever lacks it learns so when loading
        return None
    try:
        with open(path, "rb"):  # whose words are clearer
            pass
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
    except Exception as exc:
        raise BadSource(unreadable(exc)) from exc
    if config is None:
        raise BadSource("the file holds weights only; save the whole model with model.save()")
    return _parsed(config)


def _parsed(config: str | bytes) -> Any:
    """The JSON of a model's configuration.

    Raises:
        BadSource: it is none.
    """
    if len(config) > _MOST_CONFIG:
        raise BadSource(f"its configuration has more than {_MOST_CONFIG:,} bytes, which no model needs")
    try:
        parsed = json.loads(config)
    except (ValueError, TypeError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)[:200]
        raise BadSource(f"its configuration cannot be read ({reason}); save or copy the model again") from exc
    if not isinstance(parsed, dict):
        raise BadSource("its configuration is not that of a model; save or copy the model again")
    return parsed


def json_config(path: str) -> Any:
    """Of an architecture alone, what ``model.to_json()`` gives.

    Raises:
        BadSource: it cannot be read, or is none.
    """
    try:
        with open(path, "rb") as file:
            return _parsed(file.read(_MOST_CONFIG + 1))
    except OSError as exc:
        raise BadSource(unreadable(exc)) from exc


def is_custom(config: Any) -> bool:
    """Whether it names classes that Keras does not have."""
    return any(map(_is_custom, _dicts(config)))


def _is_custom(part: dict[str, Any]) -> bool:
    module = part.get("module")
    is_kerass = module is None or module.partition(".")[0] in ("keras", "builtins")
    return "class_name" in part and (not is_kerass or ">" in (part.get("registered_name") or ""))


def refuse_code(config: Any, safe_mode: bool) -> None:
    """See that it carries no Python code, unless that is allowed.

    Raises:
        BadSource: it does.
    """
    if safe_mode and any(_is_code(part) for part in _dicts(config)):
        raise BadSource(
            "it carries Python code (a Lambda layer), which tf_safe_mode refuses. "
            "Replace the Lambda by a registered layer, or set tf_safe_mode = False if you trust the file"
        )


def _is_code(part: dict[str, Any]) -> bool:
    return part.get("class_name") == "__lambda__" or part.get("function_type") == "lambda"


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All dicts in ``value``, however deep."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part
