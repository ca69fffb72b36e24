"""All models of a process by name, those that a pattern stands for too, and how many of them stay loaded."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import UnknownModelError
from ..model_path import ModelPath
from ..packs.cache import PackCache
from ..packs.fingerprint import Content
from ..runners.location import BadSource, check
from ..runners.options import LoadOptions
from ..runners.protocol import Predicts
from .handle import Handle
from .lazy_model import AroundLoad, LazyModel, load_plainly


class Models:
    """The models of one process, by name.

    Args:
        packs: name → folder of its pack.
        contents: name → what its files must hold.
        remote: name → the predictors that have it.
        cache: where packs of models that a pattern stands for are found, and made; None: they have none.
        code: what code these depend on, as `fingerprint.code_facts` has it; None: what this process has imported.
        max_loaded: how many are loaded at a time; 0: all that are used.
    """

    def __init__(
        self,
        model_path: Sequence[ModelPath],
        *,
        safe_mode: bool,
        packs: Mapping[str, str] = MappingProxyType({}),
        contents: Mapping[str, Content] = MappingProxyType({}),
        remote: Mapping[str, Predicts] = MappingProxyType({}),
        cache: PackCache | None = None,
        code: tuple[list[str], list[str]] | None = None,
        max_loaded: int = 0,
        around_load: AroundLoad = load_plainly,
        interrupts: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._patterns = [model for model in model_path if model.is_pattern]
        self._safe_mode, self._cache, self._code, self._max_loaded = safe_mode, cache, code, max_loaded
        self._around_load, self._interrupts = around_load, interrupts
        self._lock = threading.Lock()
        self._lazy = {
            model.name: self._lazy_model(
                model,
                pack=None if packs.get(model.name) == os.path.expanduser(model.path) else packs.get(model.name),
                content=contents.get(model.name),
                remote=remote.get(model.name),
            )
            for model in model_path
            if not model.is_pattern
        }
        # Who asks for none by name means one of the settings, if there are any.
        named = [model.name for model in model_path if not model.is_deferred] or list(self._lazy)
        self._only = named[0] if len(named) == 1 else None

    def _lazy_model(self, model: ModelPath, **more: Any) -> LazyModel:
        return LazyModel(
            model.name,
            model.path,
            safe_mode=self._safe_mode,
            options=LoadOptions.of(model),
            around_load=self._around_load,
            interrupts=self._interrupts,
            make_room=self._make_room,
            **more,
        )

    def get(self, name: str | None = None) -> Handle:
        """The handle of ``name``, or of the only model.

        Raises:
            UnknownModelError: no such name, or no name and several models.
        """
        lazy = self.find(name)
        return Handle(lambda: lazy)

    def find(self, name: str | None = None) -> LazyModel:
        """The model ``name``, or the only one.

        Raises:
            UnknownModelError: no such name, no file that a pattern means by it, or no name and several models.
        """
        wanted = name or self._only or ""
        if (found := self._lazy.get(wanted)) is not None:
            return found
        why = ""
        for model in filter(None, (pattern.matching(wanted) for pattern in self._patterns)):
            try:
                check(model.path, safe_mode=self._safe_mode, weights=model.weights)
            except BadSource as exc:
                why = f", where {wanted!r} means {model.path!r}: {exc}"
                continue
            with self._lock:
                return self._lazy.setdefault(wanted, self._lazy_model(model, **self._of_pattern))
        known = [*self._lazy, *(pattern.name for pattern in self._patterns)]
        raise UnknownModelError(name, (", ".join(known) or "nothing (it is not set)") + why)

    def __len__(self) -> int:
        return len(self._lazy) + len(self._patterns)

    def load_all(self) -> None:
        """Load every model that is not loaded yet, but for those that a pattern stands for.

        Raises:
            ModelLoadError: of the first that fails.
        """
        for lazy in list(self._lazy.values()):
            lazy.who_predicts()

    @property
    def _of_pattern(self) -> dict[str, Any]:
        return {"cache": self._cache, "code": self._code, "is_of_pattern": True}

    def _make_room(self, newest: LazyModel) -> None:
        """Let go what was used longest ago, so that ``newest`` may be loaded."""
        if not self._max_loaded:
            return
        loaded = sorted((lazy for lazy in list(self._lazy.values()) if lazy.loaded), key=lambda lazy: lazy.used)
        too_many = len(loaded) + (not newest.loaded) - self._max_loaded
        for lazy in loaded:
            if too_many > 0 and lazy is not newest and lazy.let_go():
                too_many -= 1

    def status(self) -> dict[str, dict[str, Any]]:
        """By name: whether it is loaded, from its pack or not, and in how many seconds."""
        return {
            name: {"loaded": lazy.loaded, "packed": lazy.packed, "load_time": lazy.load_time}
            for name, lazy in list(self._lazy.items())
            if lazy.loaded or not lazy.is_of_pattern
        }
