"""What a pack holds, read and verified without TensorFlow.

pack.json       what it is: inputs, outputs, weights, versions, size and SHA-256 of each file
graph.pb        the inference graph, a GraphDef that holds functions only
layers.pb       another for the outputs of inner layers, see `layers`, if the model has any
weights.bin     all weights, each at a multiple of 64 bytes: one file, so that a model takes one descriptor
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from ..runners import installed
from ..runners.inputs import Inputs, inputs_of_json
from ..runners.location import BadSource
from ..runners.protocol import CannotPack
from ..runners.spec import Port
from ..runners.structure import CannotEncode, leaves, structure_of_json, structure_to_json
from .layers import LAYERS, Layers

FORMAT = 3
MANIFEST = "pack.json"
GRAPH = "graph.pb"
WEIGHTS = "weights.bin"


class DamagedPack(Exception):
    """The text says what is wrong with a pack, and in which file."""


# -- what the manifest says ----------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """One captured value of the graph: a variable, or a constant that was made outside of it."""

    #: Where it begins in the file of all weights, in bytes.
    offset: int
    #: TensorFlow's name; a dtype that NumPy lacks is stored in whole numbers of the same width.
    dtype: str
    shape: list[int]
    variable: bool


@dataclass(frozen=True)
class Output:
    """One output; ``shape`` is None where not even its rank is known."""

    name: str
    dtype: str
    shape: list[int | None] | None


@dataclass(frozen=True)
class Manifest:
    """What a pack holds."""

    function: str
    inputs: Inputs
    #: The structure of the outputs; each leaf is an `Output`.
    outputs: Any
    weights: list[Weight]
    versions: dict[str, str]
    #: File → size and SHA-256.
    files: dict[str, dict[str, Any]]
    #: What gives the outputs of inner layers; None where nothing does.
    layers: Layers | None = None

    @property
    def bytes(self) -> int:
        """Of all files that are mapped or read."""
        return sum(int(facts["bytes"]) for facts in self.files.values())

    def output_ports(self) -> list[Port]:
        """The outputs, flat; without a shape where not even the rank is known."""
        return [Port(output.name, output.dtype, tuple(output.shape or ())) for output in leaves(self.outputs)]

    def to_json(self) -> dict[str, Any]:
        """What ``pack.json`` holds, with a checksum."""
        facts = {
            "format": FORMAT,
            "function": self.function,
            "inputs": _inputs_to_json(self.inputs),
            "outputs": _encoded(self.outputs),
            "weights": [asdict(weight) for weight in self.weights],
            "versions": self.versions,
            "layers": None if self.layers is None else {**vars(self.layers), "outputs": _encoded(self.layers.outputs)},
            "files": self.files,
        }
        return {**facts, "checksum": _checksum(facts)}

    @classmethod
    def of_json(cls, facts: dict[str, Any]) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is none.
        """
        return cls(
            function=facts["function"],
            inputs=inputs_of_json(facts["inputs"]),
            outputs=_decoded(facts["outputs"]),
            weights=[Weight(**weight) for weight in facts["weights"]],
            versions=facts["versions"],
            layers=_layers_of_json(facts["layers"]),
            files=facts["files"],
        )


def _layers_of_json(facts: dict[str, Any] | None) -> Layers | None:
    return None if facts is None else Layers(**{**facts, "outputs": _decoded(facts["outputs"])})


def _checksum(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_pack(folder: str) -> bool:
    """Whether ``folder`` looks like a pack, damaged or not."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def read_manifest(folder: str) -> Manifest:
    """The manifest of the pack in ``folder``.

    Raises:
        DamagedPack: there is none that can be read, or of a format that this version does not know.
    """
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            facts = json.load(file)
        known = facts["format"]
        if known == FORMAT:
            if facts.pop("checksum") != _checksum(facts):
                raise DamagedPack(f"{MANIFEST} has changed since it was written")
            return _checked(Manifest.of_json(facts), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DamagedPack(f"{MANIFEST} cannot be read ({type(exc).__name__}: {exc})") from exc
    raise DamagedPack(f"{MANIFEST} is of format {known!r}; this version of celery_tfpool knows {FORMAT}")


def _checked(manifest: Manifest, folder: str) -> Manifest:
    """``manifest``, which names no file that is elsewhere, and none that is not verified."""
    for name in (GRAPH, WEIGHTS, *([LAYERS] if manifest.layers else [])):
        if name not in manifest.files:
            raise DamagedPack(f"{MANIFEST} has no checksum of {name!r}")
    place = os.path.realpath(folder)
    for name in manifest.files:
        found = os.path.realpath(os.path.join(place, name))
        if os.path.isabs(name) or os.path.commonpath([place, found]) != place:
            raise DamagedPack(f"{MANIFEST} names {name!r}, which is not in its folder")
    return manifest


def versions_here() -> dict[str, str]:
    """What a pack that is made here is made by."""
    from .. import __version__

    return {**installed.versions(), "celery_tfpool": __version__}


def made_elsewhere(manifest: Manifest) -> str:
    """Why a pack is not to be used here: it was made by other versions; empty when it was not."""
    here = versions_here()
    made_by = [name for name, version in here.items() if manifest.versions.get(name) != version]
    if not made_by:
        return ""
    by, with_ = (
        ", ".join(f"{name} {versions.get(name, 'of unknown version')}" for name in made_by)
        for versions in (manifest.versions, here)
    )
    return (
        f"the pack was made by {by}; here is {with_}. "
        "Make it again: celery tfpool pack, with the versions that are to use it"
    )


def check_versions(manifest: Manifest) -> None:
    """See whether a pack that a user gives as a model may be used here.

    Raises:
        BadSource: other versions made it.
    """
    if why := made_elsewhere(manifest):
        raise BadSource(why)


def verify(folder: str) -> Manifest:
    """Read every byte of the pack in ``folder`` and compare it with the manifest's checksums.

    Raises:
        DamagedPack: a file is missing, cut off or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        try:
            found = facts_of(os.path.join(folder, name))
        except OSError as exc:
            raise DamagedPack(f"{name} cannot be read ({exc.strerror})") from exc
        if found != expected:
            raise DamagedPack(f"{name} has changed since it was written")
    return manifest


def facts_of(path: str) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


# -- structures as JSON ----------------------------------------------------------


def _encoded(structure: Any) -> Any:
    try:
        return structure_to_json(structure, lambda leaf: asdict(leaf) if isinstance(leaf, Output) else leaf)
    except CannotEncode as exc:
        raise CannotPack(f"its inputs or outputs {exc}") from exc


def _inputs_to_json(inputs: Inputs) -> Any:
    try:
        return inputs.to_json()
    except CannotEncode as exc:
        raise CannotPack(f"its inputs or outputs {exc}") from exc


def _decoded(facts: Any) -> Any:
    return structure_of_json(facts, lambda leaf: Output(**leaf) if isinstance(leaf, dict) else leaf)
