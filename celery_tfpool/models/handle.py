"""The handle that `get_model` returns.

A handle is a name until its first use; then the model is loaded, once, in the
process that used it.  ``predict`` gives the numbers of ``keras.Model.predict``
through one compiled function instead of a new data pipeline per call
(0.3 ms instead of 60, see ``benchmarks/``).  Whatever the compiled function
cannot take goes to Keras itself.

Knows nothing of Celery or of where the model runs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..runners import tf_state
from ..runners.convert import holds_arrays, rows_of, to_tensors
from ..runners.other_backend import OtherBackendRunner
from .lazy_model import LazyModel

#: Inspect, asyncio, json, notebooks and friends ask for these, of whatever they meet.
ASKED_OF_ANYTHING = ("__", "_is_coroutine", "_partialmethod", "_repr_", "_ipython_")


class Handle:
    """A model by name.  `predict` is Keras's, without its overhead; all else is the Keras model itself.

    The model is loaded at the first use, in the process of that use.
    """

    __slots__ = ("_find",)
    _find: Callable[[], LazyModel]

    def __init__(self, find: Callable[[], LazyModel]) -> None:
        object.__setattr__(self, "_find", find)

    @property
    def _lazy(self) -> LazyModel:
        return self._find()

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        outputs: str | Sequence[str] | None = None,
        **others: Any,
    ) -> Any:
        """Predictions for ``x``, with the numbers of ``keras.Model.predict``.

        Args:
            x: rows along the first dimension: an array, tensor or (nested)
                list for a model with one input; a list, tuple or dict of them
                for several.  Numbers are cast to the input's dtype as Keras
                does.  0 rows give 0 rows.
            batch_size: rows per compiled call; 32 as in Keras, and all for a
                SavedModel, whose first dimension need not be that of rows.
                With predictors ``tf_max_batch_size`` decides instead, where
                rows of several requests share a call.
            verbose: accepted for Keras's sake; no progress bar is drawn.
            steps, callbacks: as in Keras; with either, and for a dataset,
                generator or the like as ``x``, Keras itself predicts.
            outputs: the name of a layer inside a functional or sequential
                model: its output is wanted, and not that of the model; or a
                list of names, for a list of outputs.
            others: whatever a ``predict`` of the user's own takes, of a class
                of Keras model or of any object that "module:function" returned.

        Returns:
            NumPy arrays in the structure of the model's outputs; for a
            SavedModel with several outputs, a dict by their names.

        Raises:
            InvalidInputError: shape, dtype, number or names of the inputs do
                not fit, or there is no such layer; says what was expected and what came.
            ModelLoadError: the first use failed to load the model.
            PredictionError, PredictionTimeout, PredictorOverloaded, PredictorUnavailable:
                a predictor gave no answer; the base of all is `TFPoolError`.
        """
        runner = self._lazy.who_predicts()
        is_plain = steps is None and callbacks is None and not others and runner.takes(x)
        if outputs is not None and is_plain and not runner.layers:  # a pack that was made without, say
            self._lazy.keras_model("predict(outputs=…)")
            runner = self._lazy.original()
        if is_plain:
            with tf_state.eagerly():
                return runner.predict(x, batch_size, outputs)
        options = {"batch_size": batch_size, "verbose": verbose, "steps": steps, "callbacks": callbacks, **others}
        if outputs is not None:
            options["outputs"] = outputs
        return self._lazy.original().delegate(x, **options)

    def predict_on_batch(self, x: Any) -> Any:
        """As ``keras.Model.predict_on_batch``: `predict` with all rows in one call.

        Raises:
            Exception: as `predict`.
        """
        runner = self._lazy.who_predicts()
        if not runner.takes(x):
            return self.keras_model.predict_on_batch(x)
        with tf_state.eagerly():
            return runner.predict(x, rows_of(x))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the Keras model's own call gives: tensors of TensorFlow.

        Of arrays, ``model(x)`` and ``model(x, training=False)`` are computed as `predict` computes them.  Anything else
        loads the Keras model: tensors, ``training=True``, a call that is recorded for a gradient or is part of a graph.

        Raises:
            Exception: as `predict`.
        """
        if len(args) == 1 and holds_arrays(args[0]) and kwargs in ({}, {"training": False}, {"training": None}):
            runner = self._lazy.who_predicts()
            is_others = self._lazy.is_whole or isinstance(runner, OtherBackendRunner)
            if not is_others and runner.takes(args[0]) and not tf_state.is_recording():
                return to_tensors(runner.predict(args[0], rows_of(args[0])))
        return self._lazy.keras_model("__call__")(*args, **kwargs)

    @property
    def keras_model(self) -> Any:
        """The Keras model itself, loaded in this process, for functions that take one (``clone_model``, say).

        Raises:
            AttributeError: it is a pack or a SavedModel, which is none.
        """
        return self._lazy.keras_model("keras_model")

    def __getattr__(self, name: str) -> Any:
        if name.startswith(ASKED_OF_ANYTHING):
            raise AttributeError(name)
        model = self._lazy.keras_model(name)
        if name == "quantize":  # makes another function of the model, so Keras forgets its compiled one too
            self._lazy.original().forget()
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._lazy.keras_model(name), name, value)

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        try:
            model = self._lazy.keras_model("__deepcopy__")
        except AttributeError:  # a pack or a SavedModel: nothing of it can be changed
            return self
        return copy.deepcopy(model, memo)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the handle of model {self._lazy.name!r} belongs to this process and cannot be pickled; "
            "send the name, and call get_model(name) where it is needed"
        )

    def __repr__(self) -> str:
        state = "loaded" if self._lazy.loaded else "in predictors" if self._lazy.remote else "not loaded"
        return f"<model {self._lazy.name!r} from {self._lazy.path!r}, {state}>"
