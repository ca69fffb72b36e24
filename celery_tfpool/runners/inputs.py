"""Decide which part of what was given belongs to which input of a model.

`Structured` is for models that take their inputs in a structure of Keras's
(one, a list, a dict, nested), `Named` for signatures, which know names only.
Whether a value fits its input is for `ports`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .convert import Misfit, is_dense, sketch
from .spec import Port
from .structure import map_leaves, side_by_side, structure_of_json, structure_to_json


@dataclass(frozen=True)
class Inputs(ABC):
    """The inputs of a model, in its order."""

    ports: list[Port]
    #: Keras's ``floatx`` for a process that has not imported Keras; None: to be asked of Keras.
    floatx: str | None = field(default=None, kw_only=True)

    @abstractmethod
    def values(self, x: Any) -> list[Any]:
        """What ``x`` holds for each input.

        Raises:
            Misfit: it has more, less or other parts.
        """

    def fit(self, x: Any) -> list[Any]:
        """`values`, each as an array or tensor of its input's dtype and rank.

        Raises:
            Misfit: ``x`` does not fit.
        """
        return self.fit_flat(self.values(x))

    def fit_flat(self, values: list[Any]) -> list[Any]:
        """Each of ``values``, in the order of the inputs, as an array or tensor of its input's dtype and rank.

        Raises:
            Misfit: one does not fit, or there are more or fewer.
        """
        if len(values) != len(self.ports):
            raise Misfit(f"{len(values)} values for {len(self.ports)} inputs")
        return [port.fit(value, self.floatx) for port, value in zip(self.ports, values, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """For `inputs_of_json`.

        Raises:
            CannotEncode: names that are no strings, or a named tuple.
        """
        return {"ports": [asdict(port) for port in self.ports]}

    def sample(self) -> Any:
        """One row of zeros (or empty strings) for each input."""
        return {port.name: port.zeros() for port in self.ports}

    def _by_name(self, x: Mapping[str, Any]) -> list[Any]:
        names = [port.name for port in self.ports]
        if set(x) != set(names):
            raise Misfit("inputs named " + (", ".join(map(str, x)) or "nothing"))
        return [x[name] for name in names]

    def _by_order(self, x: Any) -> list[Any]:
        wanted = len(self.ports)
        if wanted == 1:
            # [array] is one input in a list, as in Keras; a list of rows is that input itself.
            boxed = isinstance(x, (list, tuple)) and len(x) == 1 and is_dense(x[0])
            return [x[0] if boxed and self.ports[0].is_whole(x[0]) else x]
        if not isinstance(x, (list, tuple)):
            raise Misfit(f"one {type(x).__name__} for {wanted} inputs")
        if len(x) != wanted:
            raise Misfit(f"{len(x)} values for {wanted} inputs")
        return list(x)


@dataclass(frozen=True)
class Structured(Inputs):
    """Inputs in a structure; its leaves are their numbers."""

    structure: Any

    def to_json(self) -> dict[str, Any]:
        """As `Inputs.to_json`."""
        return {**super().to_json(), "structure": structure_to_json(self.structure, int)}

    def values(self, x: Any) -> list[Any]:
        """As `Inputs.values`."""
        if self._is_nested:
            return self._by_place(x)
        if isinstance(x, Mapping):
            return self._by_name(x)
        if isinstance(self.structure, dict) and list(self.structure) != sorted(self.structure):
            raise Misfit(f"a {type(x).__name__}, whose order is ambiguous here; give a dict")
        return self._by_order(x)

    def sample(self) -> Any:
        """One row of zeros (or empty strings) for each input, in the structure."""
        return self.pack([port.zeros() for port in self.ports]) if self._is_nested else super().sample()

    def pack(self, flat: list[Any]) -> Any:
        """The structure, with these in place of its leaves."""
        return map_leaves(flat.__getitem__, self.structure)

    @property
    def _is_nested(self) -> bool:
        parts = self.structure.values() if isinstance(self.structure, dict) else self.structure
        is_group = isinstance(self.structure, (dict, list, tuple))
        return is_group and any(isinstance(part, (dict, list, tuple)) for part in parts)

    def _by_place(self, x: Any) -> list[Any]:
        try:
            found = dict(side_by_side(self.structure, x))
        except LookupError:
            raise Misfit(f"{sketch(x)}, not {sketch(self.pack(self.ports))}") from None
        return [found[number] for number in range(len(self.ports))]


@dataclass(frozen=True)
class Named(Inputs):
    """Inputs by name, and the orders in which a list may give them."""

    orders: list[list[str]]

    def to_json(self) -> dict[str, Any]:
        """As `Inputs.to_json`."""
        return {**super().to_json(), "orders": self.orders}

    def values(self, x: Any) -> list[Any]:
        """As `Inputs.values`."""
        if isinstance(x, Mapping):
            return self._by_name(x)
        values = self._by_order(x)
        if len(values) == 1:
            return values
        for names in self.orders:
            if sorted(names) == sorted(port.name for port in self.ports):
                return self._by_name(dict(zip(names, values, strict=True)))
        raise Misfit(f"a {type(x).__name__}, whose order a SavedModel does not keep; give a dict")


def inputs_of_json(facts: dict[str, Any]) -> Inputs:
    """The inputs that `Inputs.to_json` described."""
    ports = [Port(port["name"], port["dtype"], tuple(port["shape"])) for port in facts["ports"]]
    if "orders" in facts:
        return Named(ports, facts["orders"])
    return Structured(ports, structure_of_json(facts["structure"], int))
