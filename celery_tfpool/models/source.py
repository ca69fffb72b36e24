"""Where one model comes from, and how it is loaded in this process: mapped from its pack, or built from its own files.

Knows nothing of when that is done, or of what becomes of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field

from ..errors import ModelLoadError, TFPoolError
from ..packs import fingerprint
from ..packs.attach import PackRunner, load
from ..packs.build import find_or_make
from ..packs.cache import CacheUnusable, PackCache, hold
from ..packs.fingerprint import Content
from ..runners.convert import short
from ..runners.location import BadSource
from ..runners.options import NOTHING, LoadOptions
from ..runners.protocol import CannotPack, Runner
from . import words

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Source:
    """What a model is loaded from."""

    name: str
    path: str
    _: KW_ONLY
    safe_mode: bool
    options: LoadOptions = NOTHING
    #: The folder of its pack, if it has one.
    pack: str | None = None
    #: What its files must hold; None: whatever they do.
    content: Content | None = None
    #: Where its pack is found, or made, by the process that loads it; None: ``pack`` says all.
    cache: PackCache | None = None
    #: The code that custom classes may come from, as `fingerprint.code_facts` has it; None: of this process.
    code: tuple[list[str], list[str]] | None = None
    #: Whether a pattern stands for it: then whoever loads it takes what is there.
    is_of_pattern: bool = False
    #: What may interrupt a load without being the load's failure (a time limit).
    interrupts: tuple[type[BaseException], ...] = ()
    #: Keeps the pack of ``cache`` from being removed.
    _held: int | None = field(default=None, init=False)

    def load_first(self) -> Runner:
        """From its pack, if it has one or may have one, else from its own files.

        Raises:
            ModelLoadError: with the reason, and never anything else that
                loading raised, except what ends the process or the task.
        """
        if self.pack:
            return self._load_pack(self.pack)
        return self._find_pack(self.cache) if self.cache is not None else self.load_plainly()

    def _load_pack(self, pack: str) -> Runner:
        try:
            return PackRunner(self.name, pack)
        except self.interrupts:
            raise
        except Exception as exc:  # whatever is wrong with the pack, there is the model
            logger.warning(
                "model %r: its pack %s cannot be used (%s: %s); loading %s instead, as a copy of this process's own",
                self.name,
                pack,
                type(exc).__name__,
                short(exc),
                self.path,
            )
            return self.load_plainly()

    def _find_pack(self, cache: PackCache) -> Runner:
        """From its pack in ``cache``, which is made here if nobody has."""
        passed_on: tuple[type[BaseException], ...] = (TFPoolError, *self.interrupts)
        try:
            found = find_or_make(
                self.name,
                self.path,
                cache,
                safe_mode=self.safe_mode,
                options=self.options,
                code=self.code,
                interrupts=self.interrupts,
            )
            self._held = hold(found.folder)
        except passed_on:
            raise
        except (CannotPack, CacheUnusable) as exc:
            logger.info("model %r from %r is not shared: %s", self.name, self.path, exc)
            return self.load_plainly()
        except Exception as exc:  # what is wrong with the model itself is said by who loads it
            logger.warning("model %r from %r is not shared: %s", self.name, self.path, words.of_failure(exc))
            return self.load_plainly()
        if self._held is None:  # removed as soon as it was made
            return self.load_plainly()
        self.pack, self.content = found.folder, found.content
        return self._load_pack(found.folder)

    def load_plainly(self) -> Runner:
        """From its own files, as a copy of this process's own.

        Raises:
            ModelLoadError: as `load_first`.
        """
        with self._failing():
            return self.load_unchanged()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Make a `ModelLoadError` of whatever comes out of the user's file or function."""
        passed_on: tuple[type[BaseException], ...] = (TFPoolError, *self.interrupts)
        try:
            yield
        except passed_on:
            raise
        except Exception as exc:
            raise ModelLoadError(self.name, self.path, words.of_failure(exc)) from exc

    def load_unchanged(self, *, compiled: bool = False) -> Runner:
        """Of the files that were there when the worker started.

        Args:
            compiled: with loss, metrics and optimizer, too.

        Raises:
            BadSource: there is no such model, or its files have changed.
            Exception: whatever comes out of the user's file or function.
        """
        self._refuse_change()
        runner = load(self.name, self.path, safe_mode=self.safe_mode, options=self.options, compiled=compiled)
        self._refuse_change()
        return runner

    def _refuse_change(self) -> None:
        """Processes of one worker must not answer with different versions of a model.

        Raises:
            BadSource: its files have changed.
        """
        files = self.options.files(self.path)
        if self.content is None or self.is_of_pattern or not all(map(os.path.exists, files)):
            return
        if (present := fingerprint.has_changed(files, self.content)) is not None:
            raise BadSource(
                f"its files have changed since the worker started (fingerprint {present.short}, at the start "
                f"{self.content.short}), and other processes of this worker have the old ones. Restart the worker to "
                "use the new ones, or put the old ones back"
            )

    def forget(self) -> None:
        """A pack that was found here is used no more: its file may be another the next time."""
        if self.cache is not None:
            self.pack = self.content = None
        if self._held is not None:
            os.close(self._held)
            self._held = None
