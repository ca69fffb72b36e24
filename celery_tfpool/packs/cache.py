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
import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..runners.protocol import CannotPack
from ..settings import Settings
from . import manifest
from .locks import is_at, is_locked, locked, open_locked

_NOTE = "cannot-pack.json"
_TEMPORARY = "temporary-"
#: How often a pack is put where another process has put one meanwhile.
_TRIES = 10


class CacheUnusable(Exception):
    """Why the folder of the cache cannot be written: full, read-only, not allowed."""


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

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str]) -> PackCache:
        """The one that settings and environment mean: by default ``celery_tfpool`` in the user's cache, as XDG has it.

        Its folder begins with ``~`` if nobody knows where that is; `get_or_make` refuses such a folder.
        """
        home = Path(environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        return cls(Path(settings.cache_dir) if settings.cache_dir else home / "celery_tfpool", settings.cache_max_bytes)

    def get_or_make(self, key: str, make: Callable[[str], None]) -> str:
        """The folder of the pack ``key``, verified; made by ``make(empty folder)`` if it is not there or damaged.

        Raises:
            CannotPack: there can be no pack; remembered.
            CacheUnusable: it is not there and cannot be written.
        """
        if str(self.folder).startswith("~"):
            raise CacheUnusable(f"{self.folder} cannot be used: there is no home directory; set tf_cache_dir")
        self.check_trust()
        if found := self._find(key):
            return found
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.folder / f"{key}.making"):
                # Meanwhile somebody else may have made it.
                found = self._find(key) or self._make(key, make)
            self.trim(self.max_bytes, spare=key)
        except OSError as exc:
            raise CacheUnusable(f"{self.folder} cannot be used: {exc.strerror or exc}") from exc
        return found

    def check_trust(self) -> None:
        """Nobody else may have put packs there: their checksums stand beside the data.

        Raises:
            CacheUnusable: somebody else may.
        """
        try:
            facts = os.stat(self.folder)
        except OSError:  # it is to be made, or `get_or_make` says what is wrong
            return
        advice = "chmod 700 it, or set tf_cache_dir to a folder of your own, inside of it perhaps"
        if facts.st_uid not in (os.geteuid(), 0):
            raise CacheUnusable(
                f"{self.folder} cannot be trusted: it belongs to user {facts.st_uid}, not to user {os.geteuid()}; "
                "set tf_cache_dir to a folder of your own"
            )
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(facts.st_mode)
            raise CacheUnusable(f"{self.folder} cannot be trusted: others may write to it (mode {mode:o}); {advice}")

    def _find(self, key: str) -> str | None:
        folder = self.folder / key
        if (note := _note(folder)) is not None:
            raise CannotPack(note)
        if not manifest.is_pack(str(folder)):
            return None
        try:
            manifest.verify(str(folder))
        except manifest.DamagedPack:
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
                cleaning.enter_context(open_locked(temporary, fcntl.LOCK_EX))
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
        target = self.folder / key
        for _ in range(_TRIES):
            try:
                temporary.rename(target)
                return
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with contextlib.suppress(FileNotFoundError):  # damaged; who has mapped it keeps its pages
                self._remove(target)
        raise OSError(errno.EEXIST, "others put packs there all the time", str(target))

    def _remove(self, folder: Path) -> None:
        aside = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_unused(self, folder: Path) -> bool:
        with contextlib.suppress(OSError), open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            self._remove(folder)
            return True
        return False

    def entries(self) -> list[Entry]:
        """What is there, least recently used first."""
        found = []
        for folder in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                note = _note(folder)
                if folder.name.startswith(_TEMPORARY) or (note is None and not manifest.is_pack(str(folder))):
                    continue
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                found.append(Entry(folder, size, folder.stat().st_mtime, is_locked(folder), note or ""))
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
        return locked(self.folder / "temporary.making")

    def _remove_abandoned(self) -> None:
        """Remove what the dead have left: folders that nobody writes, and files of locks that nobody has."""
        if not self.folder.is_dir():
            return
        self.check_trust()
        with contextlib.suppress(OSError), self._temporary_ones():  # a read-only cache stays as it is
            for folder in self.folder.glob(f"{_TEMPORARY}*"):
                with contextlib.suppress(OSError), open_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)
            for lock in self.folder.glob("*.making"):
                with contextlib.suppress(OSError), locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
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
    if is_at(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


def _note(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / _NOTE).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _empty(folder: Path) -> None:
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()
