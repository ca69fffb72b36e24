"""Models by number, from files in the folder ZOO_FILES, with the zoo's custom classes registered.

Paths are ``zoo_files:m0``, ``zoo_files:m1``, …
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Callable[[], Any]:
    if not name.startswith("m"):
        raise AttributeError(name)

    def load() -> Any:
        import keras
        import zoo  # noqa: F401 - registers its custom classes

        return keras.models.load_model(os.path.join(os.environ["ZOO_FILES"], f"{name[1:]}.keras"))

    return load
