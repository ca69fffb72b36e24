"""What a model's files are, and what its pack depends on beside them.

A worker keeps the content of each model from its start: a later load of other
bytes would mix two versions.  Knows nothing of TensorFlow, or of what a model is.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ..runners.culprit import is_own_code


@dataclass(frozen=True)
class Content:
    """The bytes of files, or of all files of folders; or the version of what a function makes."""

    #: SHA-256 of names, sizes and bytes.
    digest: str
    #: Of each file its name, inode, size, and when it was written or changed, in ns; equal as long as nothing was.
    stamps: tuple[tuple[str, int, int, int, int], ...]

    @property
    def short(self) -> str:
        """Enough of the digest to tell versions apart."""
        return self.digest[:8]

    @classmethod
    def of_json(cls, facts: Mapping[str, object]) -> Content:
        """What became of ``dataclasses.asdict`` on the way through JSON."""
        stamps = facts["stamps"]
        assert isinstance(stamps, list)
        return cls(str(facts["digest"]), tuple(tuple(stamp) for stamp in stamps))


def content(paths: Sequence[str]) -> Content:
    """The content of files and folders.

    Raises:
        OSError: one cannot be read, or is not there.
    """
    before = _stamps(paths)
    digest = hashlib.sha256()
    for name, file in _files(paths):
        digest.update(f"{name}\0{os.path.getsize(file)}\0".encode())
        _add(digest, file)
    return Content(digest.hexdigest(), before)


def content_of_version(function: str, version: str) -> Content:
    """Of what a function makes that says itself when that is another."""
    return Content(hashlib.sha256(f"{function}\0{version}".encode()).hexdigest(), ())


def has_changed(paths: Sequence[str], known: Content) -> Content | None:
    """The present content of ``paths`` if it is not ``known`` any more, else None.

    Raises:
        OSError: as `content`.
    """
    if _stamps(paths) == known.stamps:
        return None
    present = content(paths)
    return None if present.digest == known.digest else present


def was_touched(paths: Sequence[str], known: Content) -> bool:
    """Whether anything was written since ``known`` was read, even if the bytes are the same again."""
    try:
        return _stamps(paths) != known.stamps
    except OSError:
        return True


def _files(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Each file, by a name that does not depend on where ``paths`` are."""
    found = []
    for number, path in enumerate(paths):
        files = [path]
        if os.path.isdir(path):
            files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
        found += [(f"{number}:{os.path.relpath(file, path)}", file) for file in files]
    return found


def _stamps(paths: Sequence[str]) -> tuple[tuple[str, int, int, int, int], ...]:
    found = []
    for name, file in _files(paths):
        facts = os.stat(file)
        found.append((name, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return tuple(found)


def _add(digest: Any, name: str) -> None:
    with open(name, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


# -- what a pack depends on ----------------------------------------------------------


def key(content: Content, facts: Iterable[str], *, code: Iterable[str] = ()) -> str:
    """A name for ``content`` together with ``facts``, the files of ``code``, and this package as it is."""
    digest = hashlib.sha256(content.digest.encode())
    for fact in (_own_code(), *facts):
        digest.update(fact.encode() + b"\0")
    for name in code:
        digest.update(f"{name}\0{os.path.getsize(name)}\0".encode())
        _add(digest, name)
    return digest.hexdigest()[:32]


@functools.cache
def _own_code() -> str:
    """What this package is: neither packs nor notes that there can be none outlive another version of it."""
    digest = hashlib.sha256()
    for name in sorted(Path(__file__).parent.parent.rglob("*.py")):
        _add(digest, str(name))
    return digest.hexdigest()


def environment_facts(versions: Mapping[str, str], environ: Mapping[str, str]) -> list[str]:
    """What a graph depends on beside its model: versions, Keras's configuration, whether there is a GPU."""
    keras_home = Path(environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    keras_config = keras_home / "keras.json"
    has_gpu = environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and any(
        os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    )
    return [
        *(f"{name} {version}" for name, version in sorted(versions.items())),
        keras_config.read_text() if os.path.isfile(keras_config) else "",
        f"GPU {has_gpu}",
    ]


def code_facts(modules: Iterable[ModuleType | None]) -> tuple[list[str], list[str]]:
    """What a model with custom code depends on: all that is installed, and files of all else.

    Installed is a name, a version, and the RECORD of the files' hashes: a
    package that is built again may keep its version.
    """
    files = {getattr(module, "__file__", None) or "" for module in modules}
    return _distributions(), sorted(file for file in files if os.path.isfile(file) and is_own_code(file))


@functools.cache  # a quarter of a second
def _distributions() -> list[str]:
    return sorted(
        f"{d.metadata['Name']} {d.version} {hashlib.sha256((d.read_text('RECORD') or '').encode()).hexdigest()}"
        for d in metadata.distributions()
    )


def code_of_this_process() -> tuple[list[str], list[str]]:
    """`code_facts` of all modules that are imported here."""
    return code_facts(list(sys.modules.values()))
