"""Call a pack: the graph and the mapped weights, without the Keras model that they were made of."""

from __future__ import annotations

from typing import Any

from . import pack
from .runner import Compiled, Runner


class PackRunner(Runner):
    """Calls of a pack's graph."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.manifest, self._compiled = pack.attach(folder)
        self._inputs = self.manifest.inputs
        self.inputs = self._inputs.ports
        self.outputs = self.manifest.output_ports()

    def compiled(self) -> Compiled:
        return self._compiled

    def variables(self) -> list[Any]:
        return [weight for weight in self.manifest.weights if weight.variable]
