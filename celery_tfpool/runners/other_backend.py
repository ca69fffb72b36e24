"""Call a Keras model on another back end than TensorFlow: JAX or PyTorch.

There is no graph of TensorFlow, so no pack.  A predictor can have it, and
computes each request alone.  The numbers are
those of ``keras.Model.predict``: its ``predict_on_batch`` is called for each
batch, and inputs are checked as those of other models.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from . import installed, subclassed
from .convert import arrays, is_plain, to_floatx
from .dtypes import dtype_of, numpy_dtype
from .keras_model import KerasRunner, overrides
from .protocol import CannotPack, Compiled
from .spec import Port
from .structure import leaves


class OtherBackendRunner(KerasRunner):
    """Calls of ``predict_on_batch``, one at a time: JAX keeps the state of a call in the model."""

    def __init__(self, name: str, model: Any, one_at_a_time: threading.RLock | None = None) -> None:
        super().__init__(name, model)
        self._is_declared = not subclassed.needed_by(model)
        self._one_at_a_time = one_at_a_time or threading.RLock()

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, and `predict` the model's own is Keras's; PyTorch's tensors are for Keras."""
        own = overrides(self.keras_model, "predict", "predict_on_batch", "make_predict_function")
        return not own and is_plain(x) and not any(map(_is_of_torch, leaves(x)))

    def delegate(self, x: Any, **options: Any) -> Any:
        """Let Keras itself predict."""
        with self._one_at_a_time:
            if any(map(_is_of_torch, leaves(x))) and "outputs" not in options:
                return self.keras_model.predict(x, **{**options, "verbose": 0})
            return super().delegate(x, **options)

    def only_here(self) -> str:
        """As of other models, and that it does not say what inputs it takes."""
        return super().only_here() or ("" if self._is_declared else "it does not say what inputs it takes")

    def single_call(self) -> NoReturn:
        """There is none that could be written to a file.

        Raises:
            CannotPack: always.
        """
        raise CannotPack(installed.why_unshared())

    def prepare(self, x: Any) -> tuple[Compiled, list[Any]]:
        """As `Runner.prepare`; of a model that does not say what it takes, whatever is given."""
        if self._is_declared:
            return super().prepare(x)
        import keras

        x = arrays(x)
        pack = functools.partial(keras.tree.pack_sequence_as, keras.tree.map_structure(lambda leaf: None, x))
        return self._call_of(pack), [to_floatx(leaf) for leaf in keras.tree.flatten(x)]

    def compiled(self) -> Compiled:
        """The model's own call."""
        return self._call_of(self._inputs.pack)

    def trace_layers(self, names: Sequence[str]) -> Compiled:
        """As `Runner.trace_layers`; nothing is traced."""
        call = OtherBackendRunner(self.name, self.part_of(names), self._one_at_a_time).compiled()
        return OwnCall(lambda *values: list(call.function(*values).values()), [None] * len(names), _no_graph)

    def _call_of(self, pack: Callable[[list[Any]], Any]) -> Compiled:
        def call(*values: Any) -> Any:
            with self._one_at_a_time:
                return self.keras_model.predict_on_batch(pack(list(values)))

        return OwnCall(call, [], _no_graph)


class OwnCall(Compiled):
    """A call of the model itself, of arrays and with arrays."""

    def __call__(self, *values: Any) -> Any:
        """NumPy arrays in the structure of the outputs."""
        return self.function(*values)

    def try_once(self, inputs: list[Port]) -> None:
        """Call it with a row of zeros, which compiles it; what is wrong with it is for whoever calls it next."""
        with contextlib.suppress(Exception):
            self(*(port.zeros() for port in inputs))

    def of_no_rows(self, values: list[Any]) -> Any:
        """The outputs for 0 rows: those of one row, without that."""
        import keras

        one = self(*(np.zeros((1, *value.shape[1:]), numpy_dtype(dtype_of(value))) for value in values))
        return keras.tree.map_structure(lambda value: value[:0], one)


def _is_of_torch(leaf: Any) -> bool:
    return type(leaf).__module__.partition(".")[0] == "torch"


def _no_graph() -> NoReturn:
    raise CannotPack("there is no graph")
