"""What a model path is, and what can be seen to be wrong with it, without TensorFlow.

The worker's main process may look at files but must not start TensorFlow, so
everything here is plain reading: existence, format, completeness, and code
carried in a model's configuration.  What only loading can tell is left to
`models`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import stat
import sys
from enum import Enum
from typing import Any

from .configuration import BadSource as BadSource
from .configuration import h5_config, is_custom, json_config, keras_config, refuse_code, unreadable


class Kind(str, Enum):
    """The forms a model comes in."""

    KERAS = "keras"
    H5 = "h5"
    ARCHITECTURE = "json"
    SAVED_MODEL = "saved_model"
    FUNCTION = "function"
    REMOTE = "remote"
    PACK = "pack"


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
        raise BadSource(unreadable(exc)) from exc
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
    if local.endswith(".json"):
        return Kind.ARCHITECTURE
    raise BadSource("unknown format: expected a .keras or .h5 file, a SavedModel folder, or 'module:function'")


def _kind_of_folder(folder: str) -> Kind:
    try:
        names = set(os.listdir(folder))
    except OSError as exc:
        raise BadSource(unreadable(exc)) from exc
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


def check(path: str, *, safe_mode: bool, weights: str | None = None) -> Kind:
    """`kind_of`, and a look inside as far as that goes without TensorFlow.

    Args:
        weights: the file that has them, where ``path`` has none or others.

    Raises:
        BadSource: the file is damaged, or carries code that ``safe_mode``
            refuses, or the module or function does not exist.
    """
    kind = kind_of(path)
    if kind is Kind.FUNCTION:
        _check_function(path)
    elif kind is Kind.KERAS:
        refuse_code(keras_config(os.path.expanduser(path)), safe_mode)
    elif kind is Kind.H5:
        refuse_code(h5_config(os.path.expanduser(path)), safe_mode)
    elif kind is Kind.ARCHITECTURE:
        refuse_code(json_config(os.path.expanduser(path)), safe_mode)
        if weights is None:
            raise BadSource('it is an architecture without weights; name their file, {"path": …, "weights": …}')
    if weights is not None:
        _check_weights(weights, kind)
    return kind


def _check_weights(weights: str, kind: Kind) -> None:
    if kind not in (Kind.KERAS, Kind.H5, Kind.ARCHITECTURE):
        raise BadSource(f"a {kind.value} has its weights in it, and takes none from {weights!r}")
    if not os.path.isfile(local := os.path.expanduser(weights)):
        raise BadSource(f"its weights {weights!r}: no such file{_looked_in(local)}")


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


def has_custom_code(path: str, kind: Kind) -> bool:
    """Whether the model at ``path`` is of classes that Keras does not have, as far as its configuration tells."""
    if kind is Kind.KERAS:
        return is_custom(keras_config(path))
    if kind is Kind.ARCHITECTURE:
        return is_custom(json_config(path))
    return kind is Kind.H5  # whose configuration does not tell


def is_compiled(path: str) -> bool:
    """Whether the file or folder ``path`` holds a Keras model that was saved with its loss, metrics and optimizer.

    Raises:
        BadSource: as `kind_of`, or it cannot be read.
    """
    kind, local = kind_of(path), os.path.expanduser(path)
    if kind is Kind.KERAS:
        return bool(keras_config(local).get("compile_config"))
    if kind is Kind.H5:
        import h5py

        try:
            with h5py.File(local, "r") as file:
                return "training_config" in file.attrs
        except OSError as exc:
            raise BadSource(unreadable(exc)) from exc
    return kind is Kind.REMOTE  # for all that can be seen from here
