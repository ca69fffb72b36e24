"""Settings: defaults, checks, precedence, and words for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_tfpool import settings, settings_page
from celery_tfpool.errors import SettingsError
from celery_tfpool.model_path import ModelPath
from celery_tfpool.settings import Settings


def test_defaults() -> None:
    """Nothing has to be set."""
    assert Settings() == settings.check({}, {})


def test_several_models() -> None:
    """A dict names its models; a lone path has the name "default"."""
    assert (ModelPath("a", "x.keras"), ModelPath("b", "m:f")) == settings.read(
        {"tf_model_path": {"a": "x.keras", "b": "m:f"}}, {}
    ).model_path
    assert (ModelPath("default", "x.keras"),) == settings.read({"tf_model_path": Path("x.keras")}, {}).model_path


def test_environment_goes_before_configuration() -> None:
    found = settings.read({"tf_model_path": "conf.keras"}, {"CELERY_TF_MODEL_PATH": "env.keras"})
    assert (ModelPath("default", "env.keras"),) == found.model_path


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("faces=a.keras", {"faces": "a.keras"}),
        ("faces=a.keras,masks-2=/b/c=d.keras", {"faces": "a.keras", "masks-2": "/b/c=d.keras"}),
        ("a,b.keras", {"default": "a,b.keras"}),
        ("faces=a.keras,b.keras", {"default": "faces=a.keras,b.keras"}),
        ("s3://bucket/run=1/a.keras", {"default": "s3://bucket/run=1/a.keras"}),
        ("./run=1.keras", {"default": "./run=1.keras"}),
        ("proj:make", {"default": "proj:make"}),
    ],
)
def test_names_in_a_text(text: str, models: dict[str, str]) -> None:
    """As the command line and the environment have them."""
    found = settings.read({}, {"CELERY_TF_MODEL_PATH": text})
    assert tuple(map(ModelPath, models, models.values())) == found.model_path


@pytest.mark.parametrize("names", [["b", "a"], ("b", "a", "b"), "b, a"])
def test_models_that_a_worker_needs(names: Any) -> None:
    models = {"a": "x.keras", "b": {"path": "y.keras", "batch": True}, "c": "z.keras"}
    conf = {"tf_model_path": models, "tf_models": names}
    assert (ModelPath("b", "y.keras", batch=True), ModelPath("a", "x.keras")) == settings.read(conf, {}).model_path
    assert (ModelPath("c", "z.keras"),) == settings.read(conf, {"CELERY_TF_MODELS": "c"}).model_path


def test_how_one_model_is_loaded() -> None:
    model = {"path": "x.h5", "signature": "embed", "custom_objects": {"Times": "layers:Times", "Custom": ModelPath}}
    (found,) = settings.read({"tf_model_path": {"a": model}}, {}).model_path
    assert ("embed", (("Times", "layers:Times"), ("Custom", ModelPath))) == (found.signature, found.custom_objects)
    assert hash(found)


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ({"signature": 1}, "of model 'a': signature must be a text"),
        ({"custom_objects": ["Times"]}, "of model 'a': custom_objects must be a dict of name -> class or function"),
        (
            {"custom_objects": {"Times": "Times"}},
            "class or function, or 'module:name'",
        ),
    ],
)
def test_how_no_model_is_loaded(said: dict[str, Any], allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.check({"tf_model_path": {"a": {"path": "x.h5", **said}}}, {})
    assert allowed in str(caught.value)


def test_models_that_nobody_has() -> None:
    conf = {"tf_model_path": {"a": "x.keras", "b": "y.keras"}, "tf_models": ["a", "d"]}
    with pytest.raises(SettingsError, match="tf_models: tf_model_path has no 'd', it has a, b"):
        settings.check(conf, {})


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("tf_model_path", 3, "must be a path, 'module:function', or a dict of name -> one of these"),
        ("tf_model_path", {}, "must name at least one model"),
        ("tf_model_path", {1: "x"}, "model names must be non-empty strings"),
        ("tf_model_load", "soon", "must be 'lazy' or 'eager'"),
        ("tf_startup_timeout", 0, "must be a number of seconds > 0"),
        ("tf_startup_timeout", True, "must be a number of seconds > 0"),
        ("tf_startup_timeout", float("nan"), "must be a number of seconds > 0"),
        ("tf_fork_guard", "off", "must be 'spawn' or 'error'"),
        ("tf_intra_op_parallelism", -1, "must be a whole number >= 0 (0 = auto)"),
        ("tf_inter_op_parallelism", 1.5, "must be a whole number >= 0 (0 = auto)"),
        ("tf_safe_mode", "no", "must be True or False"),
        ("tf_models", 3, "must be names of models"),
        ("tf_models", ["a", ""], "must be names of models"),
        ("tf_preimport", "yes", 'must be True, False or "auto"'),
    ],
)
def test_wrong_value(key: str, value: Any, allowed: str) -> None:
    """Names the setting, what is allowed, and the value."""
    with pytest.raises(SettingsError) as caught:
        settings.check({key: value}, {})
    message = str(caught.value)
    assert f"{key}: " in message
    assert allowed in message
    assert f"got {value!r}" in message


def test_all_problems_at_once() -> None:
    """Wrong values and unknown keys, with the nearest right name."""
    with pytest.raises(SettingsError) as caught:
        settings.check({"tf_model_lod": "eager", "tf_safe_mode": 1, "tf_fork_guard": None, "task_acks_late": 1}, {})
    assert [
        "bad settings:",
        "  tf_model_lod: unknown (did you mean tf_model_load?)",
        "  tf_fork_guard: must be 'spawn' or 'error', got None",
        "  tf_safe_mode: must be True or False, got 1",
    ] == str(caught.value).splitlines()


def test_namespace() -> None:
    """Django's settings: CELERY_TF_…; other people's TF_… are not ours."""
    app = Celery(set_as_current=False)
    app.config_from_object({"CELERY_TF_MODEL_PATH": "x.keras", "TF_ENABLE_ONEDNN_OPTS": 1}, namespace="CELERY")
    assert (ModelPath("default", "x.keras"),) == settings.check(app.conf, {}, "CELERY").model_path

    app = Celery(set_as_current=False)
    app.config_from_object({"CELERY_TF_MODEL_PAHT": "x.keras"}, namespace="CELERY")
    with pytest.raises(SettingsError, match=r"CELERY_TF_MODEL_PAHT: unknown \(did you mean tf_model_path\?\)"):
        settings.check(app.conf, {}, "CELERY")


def test_documentation_is_fresh() -> None:
    """docs/settings.md is what the settings print: `make docs` writes it."""
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_page.markdown() == page
