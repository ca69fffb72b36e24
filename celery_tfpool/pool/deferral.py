"""What the app loads while worker main imports it becomes a model of the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .._celery import known_apps
from ..errors import SettingsError
from ..model_path import ModelPath
from ..models import deferred
from ..models.stand_in import Deferred
from ..settings import Settings

#: The setting that says no.
_SETTING = "tf_defer_loading"


def arm() -> None:
    """From now on defer what this process loads, unless an app says that it does not want that."""
    deferred.arm(_is_off)


def _is_off() -> bool:
    # Asked for a key, an app that has no configuration yet does not look for one.
    return any(_SETTING in app.conf and not app.conf[_SETTING] for app in known_apps())


def with_deferred(settings: Settings) -> tuple[Settings, Sequence[Deferred]]:
    """``settings`` with the models that the app has loaded so far among those of ``tf_model_path``, and these.

    Raises:
        SettingsError: they were loaded before it was known that they must not be deferred.
    """
    found = deferred.models(taken=[model.name for model in settings.model_path])
    if found and not settings.defer_loading:
        lines = "\n".join(f"  {one.line}" for one in found)
        raise SettingsError(
            f"  {_SETTING} is False, which was not known yet when these lines loaded a model; set it above them, "
            f"app.conf.{_SETTING} = False:\n{lines}"
        )
    models = tuple(ModelPath(one.name, one.path, custom_objects=one.custom_objects, is_deferred=True) for one in found)
    return replace(settings, model_path=(*settings.model_path, *models)), found
