"""The rows of a model's inputs: how many, and some of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InvalidInputError
from .convert import Misfit


def check_batch_size(name: str, batch_size: Any) -> None:
    """See whether a batch size is one.

    Raises:
        InvalidInputError: it is not None, nor a whole number > 0.
    """
    if batch_size is not None and (not isinstance(batch_size, (int, np.integer)) or batch_size < 1):
        raise InvalidInputError(name, "a whole number of at least 1 as batch_size", repr(batch_size))


def count_rows(values: list[Any]) -> int:
    """How many rows all of ``values`` have, but for those that are one value for all rows.

    Raises:
        Misfit: not all as many.
    """
    rows = [int(value.shape[0]) for value in values if value.shape]
    if len(set(rows)) > 1:
        raise Misfit(f"inputs of different numbers of rows: {rows}")
    return rows[0] if rows else 1


def rows_between(values: list[Any], start: int, stop: int) -> list[Any]:
    """These rows of each of ``values``; what is one value for all rows as it is."""
    return [value[start:stop] if value.shape else value for value in values]
