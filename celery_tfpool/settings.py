"""Settings: each ``tf_*`` key with its default, its check and its help.

Reads any mapping and knows neither Celery nor TensorFlow.  All problems of a
configuration are reported at once, and before anything is started.
`settings_page` prints the documentation from the same lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import SettingsError
from .model_path import ModelPath, from_text, model_names, model_paths
from .setting_checks import (
    Check,
    at_least,
    boolean,
    boolean_or_auto,
    duration,
    folder,
    one_of,
    port_or_none,
    seconds,
    thread_count,
)

PREFIX = "tf_"
#: Of the environment, which go before the app's configuration.
MODEL_PATH_VARIABLE, MODELS_VARIABLE = "CELERY_TF_MODEL_PATH", "CELERY_TF_MODELS"
#: How close a key must be to one of ours, 0 to 1, to be taken for a slip.
_CLOSE = 0.75


def setting(default: Any, check: Check, description: str) -> Any:
    """A field of `Settings`: default, check and help in one line."""
    return field(default=default, metadata={"check": check, "help": description})


@dataclass(frozen=True)
class Settings:
    """The checked ``tf_*`` settings of one app.  Times are seconds."""

    model_path: tuple[ModelPath, ...] = setting(
        (),
        model_paths,
        'The model: a `.keras` or `.h5` file, a SavedModel folder, or `"module:function"` returning a Keras '
        "model, or any object with a `predict()` of its own; or a dict of name → one of these, or → a dict with a "
        '`path` and more of its own, see below. A name may be a pattern: `{"customers/*": "models/{name}.keras"}`. '
        f"`--tf-model-path` on the worker's command line goes before `{MODEL_PATH_VARIABLE}` in the environment, and "
        "that before the app's configuration; both are a path, or `faces=faces.keras,masks=masks.keras`.",
    )
    models: tuple[str, ...] = setting(
        (),
        model_names,
        "Names of those models that this worker needs, where not all: files of the others are not looked for. "
        f"`--tf-models=faces,masks` on the worker's command line and `{MODELS_VARIABLE}` in the environment go before.",
    )
    model_load: str = setting(
        "lazy",
        one_of("lazy", "eager"),
        '`"lazy"`: a child loads a model at its first use; `"eager"`: before the child takes tasks.',
    )
    max_loaded_models: int = setting(
        0,
        at_least(0),
        "The most models that a child has loaded at a time; beyond, the one that was used longest ago is let go, and "
        "loaded again when it is used again. One whose Keras model was asked for (`fit`, `keras_model`) stays. 0: all.",
    )
    startup_timeout: float = setting(
        120.0,
        seconds,
        "Seconds until a child must be ready, and a model loaded. A larger `worker_proc_alive_timeout` is respected.",
    )
    preimport: bool | str = setting(
        "auto",
        boolean_or_auto,
        "Import Keras and what it runs on, TensorFlow mostly, in the worker's main process, before the fork: children, "
        "replacements too, start with them in place and share their memory. Imported only, never initialised there. "
        "Where predictors have all models, the process that they are forked from imports them instead, and worker main "
        'and children do not. `"auto"`: in a worker that has models; `True`: also in one that has none, whose tasks '
        "load theirs themselves.",
    )
    defer_loading: bool = setting(
        True,
        boolean,
        "`keras.models.load_model` and `tf.saved_model.load` return at once in the worker's main process, while it "
        "imports the app; the model is loaded where it is used, as those of `tf_model_path` are. `False`: they load "
        "there, and `tf_fork_guard` has a say. To be set above the line that loads a model.",
    )
    share_weights: bool = setting(
        True,
        boolean,
        "Convert each model once into a *pack*, files that all processes map: one copy of the weights, and no Keras "
        "model to build. `False`: each child loads a copy of its own, as it does of any model of Keras on JAX or "
        "PyTorch.",
    )
    cache_dir: str | None = setting(
        None,
        folder,
        "Where packs are kept; by default `celery_tfpool` in `$XDG_CACHE_HOME` or `~/.cache`.",
    )
    cache_max_bytes: int = setting(
        20 * 2**30,
        at_least(0, " of bytes"),
        "Bytes that packs may take there; beyond, those that nobody uses and were used longest ago are removed.",
    )
    fork_guard: str = setting(
        "spawn",
        one_of("spawn", "error"),
        'What to do when TensorFlow (or JAX, or CUDA) already runs in the worker\'s main process: `"spawn"` the '
        'children (Celery 5.7 or newer), or `"error"`: refuse to start. Both name the line that initialised it.',
    )
    intra_op_parallelism: int = setting(
        0,
        thread_count,
        "Threads inside one operation, for each child, also of JAX and PyTorch; 0 = usable cores ÷ children. For each "
        "predictor as well, 0 = usable cores ÷ predictors; where it is faster, they compute as many batches at a time.",
    )
    inter_op_parallelism: int = setting(
        0, thread_count, "Operations at the same time, for each child; 0 = usable cores ÷ children."
    )
    predictors: int = setting(
        0,
        at_least(0),
        "Processes that predict for all children and batch their requests; children then need no TensorFlow runtime. "
        "0: each child predicts by itself. Of one model: how many of them have it; 0: children have it themselves.",
    )
    max_batch_size: int = setting(
        32,
        at_least(1),
        "Rows per batch in a predictor at most; larger requests are split. Fewer where the predictor finds, when it "
        "starts, that more only make a long call longer. 1: no batching, each request is computed alone.",
    )
    batch_timeout: float = setting(
        0.0,
        duration,
        "Seconds that a lone request waits for company, unless all who have asked so far wait too; 0: it goes as soon "
        "as the predictor is free.",
    )
    max_enqueued_batches: int = setting(
        10,
        at_least(1),
        "Batches' worth of rows that may wait in a predictor, of a larger request, which takes turns with others, one; "
        "a request beyond that fails with `PredictorOverloaded`, which tasks can `autoretry_for`.",
    )
    max_request_bytes: int = setting(
        256 * 2**20,
        at_least(1, " of bytes"),
        "The most bytes of one request's inputs to a predictor. A larger one is refused before it is sent, and by the "
        "predictor before it is received.",
    )
    response_timeout: float = setting(
        120.0,
        seconds,
        "Seconds that a child waits for a predictor, restarts included; then `PredictionTimeout`. A predictor that "
        "computes a single batch for longer is taken to be stuck, and replaced.",
    )
    metrics_port: int | None = setting(
        None,
        port_or_none,
        "Port at which the worker serves metrics for Prometheus; needs the extra `prometheus`. None: it does not.",
    )
    safe_mode: bool = setting(True, boolean, "Refuse model files that carry Python code (Keras's `safe_mode`).")

    @property
    def of_predictors(self) -> list[ModelPath]:
        """The models that predictors have."""
        return [model for model in self.model_path if self.predictors and model.predictors != 0]


KEYS = tuple(PREFIX + f.name for f in fields(Settings))


def read(conf: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings in ``conf``, before which two variables of ``environ`` go.

    Raises:
        SettingsError: names every wrong value, and what is allowed.
    """
    values, problems = {}, []
    for f in fields(Settings):
        key, value = PREFIX + f.name, conf.get(PREFIX + f.name, f.default)
        if f.name == "model_path":
            text = environ.get(MODEL_PATH_VARIABLE)
            value = from_text(text) if text else (value if value != () else None)
        elif f.name == "models":
            value = environ.get(MODELS_VARIABLE) or value
        try:
            values[f.name] = f.metadata["check"](value)
        except ValueError as exc:
            problems.append(f"{key}: {exc}, got {value!r}")
    if not problems and values["models"]:
        wanted = {model.name: model for model in values["model_path"]}
        known = ", ".join(wanted) or "nothing"
        for name in (name for name in values["models"] if name not in wanted):
            problems.append(f"tf_models: tf_model_path has no {name!r}, it has {known}")
        values["model_path"] = tuple(wanted[name] for name in values["models"] if name in wanted)
    _raise(problems)
    return Settings(**values)


def unknown(keys: Iterable[str], namespace: str = "") -> list[str]:
    """One problem for each of ``keys`` that is close to one of ours: others that begin with ``tf_`` are the user's own.

    Ours begin with ``tf_``, or with the app's namespace before that
    (``CELERY_TF_`` in Django's settings).
    """
    problems = []
    start = f"{namespace}_{PREFIX}".lower() if namespace else PREFIX
    for key in sorted(keys):
        if namespace and key.lower().startswith(start):
            name = key[len(namespace) + 1 :].lower()
        elif key.startswith(PREFIX):
            name = key
        else:
            continue
        if name not in KEYS:
            near = difflib.get_close_matches(name[len(PREFIX) :], [f.name for f in fields(Settings)], 1, _CLOSE)
            if near:
                problems.append(f"{key}: unknown (did you mean {PREFIX}{near[0]}?)")
    return problems


def check(conf: Mapping[str, Any], environ: Mapping[str, str], namespace: str = "") -> Settings:
    """`read`, with unknown keys among the problems.

    Raises:
        SettingsError: every wrong value and unknown key of ``conf``.
    """
    problems = unknown(conf, namespace)
    try:
        settings = read(conf, environ)
    except SettingsError as exc:
        problems += [line.strip() for line in exc.args[0].splitlines()]
    _raise(problems)
    return settings


def _raise(problems: list[str]) -> None:
    if problems:
        raise SettingsError("\n".join(f"  {line}" for line in problems))
