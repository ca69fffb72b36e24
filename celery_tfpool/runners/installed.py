"""What is installed here, and which back end Keras runs on, without importing any of it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path

#: Of each module, the distributions that it comes in.
_DISTRIBUTIONS = {
    "tensorflow": (
        "tensorflow",
        "tensorflow-cpu",
        "tensorflow-gpu",
        "tensorflow-intel",
        "tensorflow-macos",
        "tensorflow-rocm",
        "tf-nightly",
        "tf-nightly-cpu",
    ),
    "keras": ("keras", "keras-nightly"),
    "tf_keras": ("tf_keras", "tf_keras-nightly"),
    "jax": ("jax",),
    "torch": ("torch",),
}
#: Back ends of Keras that this package knows, by the names that Keras has for them, and what people call them.
TITLES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
_HOW_TO_INSTALL = {
    "tensorflow": "pip install 'celery-tfpool[tensorflow]' (or [tensorflow-cpu])",
    "jax": "pip install 'celery-tfpool[jax]'",
    "torch": "pip install 'celery-tfpool[torch]'",
}


# -- which back end? -----------------------------------------------------------


def backend() -> str:
    """The back end of Keras in this process, or the one that it will have when it is imported."""
    loaded = getattr(getattr(sys.modules.get("keras"), "config", None), "backend", None)
    return str(loaded()) if loaded is not None else _configured()


def _configured() -> str:
    """As Keras finds it: the environment goes before the file."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    try:
        configured = json.loads(Path(home, "keras.json").read_text())
    except (OSError, ValueError):
        return "tensorflow"
    return str(configured.get("backend", "tensorflow")) if isinstance(configured, dict) else "tensorflow"


def other_backend() -> str:
    """What Keras runs on where that is not TensorFlow, as people call it; empty where it is."""
    name = backend()
    return "" if name == "tensorflow" else TITLES.get(name, name)


def why_unshared() -> str:
    """Why models of Keras have no packs here; empty where they have."""
    title = other_backend()
    return f"Keras runs on {title}, and what is shared is a graph of TensorFlow" if title else ""


def has_legacy_keras() -> bool:
    """Whether ``tf.keras`` is tf_keras here, which is Keras 2, as TensorFlow decides it."""
    wanted = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
    return wanted and backend() == "tensorflow" and is_there("tf_keras")


def modules() -> list[str]:
    """What a process needs to import before it can load a model."""
    legacy = ["tf_keras"] if has_legacy_keras() else []
    return [backend(), "keras", *legacy]


# -- which versions? -----------------------------------------------------------


def is_there(module: str) -> bool:
    """Whether a module could be imported, or is."""
    return module in sys.modules or importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """Versions of TensorFlow and Keras, which packs depend on; absent ones are left out."""
    return _versions_of("tensorflow", "keras")


def versions_in_use() -> dict[str, str]:
    """`versions`, and those of what Keras runs on, if that is something else, and of tf_keras, if that is used."""
    return _versions_of(*dict.fromkeys(["tensorflow", "keras", *modules()]))


def _versions_of(*modules: str) -> dict[str, str]:
    found = {}
    for module in filter(is_there, modules):
        loaded = getattr(sys.modules.get(module), "__version__", None)
        distributions = map(_version_of, _DISTRIBUTIONS.get(module, ()))
        found[module] = str(loaded) if loaded else next(filter(None, distributions), "installed")
    return found


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


# -- what is missing? ----------------------------------------------------------


def missing() -> str:
    """Why no model can be loaded on this machine, and what to do; empty when one can."""
    name = backend()
    if name not in TITLES:
        known = ", ".join(map(repr, TITLES))
        return f"Keras is to run on {name!r} (KERAS_BACKEND or ~/.keras/keras.json); this pool knows {known}"
    have = _versions_of(name, "keras")
    if name not in have:
        why = (
            "" if name == "tensorflow" else f", and Keras is to run on {name!r} (KERAS_BACKEND or ~/.keras/keras.json)"
        )
        return f"{TITLES[name]} is not installed{why}. Install it: {_HOW_TO_INSTALL[name]}"
    if "keras" not in have:
        return "Keras is not installed. Install it: pip install 'keras>=3.1'"
    if have["keras"].startswith(("2.", "3.0.")):
        return f"Keras {have['keras']} is too old. Install a newer one: pip install 'keras>=3.1'"
    return ""


def without_tensorflow() -> str:
    """Why a SavedModel or a pack cannot be loaded on this machine, whatever Keras runs on; empty when one can."""
    return (
        ""
        if is_there("tensorflow")
        else f"it needs TensorFlow, which is not installed: {_HOW_TO_INSTALL['tensorflow']}"
    )
