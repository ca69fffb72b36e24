"""Where packs are kept: one folder for each fingerprint of a model, shared by all workers of a user.

    KEY/              a pack, or only a note that there can be none
    KEY.making        locked by whoever makes KEY, who removes it
    temporary.making  locked while a folder is made and locked, and while such folders are looked through
    temporary-…/      half written; locked by its writer, removed by anybody once the writer is gone

A pack is written aside and renamed, so that a folder under its own name is
whole; it is verified before use all the same, and a damaged one is put aside.
Kernel locks say who makes and who uses a pack, and end with the process.

Knows nothing of TensorFlow or of how a pack is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from . import pack
from .runner import CannotPack
from .runtime import is_own_code

_NOTE = "cannot-pack.json"
_TEMPORARY = "temporary-"


class CacheUnusable(Exception):
    """Why the folder of the cache cannot be written: full, read-only, not allowed."""


def default_folder(environ: Mapping[str, str]) -> Path:
    """``celery_tfpool`` in the user's cache directory, as XDG has it; begins with ``~`` if nobody knows where that is.

    `PackCache` refuses such a folder.
    """
    return Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "celery_tfpool"


# -- fingerprints ----------------------------------------------------------------


def fingerprint(path: str, facts: Iterable[str], *, code: Iterable[str] = ()) -> str:
    """A name for the content of the file or folder ``path`` together with ``facts`` and the files of ``code``."""
    digest = hashlib.sha256()
    for fact in (f"format {pack.FORMAT}", *facts):
        digest.update(fact.encode() + b"\0")
    files = [path]
    if os.path.isdir(path):
        files = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    for name in (*files, *code):
        digest.update(f"{os.path.relpath(name, path)}\0{os.path.getsize(name)}\0".encode())
        with open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


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
    distributions = sorted(
        f"{d.metadata['Name']} {d.version} {hashlib.sha256((d.read_text('RECORD') or '').encode()).hexdigest()}"
        for d in metadata.distributions()
    )
    files = {getattr(module, "__file__", None) or "" for module in modules}
    return distributions, sorted(file for file in files if os.path.isfile(file) and is_own_code(file))


def code_of_this_process() -> tuple[list[str], list[str]]:
    return code_facts(list(sys.modules.values()))


# -- the cache -------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A pack in the cache; the time of its last use in seconds since 1970."""

    folder: Path
    bytes: int
    used: float
    in_use: bool
    #: Why there can be no pack; empty when there is one.
    note: str


@dataclass(frozen=True)
class PackCache:
    """Packs by fingerprint, as many as fit into ``max_bytes``."""

    folder: Path
    max_bytes: int

    def get_or_make(self, key: str, make: Callable[[str], None]) -> str:
        """The folder of the pack ``key``, verified; made by ``make(empty folder)`` if it is not there or damaged.

        Raises:
            CannotPack: there can be no pack; remembered.
            CacheUnusable: it is not there and cannot be written.
        """
        if str(self.folder).startswith("~"):
            raise CacheUnusable(f"{self.folder} cannot be used: there is no home directory; set tf_cache_dir")
        if found := self._find(key):
            return found
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.folder / f"{key}.making"):
                # Meanwhile somebody else may have made it.
                found = self._find(key) or self._make(key, make)
            self.trim(self.max_bytes, spare=key)
        except OSError as exc:
            raise CacheUnusable(f"{self.folder} cannot be used: {exc.strerror or exc}") from exc
        return found

    def _find(self, key: str) -> str | None:
        folder = self.folder / key
        if (note := _note(folder)) is not None:
            raise CannotPack(note)
        if not pack.is_pack(str(folder)):
            return None
        try:
            pack.verify(str(folder))
        except pack.DamagedPack:
            return None
        with contextlib.suppress(OSError):  # a read-only cache does not know what was used last
            os.utime(folder)
        return str(folder)

    def _make(self, key: str, make: Callable[[str], None]) -> str:
        temporary = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with contextlib.ExitStack() as cleaning:
            cleaning.callback(shutil.rmtree, temporary, ignore_errors=True)
            with self._temporary_ones():
                temporary.mkdir()
                cleaning.enter_context(_open_locked(temporary, fcntl.LOCK_EX))
            try:
                make(str(temporary))
            except CannotPack as exc:
                _empty(temporary)  # and not another one of this name, which would not be locked
                (temporary / _NOTE).write_text(json.dumps({"reason": str(exc)}))
                self._put(temporary, key)
                raise
            self._put(temporary, key)
        return str(self.folder / key)

    def _put(self, temporary: Path, key: str) -> None:
        if (self.folder / key).exists():  # damaged; who has mapped it keeps its pages
            self._remove(self.folder / key)
        temporary.rename(self.folder / key)

    def _remove(self, folder: Path) -> None:
        aside = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_unused(self, folder: Path) -> bool:
        with contextlib.suppress(OSError), _open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._remove(folder)
            return True
        return False

    def entries(self) -> list[Entry]:
        """What is there, least recently used first."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                note = _note(folder)
                if folder.name.startswith(_TEMPORARY) or (note is None and not pack.is_pack(str(folder))):
                    continue
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                found.append(Entry(folder, size, folder.stat().st_mtime, _is_locked(folder), note or ""))
        return sorted(found, key=lambda entry: entry.used)

    def trim(self, max_bytes: int, spare: str = "") -> list[Entry]:
        """Remove what was used longest ago, and is not in use, until ``max_bytes`` are left; what was removed."""
        self._remove_abandoned()
        entries = self.entries()
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= max_bytes:
                break
            if entry.folder.name != spare and self._remove_unused(entry.folder):
                total -= entry.bytes
                removed.append(entry)
        return removed

    def _temporary_ones(self) -> contextlib.AbstractContextManager[None]:
        """Keeps others from taking a new folder, which is not locked yet, for an abandoned one."""
        return _locked(self.folder / "temporary.making")

    def _remove_abandoned(self) -> None:
        """Remove what the dead have left: folders that nobody writes, and files of locks that nobody has."""
        if not self.folder.is_dir():
            return
        with contextlib.suppress(OSError), self._temporary_ones():  # a read-only cache stays as it is
            for folder in self.folder.glob(f"{_TEMPORARY}*"):
                with contextlib.suppress(OSError), _open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)
            for lock in self.folder.glob("*.making"):
                with contextlib.suppress(OSError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    pass


def hold(folder: str) -> int | None:
    """Keep the pack in ``folder`` from being removed while this process or a fork of it lives; None if it is gone.

    Raises:
        CacheUnusable: the file system has no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as exc:
        os.close(descriptor)
        raise CacheUnusable(f"{folder} cannot be locked: {exc.strerror or exc}") from exc
    if _is_at(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


def _note(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _NOTE).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_locked(folder: Path) -> bool:
    try:
        with _open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def _open_locked(folder: Path, kind: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Exclusive among all processes.  The file is gone at the end: whoever has waited for it makes a new one."""
    while True:
        with open(path, "w") as file:
            fcntl.flock(file, kind)
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: str | Path) -> bool:
    """Whether an open file or folder is the one at ``path``, which may have been removed or replaced meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()
