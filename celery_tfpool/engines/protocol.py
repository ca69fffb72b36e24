"""What an engine is: a library that computes a model's graph, as files which it writes once and every process opens.

An engine is one file beside this one.  It converts where TensorFlow is, in the
process that makes a pack and then ends, and it computes where TensorFlow need
not even be installed: nothing that `Engine.open` calls imports it.  Here is what
the two sides tell each other, and no engine is known.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

#: What says that a folder holds an engine's form of a model; written last.
DESCRIPTION = "engine.json"
FORMAT = 1

#: Takes an array for each input, in their order, and gives one for each output.
FlatCall: TypeAlias = Callable[..., list[NDArray[Any]]]


class CannotConvert(Exception):
    """Why an engine does not do for a model, in words that follow its name."""


class CannotOpen(Exception):
    """What is wrong with the files of an engine, or with this process, in words."""


@dataclass(frozen=True)
class Flat:
    """One input or output, by its name in the engine's files.

    ``dtype`` is TensorFlow's name.  A size that may vary is None, and so is the
    shape where not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Description:
    """One model in the form of one engine."""

    engine: str
    #: Of the engine's library.
    version: str
    #: As of `processor.name`: the files may be laid out for it.
    processor: str
    #: In the order in which they are given.
    inputs: tuple[Flat, ...]
    #: In the order in which they come, that of the traced function.
    outputs: tuple[Flat, ...]
    #: By which way it was converted.
    route: str
    #: From TensorFlow's numbers, of each output, relative to its largest value.
    differences: tuple[float, ...]
    #: Name → bytes.
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


class Opened(Protocol):
    """A model in this process, ready to be called, from several threads at a time if need be."""

    @property
    def description(self) -> Description:
        """Of the files it was opened from."""

    @property
    def remark(self) -> str:
        """What is to be said of how it was opened, if anything."""

    def __call__(self, *values: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for at least one row.

        Args:
            values: an array for each input, of its dtype and rank.
        """


class Engine(Protocol):
    """What computes graphs; without a state, so one of each will do."""

    @property
    def name(self) -> str:
        """As users write it."""

    def version(self) -> str | None:
        """Of the library; None where it is not installed.  Imports nothing."""

    def cannot_convert_here(self) -> str:
        """What is not installed here of that which `convert` needs, in words; empty when all is there."""

    def convert(
        self, concrete: Any, folder: str, expected: FlatCall, samples: Sequence[Sequence[NDArray[Any]]] = ()
    ) -> Description:
        """Write the model into ``folder``, which exists, and see that its numbers are TensorFlow's.

        Args:
            concrete: a concrete function of flat arguments, as in `runners.protocol.Compiled`.
            expected: gives the numbers that are right, say `compared.call_of` of the same function.
            samples: inputs to be compared on, beside noise.

        Raises:
            CannotConvert: it cannot be done, or gives other numbers; then nothing is left in ``folder``.
            OSError: the disk is full, or the folder may not be written.
        """

    def open(self, folder: str, threads: int) -> Opened:
        """The model that `convert` wrote, to be called in this process; forks of it have to open their own.

        Args:
            threads: how many compute a call together, the one that calls included.

        Raises:
            CannotOpen: files are missing or cut off, or the library is not installed.
        """


# -- the description as a file -------------------------------------------------


def write_description(folder: str, description: Description) -> None:
    """Make ``folder`` one that can be opened: after all other files, and whole or not at all."""
    path = os.path.join(folder, DESCRIPTION)
    for name in description.files:
        to_disk(os.path.join(folder, name))
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **asdict(description)}, file, indent=1)
    to_disk(f"{path}.part")
    os.replace(f"{path}.part", path)


def read_description(folder: str, engine: str) -> Description:
    """What ``folder`` holds, whose files are all there.

    Raises:
        CannotOpen: it holds nothing of this engine, or files are missing or cut off.
    """
    try:
        with open(os.path.join(folder, DESCRIPTION), encoding="utf-8") as file:
            facts = json.load(file)
        if (known := facts.pop("format")) != FORMAT:
            raise CannotOpen(f"{DESCRIPTION} is of format {known!r}; this version of celery_tfpool knows {FORMAT}")
        description = _of_json(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CannotOpen(f"{DESCRIPTION} cannot be read ({type(exc).__name__}: {exc})") from exc
    if description.engine != engine:
        raise CannotOpen(f"{DESCRIPTION} is for {description.engine!r}, not for {engine!r}")
    for name, size in description.files.items():
        found = None
        with contextlib.suppress(OSError):
            found = os.path.getsize(os.path.join(folder, name))
        if found != size:
            raise CannotOpen(f"{name} has {found} bytes instead of {size}")
    return description


def _of_json(facts: dict[str, Any]) -> Description:
    for side in ("inputs", "outputs"):
        shapes = [None if flat["shape"] is None else tuple(flat["shape"]) for flat in facts[side]]
        facts[side] = tuple(Flat(f["name"], f["dtype"], shape) for f, shape in zip(facts[side], shapes, strict=True))
    return Description(**{**facts, "differences": tuple(facts["differences"])})


def to_disk(path: str) -> None:
    """Have what was written to the file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
