"""Keras 2, which is tf_keras now, beside Keras 3: which of them wrote a file, and which made a model.

Hugging Face's TensorFlow models and ``hub.KerasLayer`` need it, and with
``TF_USE_LEGACY_KERAS=1`` it is what TensorFlow calls ``tf.keras``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import zipfile
from typing import Any

from . import installed
from .keras_model import KerasRunner
from .location import Kind


def is_its_model(made: Any) -> bool:
    """Whether an object is a model of Keras 2."""
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(made, tf_keras.Model)


def loads(path: str, kind: Kind) -> bool:
    """Whether Keras 2 is to load a file: it is what ``tf.keras`` is here, and Keras 3 has not written the file."""
    return installed.has_legacy_keras() and not _written_by(path, kind).startswith("3.")


def _written_by(path: str, kind: Kind) -> str:
    """The version of Keras that has written a file, as far as that can be seen; empty where it cannot."""
    with contextlib.suppress(Exception):  # whoever loads it says what is wrong
        if kind is Kind.H5:
            import h5py

            with h5py.File(path, "r") as file:
                return str(file.attrs.get("keras_version", ""))
        if os.path.isdir(path):
            with open(os.path.join(path, "metadata.json"), encoding="utf-8") as metadata:
                return str(json.load(metadata)["keras_version"])
        with zipfile.ZipFile(path) as archive:
            return str(json.loads(archive.read("metadata.json"))["keras_version"])
    return ""


def fact() -> str:
    """What a pack of such a file depends on beside all else."""
    return f"tf_keras {installed.versions_in_use().get('tf_keras')}"


def hint(path: str, kind: Kind) -> str:
    """What to do about a file of Keras 2 that Keras 3 could not load; empty where it is something else."""
    if not _written_by(path, kind).startswith("2.") or installed.has_legacy_keras():
        return ""
    return ". It was written by Keras 2: pip install tf_keras, and set TF_USE_LEGACY_KERAS=1 in the environment"


def load(path: str, **options: Any) -> Any:
    """The model in a file, as Keras 2 loads it."""
    tf_keras = importlib.import_module("tf_keras")
    loader: Any = inspect.unwrap(tf_keras.models.load_model)  # even where loading is deferred
    return loader(path, **options)


class LegacyRunner(KerasRunner):
    """Of a model of Keras 2 that does not say what it takes, or has a step of its own: its own ``predict``."""

    def only_here(self) -> str:
        """Why it cannot predict for other processes."""
        return (
            "it is a model of Keras 2 (tf_keras) that does not say what inputs it takes, or has its own predict_step()"
        )
