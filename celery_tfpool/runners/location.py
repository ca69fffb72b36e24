"""What a model path is, and what can be seen to be wrong with it, without TensorFlow.

The worker's main process may look at files but must not start TensorFlow, so
everything here is plain reading: existence, format, completeness, and code
carried in a model's configuration.  What only loading can tell is left to
`models`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import sys
import zipfile
from collections.abc import Iterator
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """The forms a model comes in."""

    KERAS = "keras"
    H5 = "h5"
    SAVED_MODEL = "saved_model"
    FUNCTION = "function"
    REMOTE = "remote"
    PACK = "pack"


class BadSource(ValueError):
    """The text says what is wrong and what to do."""


def kind_of(path: str) -> Kind:
    """Which form ``path`` is, by its name and by what stands there.

    Raises:
        BadSource: nothing is there, or nothing that looks like a model.
    """
    if "://" in path:
        return Kind.REMOTE
    local = os.path.expanduser(path)
    try:
        is_folder: bool | None = stat.S_ISDIR(os.stat(local).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = None
    except (OSError, ValueError) as exc:
        raise BadSource(_unreadable(exc)) from exc
    if is_folder is None:
        if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", path):
            return Kind.FUNCTION
        raise BadSource(f"no such file or folder{_looked_in(local)}")
    if is_folder:
        return _kind_of_folder(local)
    if local.endswith(".keras"):
        return Kind.KERAS
    if local.endswith((".h5", ".hdf5")):
        return Kind.H5
    raise BadSource("unknown format: expected a .keras or .h5 file, a SavedModel folder, or 'module:function'")


def _kind_of_folder(folder: str) -> Kind:
    try:
        names = set(os.listdir(folder))
    except OSError as exc:
        raise BadSource(_unreadable(exc)) from exc
    if names & {"saved_model.pb", "saved_model.pbtxt"}:
        return Kind.SAVED_MODEL
    if "config.json" in names:  # Keras's format, unzipped
        return Kind.KERAS
    if "pack.json" in names:
        return Kind.PACK
    raise BadSource("the folder is no model: it holds no saved_model.pb, Keras config.json or pack.json")


def _looked_in(path: str) -> str:
    if os.path.isabs(path):
        return ""
    try:
        return f" (looked in {os.getcwd()})"
    except OSError:
        return ": the working directory has been removed; give the whole path"


def _unreadable(exc: Exception) -> str:
    """Why a file or folder that is there cannot be read."""
    if isinstance(exc, PermissionError):
        return f"it may not be read by user {os.geteuid()} ({exc.strerror}); change its owner or mode"
    if isinstance(exc, BlockingIOError) or "unable to lock file" in str(exc):
        return (
            f"it is locked by a process that writes it ({exc}); wait for that, or, on a file system without locks, "
            "set HDF5_USE_FILE_LOCKING=FALSE"
        )
    return f"it is damaged or truncated ({exc}); save or copy the model again"


def check(path: str, *, safe_mode: bool) -> Kind:
    """`kind_of`, and a look inside as far as that goes without TensorFlow.

    Raises:
        BadSource: the file is damaged, or carries code that ``safe_mode``
            refuses, or the module or function does not exist.
    """
    kind = kind_of(path)
    if kind is Kind.FUNCTION:
        _check_function(path)
    elif kind is Kind.KERAS:
        _check_code(_keras_config(os.path.expanduser(path)), safe_mode)
    elif kind is Kind.H5:
        _check_code(_h5_config(os.path.expanduser(path)), safe_mode)
    return kind


def _check_function(path: str) -> None:
    module_name, _, function = path.partition(":")
    if module_name in sys.modules:
        # Importing it here could start TensorFlow, so only a module that is
        # there already is asked for its function.
        found: Any = sys.modules[module_name]
        for part in function.split("."):
            found = getattr(found, part, None)
        if not callable(found):
            raise BadSource(f"module {module_name!r} has no function {function!r}")
        return
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as exc:
        raise BadSource(f"module {module_name!r} cannot be imported: {exc}") from exc
    if spec is None:
        raise BadSource(f"there is no file of this name, and no module {module_name!r} on the Python path")


#: Bytes of a model's configuration that are read; those of the largest networks are a few millions.
_MOST_CONFIG = 2**28


def _keras_config(path: str) -> Any:
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
        raise BadSource(_unreadable(exc)) from exc


def _h5_config(path: str) -> Any:
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
        raise BadSource(_unreadable(exc)) from exc
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


def has_custom_code(path: str, kind: Kind) -> bool:
    """Whether the model at ``path`` is of classes that Keras does not have, as far as its configuration tells."""
    if kind is Kind.KERAS:
        return any(map(_is_custom, _dicts(_keras_config(path))))
    return kind is Kind.H5  # whose configuration does not tell


def is_compiled(path: str) -> bool:
    """Whether the file or folder ``path`` holds a Keras model that was saved with its loss, metrics and optimizer.

    Raises:
        BadSource: as `kind_of`, or it cannot be read.
    """
    kind, local = kind_of(path), os.path.expanduser(path)
    if kind is Kind.KERAS:
        return bool(_keras_config(local).get("compile_config"))
    if kind is Kind.H5:
        import h5py

        try:
            with h5py.File(local, "r") as file:
                return "training_config" in file.attrs
        except OSError as exc:
            raise BadSource(_unreadable(exc)) from exc
    return kind is Kind.REMOTE  # for all that can be seen from here


def _is_custom(part: dict[str, Any]) -> bool:
    module = part.get("module")
    is_kerass = module is None or module.partition(".")[0] in ("keras", "builtins")
    return "class_name" in part and (not is_kerass or ">" in (part.get("registered_name") or ""))


def _check_code(config: Any, safe_mode: bool) -> None:
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
