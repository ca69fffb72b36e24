"""Every error raised on purpose.

An error keeps its facts in ``args`` and builds its text from them, so it
survives pickle and Celery's JSON result backend, which both rebuild an
exception as ``cls(*args)``.
"""

from __future__ import annotations


class TFPoolError(Exception):
    """Base of all errors of celery_tfpool."""

    template = "{0}"

    def __str__(self) -> str:
        try:
            return self.template.format(*self.args)
        except Exception:  # rebuilt by somebody with other arguments, of whatever kind
            return ", ".join(map(str, self.args))


class SettingsError(TFPoolError):
    """One or more ``tf_*`` settings are wrong; nothing was started.

    Args: one line for each wrong setting, joined by newlines.
    """

    template = "bad settings:\n{0}"


class ForkGuardError(TFPoolError):
    """TensorFlow, or what Keras runs on, runs in the worker's main process, so forking would hang its children.

    Args: who initialised it, why children cannot be spawned instead, what it is.
    """

    template = (
        "{2} was initialised in the worker's main process by {0}. "
        "It does not survive fork(): predict would wait for ever in every child. {1}. "
        "Load the model in the task instead: set tf_model_path and call celery_tfpool.get_model() there"
    )


class UnknownModelError(TFPoolError, LookupError):
    """`get_model` was asked for a name that ``tf_model_path`` does not have.

    Args: the name asked for (None for "the only one"), the names there are, comma separated.
    """

    template = "no model named {0!r}; tf_model_path, of which tf_models may take a part, has: {1}"


class ModelLoadError(TFPoolError):
    """A model could not be loaded in this process.

    Args: the model's name, where it comes from, the reason.
    """

    template = "could not load model {0!r} from {1!r}: {2}. Try it outside the worker: celery tfpool check {1}"


class PredictionError(TFPoolError):
    """A predictor could not compute this request; others of the same batch are not concerned.

    Args: the model's name, the reason.
    """

    template = "model {0!r} could not predict: {1}"


class PredictorUnavailable(TFPoolError):
    """No predictor can answer this request: two have died while they computed it, or there is none to be asked.

    Args: the model's name, what became of the predictor.
    """

    template = "no predictor could answer for model {0!r}: {1}"


class PredictorOverloaded(TFPoolError):
    """More requests wait for a predictor than ``tf_max_enqueued_batches`` allows; try again later.

    Args: the model's name, requests that wait, the setting.
    """

    template = (
        "the predictor of model {0!r} has {1} requests waiting, as many as tf_max_enqueued_batches = {2} allows. "
        "Let the task try again: autoretry_for=(PredictorOverloaded,), retry_backoff=True"
    )


class PredictionTimeout(TFPoolError, TimeoutError):
    """No answer came from a predictor in time; the request is given up, and not computed if it has not begun.

    Args: the model's name, seconds, the limit: ``tf_response_timeout``, or one of the task's own.
    """

    template = "no answer from a predictor for model {0!r} within {1:g} s ({2})"

    def __init__(self, *args: object) -> None:
        self.args = args  # of three, OSError would keep two


class InvalidInputError(TFPoolError, ValueError):
    """What was given to ``predict`` does not fit the model.

    Args: the model's name, what it expects, what came.
    """

    template = "model {0!r} expects {1}; got {2}"
