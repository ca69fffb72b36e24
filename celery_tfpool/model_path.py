"""``tf_model_path``: which models there are, where each comes from, and what is said of it alone."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .setting_checks import Check, at_least, boolean_or_auto, objects, path, text, version

#: The name of a model whose path is given alone, without a name.
DEFAULT_MODEL = "default"
#: In the name of a pattern, and in its path.
STAR, NAME = "*", "{name}"
#: What a star stands for: it becomes a part of a path, and may come from whoever sends tasks.
_OF_A_STAR = r"(\w[\w.-]*)"


class ModelPath(NamedTuple):
    """A model by name: where it comes from, and what is said of it alone; or a pattern for many."""

    name: str
    path: str
    signature: str | None = None
    custom_objects: tuple[tuple[str, Any], ...] = ()
    weights: str | None = None
    version: str | None = None
    #: Instead of ``tf_max_batch_size``, and at most so many of ``tf_predictors``; None where nothing is said.
    max_batch_size: int | None = None
    predictors: int | None = None
    batch: bool | str = "auto"
    #: Whether the app loads it itself, in worker main, and no setting names it.
    is_deferred: bool = False

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for all models whose names are like its own."""
        return STAR in self.name

    def matching(self, name: str) -> ModelPath | None:
        """The model ``name``, if this is a pattern of it."""
        if not self.is_pattern:
            return None
        match = re.fullmatch(_OF_A_STAR.join(map(re.escape, self.name.split(STAR))), name)
        if match is None:
            return None
        weights = self.weights and self.weights.replace(NAME, match[1])
        return self._replace(name=name, path=self.path.replace(NAME, match[1]), weights=weights)


#: What the dict of one model may hold beside its path: how it is checked, and what it means.
OF_ONE_MODEL: dict[str, tuple[Check, str]] = {
    "signature": (text, "Of a SavedModel that has several: the one to predict by; else `serving_default`."),
    "custom_objects": (
        objects,
        'Classes and functions that the file names, `{"Times": "layers:Times"}`: name → where it is, or itself.',
    ),
    "weights": (
        path,
        "The file of its weights, where `path` is an architecture alone (a `.json` file, what `model.to_json()` "
        "gives), or has others.",
    ),
    "version": (
        version,
        "Of what a function makes: any text, to be changed whenever that changes. With it, the model is shared as "
        "those of files are.",
    ),
    "max_batch_size": (at_least(1), "Instead of `tf_max_batch_size`."),
    "predictors": (at_least(0), "How many of `tf_predictors` have it; 0: children have it themselves."),
    "batch": (
        boolean_or_auto,
        'Whether rows of different tasks share a call in a predictor: `"auto"` (default) where that is known to be '
        "harmless, `True` always, `False` never.",
    ),
}


#: A name and its path in a text, ``faces=models/faces.keras``; in an address a "/" or ":" comes before any "=".
_NAMED = re.compile(r"([\w.-]+(?:/\*)?)=(.+)")


def model_names(value: Any) -> tuple[str, ...]:
    """Names, in a list or in a text with commas; none for all."""
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ValueError('must be names of models: ["faces", "masks"], or "faces,masks"')
    return tuple(dict.fromkeys(names))


def from_text(text: str) -> str | dict[str, str]:
    """What is meant by ``--tf-model-path``: a path, or names and paths: ``faces=faces.keras,masks=masks.keras``."""
    named = [_NAMED.fullmatch(part) for part in text.split(",")]
    return {match[1]: match[2] for match in named if match} if all(named) else text


def model_paths(value: Any) -> tuple[ModelPath, ...]:
    """Named models, in the order in which they were given."""
    if value is None:
        return ()
    named = value if isinstance(value, Mapping) else {DEFAULT_MODEL: value}
    if not named:
        raise ValueError("must name at least one model")
    return tuple(_model_path(name, source) for name, source in named.items())


def _model_path(name: Any, source: Any) -> ModelPath:
    if not isinstance(name, str) or not name:
        raise ValueError(f"model names must be non-empty strings, not {name!r}; it")
    more: dict[str, Any] = {}
    if isinstance(source, Mapping):
        given = dict(source)
        source = given.pop("path", None)
        more = {key: _checked(name, key, value) for key, value in given.items()}
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise ValueError(
            "must be a path, 'module:function', or a dict of name -> one of these or a dict with a path of its own"
        )
    model = ModelPath(name, os.fspath(source), **more)
    return _pattern(model) if model.is_pattern or NAME in f"{model.path}{model.weights}" else model


def _checked(name: str, key: str, value: Any) -> Any:
    if key not in OF_ONE_MODEL:
        near = difflib.get_close_matches(str(key), ["path", *OF_ONE_MODEL], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"of model {name!r} may have path, {', '.join(OF_ONE_MODEL)}, not {key!r}{hint}; it")
    try:
        return OF_ONE_MODEL[key][0](value)
    except ValueError as exc:
        raise ValueError(f"of model {name!r}: {key} {exc}; it") from exc


def _pattern(model: ModelPath) -> ModelPath:
    """A pattern, whose models each child loads itself: predictors are told of all of theirs when they start."""
    if model.name.count(STAR) != 1 or NAME not in f"{model.path}{model.weights}":
        raise ValueError(
            f"of model {model.name!r}: a pattern has one * in its name and {NAME} in its path, "
            f'{{"customers/*": "models/{NAME}.keras"}}; it'
        )
    if model.predictors:
        raise ValueError(f"of model {model.name!r}: predictors cannot have models of a pattern, only children can; it")
    if ":" in model.path and "://" not in model.path:
        raise ValueError(f"of model {model.name!r}: a pattern is for files, and not for functions; it")
    return model._replace(predictors=0)
