"""Write a pack and see that it gives the numbers of its model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ModelLoadError
from ..runners import compare
from ..runners.protocol import CannotPack, Runner
from .attach import PackRunner
from .write import without_layers, write


def write_compared(runner: Runner, folder: str, interrupts: tuple[type[BaseException], ...] = ()) -> str:
    """`write`, and one prediction by either to see that they are the same; what is to be said of it, if anything.

    Args:
        interrupts: what may come at any time and is no failure of the model (a time limit).

    Raises:
        CannotPack: this model has no pack, or one that gives other numbers.
    """
    manifest = write(runner, folder)
    passed_on: tuple[type[BaseException], ...] = (ModelLoadError, *interrupts)
    try:
        sample = runner.sample()
        expected = runner.predict(sample, 1)
    except passed_on:
        raise
    except Exception:  # zeros are not for every model, and then there is nothing to compare
        return ""
    pack = PackRunner(runner.name, folder)
    if manifest.layers and not _layers_agree(runner, pack, sample, passed_on):
        without_layers(folder)
    packed = pack.predict(sample, 1)
    if _same(packed, expected):
        return ""
    again = runner.predict(sample, 1)
    if _same(again, expected):
        raise CannotPack("its pack gives other numbers than the model itself")
    # It differs from itself: by rounding, or because it is random.
    precision = compare.precision_of(runner.single_call()[1])
    if _close(packed, expected, precision):
        return ""
    if _close(again, expected, precision):
        raise CannotPack("its pack gives other numbers than the model itself")
    return "its outputs are random: they differ from call to call, of the model and of its pack"


def _layers_agree(runner: Runner, pack: PackRunner, sample: Any, passed_on: tuple[type[BaseException], ...]) -> bool:
    """Whether each layer gives the same from the pack; random ones do not, and are had of the model itself."""
    try:
        return _same(pack.predict(sample, 1, pack.layers), runner.predict(sample, 1, pack.layers))
    except passed_on:
        raise
    except Exception:  # an odd layer costs nobody the pack
        return False


def _same(ours: Any, theirs: Any) -> bool:
    import keras

    return all(
        np.array_equal(one, other, equal_nan=np.issubdtype(other.dtype, np.inexact))
        for one, other in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True)
    )


def _close(ours: Any, theirs: Any, precision: float) -> bool:
    import keras

    both = zip(keras.tree.flatten(ours), keras.tree.flatten(theirs), strict=True)
    return all(compare.are_close(one, other, precision) for one, other in both)
