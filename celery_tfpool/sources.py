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
    if not os.path.exists(local) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", path):
        return Kind.FUNCTION
    if os.path.isdir(local):
        names = set(os.listdir(local))
        if names & {"saved_model.pb", "saved_model.pbtxt"}:
            return Kind.SAVED_MODEL
        if "config.json" in names:  # Keras's format, unzipped
            return Kind.KERAS
        if "pack.json" in names:
            return Kind.PACK
        raise BadSource("the folder is no model: it holds no saved_model.pb, Keras config.json or pack.json")
    if not os.path.exists(local):
        raise BadSource(f"no such file or folder (looked in {os.getcwd()})")
    if local.endswith(".keras"):
        return Kind.KERAS
    if local.endswith((".h5", ".hdf5")):
        return Kind.H5
    raise BadSource("unknown format: expected a .keras or .h5 file, a SavedModel folder, or 'module:function'")


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


def _keras_config(path: str) -> Any:
    try:
        if os.path.isdir(path):
            with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
                return json.load(file)
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if "config.json" not in names:
                raise BadSource("the file is no Keras model: it holds no config.json")
            return json.loads(archive.read("config.json"))
    except zipfile.BadZipFile as exc:
        raise BadSource(f"the file is damaged or truncated ({exc}); save or copy the model again") from exc
    except (OSError, ValueError) as exc:
        if isinstance(exc, BadSource):
            raise
        raise BadSource(f"its configuration cannot be read ({exc}); save or copy the model again") from exc


def _h5_config(path: str) -> Any:
    try:
        import h5py
    except ImportError:  # comes with Keras; whoever lacks it learns so when loading
        return None
    try:
        with h5py.File(path, "r") as file:
            config = file.attrs.get("model_config")
    except OSError as exc:
        raise BadSource(f"the file is damaged or truncated ({exc}); save or copy the model again") from exc
    if config is None:
        raise BadSource("the file holds weights only; save the whole model with model.save()")
    return json.loads(config)


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

        with h5py.File(local, "r") as file:
            return "training_config" in file.attrs
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
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _dicts(part)
