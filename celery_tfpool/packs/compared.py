"""Write a pack and see that it gives the numbers of its model."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..runners import compare
from ..runners.protocol import CannotPack, Runner
from .attach import PackRunner
from .write import write


def write_compared(runner: Runner, folder: str) -> str:
    """`write`, and one prediction by either to see that they are the same; what is to be said of it, if anything.

    Raises:
        CannotPack: this model has no pack, or one that gives other numbers.
    """
    write(runner, folder)
    try:
        sample = runner.sample()
        expected = runner.predict(sample, 1)
    except Exception:  # zeros are not for every model, and then there is nothing to compare
        return ""
    pack = PackRunner(runner.name, folder)
    packed = pack.predict(sample, 1)
    if _same(packed, expected):
        if pack.layers and not _same(pack.predict(sample, 1, pack.layers), runner.predict(sample, 1, pack.layers)):
            raise CannotPack("its pack gives other numbers for its layers than the model itself")
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
