"""Predict with a loaded model: sort out the inputs, call in batches, join the outputs.

`Runner` is what is the same for all forms of a model.  How a form is compiled and called is for its subclasses in
`keras_model`, `subclassed`, `saved_model`, `any_object` and `packs.attach`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import InvalidInputError
from .convert import Misfit, concatenate, is_plain, to_numpy
from .dtypes import dtype_of
from .inputs import Inputs, Named
from .layers import InnerCalls, Wanted
from .rows import check_batch_size, count_rows, rows_between
from .spec import Port, describe

#: Rows of one compiled call when the caller does not say, as in Keras.
BATCH_SIZE = 32

#: Gives the GraphDef of a traced function.
GraphDefOf = Callable[[], Any]


def graph_def_of(concrete: Any) -> GraphDefOf:
    """Gives the GraphDef of a concrete function, with the shapes of its tensors, and a "_Retval" for each output."""

    def graph_def() -> Any:
        made = concrete.graph.as_graph_def(add_shapes=True)
        for number, output in enumerate(concrete.outputs):
            made.node.add(name=f"_retval_{number}", op="_Retval", input=[output.name])
        return made

    return graph_def


class CannotPack(Exception):
    """Why a model cannot be made into a pack, in words that follow its name."""


@dataclass(frozen=True)
class Compiled:
    """A traced function of flat arguments, and the structure of its symbolic outputs."""

    function: Callable[..., Any]
    outputs: Any
    graph_def: GraphDefOf

    def operations(self) -> set[str]:
        """Names of all operations of the graph, in functions that it calls as well."""
        graph_def = self.graph_def()
        functions = (node.op for function in graph_def.library.function for node in function.node_def)
        return {*(node.op for node in graph_def.node), *functions}

    def __call__(self, *values: Any) -> Any:
        """NumPy arrays in the structure of the outputs.

        Args:
            values: an array or tensor for each input, of its dtype and rank.
        """
        import tensorflow as tf

        return to_numpy(self.function(*map(tf.convert_to_tensor, values)))

    def in_batches(self, values: list[Any], rows: int, batch_size: int) -> Any:
        """The outputs for ``rows`` rows, computed so many at a time."""
        if rows == 0:
            return self.of_no_rows(values)
        if rows <= batch_size:
            return self(*values)
        starts = range(0, rows, batch_size)
        return concatenate([self(*rows_between(values, start, start + batch_size)) for start in starts])

    def whole(self, values: list[Any]) -> Any:
        """The outputs for all of ``values`` at once, whatever their first dimension is."""
        import keras

        are_rows = all(symbol.shape.rank and symbol.shape[0] is None for symbol in keras.tree.flatten(self.outputs))
        rows = [value.shape[0] for value in values if value.shape]
        return self.of_no_rows(values) if are_rows and rows and not any(rows) else self(*values)

    def of_no_rows(self, values: list[Any]) -> Any:
        """The outputs for 0 rows, which some of TensorFlow's kernels refuse or get wrong: none of them is asked."""
        import keras
        import tensorflow as tf

        if all(symbol.shape[1:].is_fully_defined() for symbol in keras.tree.flatten(self.outputs)):
            return keras.tree.map_structure(
                lambda symbol: np.empty((0, *symbol.shape[1:]), symbol.dtype.as_numpy_dtype), self.outputs
            )
        # Sizes that depend on the input's: those of one row.
        one = self(*(tf.zeros([1, *value.shape[1:]], dtype_of(value)) if value.shape else value for value in values))
        return keras.tree.map_structure(lambda value: value[:0] if value.shape else np.empty(0, value.dtype), one)


class Predicts(Protocol):
    """Whoever predicts with a model: this process (`Runner`), or others for it."""

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data, and not a dataset or the like."""

    def predict(self, x: Any, batch_size: int | None, outputs: Wanted | None = None) -> Any:
        """NumPy arrays in the structure of the model's outputs, or what the layers ``outputs`` give, by rows."""

    @property
    def layers(self) -> Sequence[str]:
        """Of which layers it can give the outputs; the Keras model itself may have more."""


class Runner(ABC):
    """A loaded model with a compiled call."""

    #: The real Keras model; None for a SavedModel.
    keras_model: Any = None
    #: Of which layers it can give the outputs.
    layers: Sequence[str] = ()

    def __init__(self, name: str, inputs: Inputs, outputs: list[Port], pack_folder: str | None = None) -> None:
        self.name: str = name
        self._inputs = inputs
        self.inputs: list[Port] = inputs.ports
        self.outputs: list[Port] = outputs
        #: The folder of the pack whose files its weights are; None if they are memory of this process.
        self.pack_folder: str | None = pack_folder
        self._inner = InnerCalls()

    @abstractmethod
    def compiled(self) -> Compiled:
        """The call that serves whatever fits the inputs; made unless it has been already."""

    def prepare(self, x: Any) -> tuple[Compiled, list[Any]]:
        """The compiled call for ``x``, and its arguments: an array or tensor for each input.

        Raises:
            Misfit: ``x`` does not fit.
        """
        values = self._inputs.fit(x)
        return self.compiled(), values

    def single_call(self) -> tuple[Inputs, Compiled]:
        """The inputs, and the one traced function of them all that serves whatever comes.

        Raises:
            CannotPack: there is no such function.
        """
        raise CannotPack("it has no single graph")

    def delegate(self, x: Any, **options: Any) -> Any:
        """Let Keras itself predict.

        Raises:
            InvalidInputError: there is no Keras model.
        """
        ours = "batch_size", "verbose"
        given = [f"{key}={value!r}" for key, value in options.items() if key not in ours and value is not None]
        with self.refusal():
            raise Misfit(", ".join([type(x).__name__, *given]) + ", which only a .keras or .h5 model takes")

    @abstractmethod
    def variables(self) -> list[Any]:
        """The variables of the model; each has a dtype and a shape."""

    def inputs_to_json(self) -> dict[str, Any]:
        """For `inputs.inputs_of_json`.

        Raises:
            CannotEncode: as `Inputs.to_json`.
        """
        return self._inputs.to_json()

    def fit_flat(self, values: list[Any]) -> list[Any]:
        """As `Inputs.fit_flat`."""
        return self._inputs.fit_flat(values)

    def only_here(self) -> str:
        """Why this model cannot predict for other processes; empty when it can."""
        return ""

    def takes(self, x: Any) -> bool:
        """Whether ``x`` is plain data for the compiled call, and not a dataset or the like."""
        return is_plain(x)

    def forget(self) -> None:  # noqa: B027 - a SavedModel never changes
        """Compile anew at the next call."""

    def sample(self) -> Any:
        """One row of zeros (or empty strings) for each input."""
        return self._inputs.sample()

    @property
    def has_rows(self) -> bool:
        """Whether the first dimension is known to be that of rows; a signature does not tell."""
        return not isinstance(self._inputs, Named)

    def of_layers(self, outputs: Wanted) -> Compiled:
        """The call that gives what layers inside the model give.

        Raises:
            Misfit: there is no such layer.
        """
        call: Compiled = self._inner.call(outputs, self.layers, self.trace_layers)
        return call

    def trace_layers(self, names: Sequence[str]) -> Compiled:
        """The call whose outputs are a list of what the layers ``names`` give."""
        raise NotImplementedError

    def predict(self, x: Any, batch_size: int | None, outputs: Wanted | None = None) -> Any:
        """NumPy arrays in the structure of the model's outputs.

        Args:
            batch_size: rows of one call; None: as many as in Keras, or all where nobody knows what is a row.
            outputs: names of layers whose outputs are wanted instead.

        Raises:
            InvalidInputError: ``x``, ``batch_size`` or ``outputs`` does not fit.
        """
        check_batch_size(self.name, batch_size)
        with self.refusal():
            if outputs is None:
                call, values = self.prepare(x)
            else:
                call, values = self.of_layers(outputs), self._inputs.fit(x)
            if batch_size is None and not self.has_rows:
                return call.whole(values)
            rows = count_rows(values)
        return call.in_batches(values, rows, BATCH_SIZE if batch_size is None else int(batch_size))

    @contextlib.contextmanager
    def refusal(self) -> Iterator[None]:
        """Make an `InvalidInputError` of a `Misfit`."""
        try:
            yield
        except Misfit as exc:
            raise InvalidInputError(self.name, self._expected(), str(exc)) from exc.__cause__

    def _expected(self) -> str:
        return describe(self.inputs) or "no input"
