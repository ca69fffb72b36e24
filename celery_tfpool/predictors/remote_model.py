"""A model that predictors have, where one of this process would stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InvalidInputError
from ..runners.convert import Misfit, arrays, is_plain
from ..runners.dtypes import is_tensor
from ..runners.inputs import Named, inputs_of_json
from ..runners.layers import Wanted, names_of
from ..runners.rows import check_batch_size, count_rows
from ..runners.spec import describe
from ..runners.structure import map_leaves
from .client import Client
from .messages import ModelFacts


class RemoteRunner:
    """Predicts with a model that predictors have; stands where a `Runner` of this process would."""

    keras_model = None

    def __init__(self, name: str, indices: tuple[int, ...], facts: ModelFacts, client: Client) -> None:
        self.name = name
        self._indices, self._client = indices, client
        self.layers: list[str] = facts.layers
        self._inputs = None
        if facts.inputs is not None:
            self._inputs = replace(inputs_of_json(facts.inputs), floatx=facts.floatx)

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, which can be sent."""
        return is_plain(x)

    def predict(self, x: Any, batch_size: int | None, outputs: Wanted | None = None) -> Any:
        """As `Runner.predict`; how many rows share a call is for the predictor to say.

        Raises:
            InvalidInputError: ``x`` or ``batch_size`` does not fit.
            TFPoolError: as `Client.predict`.
        """
        check_batch_size(self.name, batch_size)
        try:
            values = self._sendable(x)
            if outputs is not None:
                names = names_of(outputs, self.layers)
                outputs = outputs if isinstance(outputs, str) else names
        except Misfit as exc:
            expected = describe(self._inputs.ports) if self._inputs else "what its call() takes"
            raise InvalidInputError(self.name, expected, str(exc)) from exc.__cause__
        size = None if batch_size is None else int(batch_size)
        return self._client.predict(self.name, self._indices, values, size, outputs)

    def _sendable(self, x: Any) -> Any:
        if self._inputs is None:
            return _of_numpy(arrays(x)) if not isinstance(x, (list, tuple)) or x else x
        values = self._inputs.fit(x)
        if not isinstance(self._inputs, Named):
            count_rows(values)
        return list(map(_of_numpy, values))


def _of_numpy(x: Any) -> Any:
    return map_leaves(lambda leaf: leaf.numpy() if is_tensor(leaf) else leaf, x)
