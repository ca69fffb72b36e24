"""Call what a function of the user's returned that is no Keras model: a detector with its tokenizer and labels, say.

It is loaded as models are, once per process, with the pool's timing and errors.
Nothing of it can be shared or batched: only its own Python code knows what it does.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import InvalidInputError
from .inputs import Named
from .protocol import CannotPack, Compiled, Runner

#: What `Handle.predict` passes on where nothing was given.
_NOT_GIVEN = {"batch_size": None, "verbose": "auto", "steps": None, "callbacks": None}


def can_predict(made: Any) -> bool:
    """Whether it has a ``predict()``, or can be called."""
    return callable(getattr(made, "predict", made))


class ObjectRunner(Runner):
    """Its own ``predict()``, or else the object called, with what was given."""

    def __init__(self, name: str, made: Any) -> None:
        super().__init__(name, Named([], []), [])
        self.keras_model = made

    def takes(self, x: Any) -> bool:
        """False: nobody but its own code knows."""
        return False

    def delegate(self, x: Any, **options: Any) -> Any:
        """What its own ``predict()`` returns, or raises; options that were not given are not passed on."""
        predict = getattr(self.keras_model, "predict", self.keras_model)
        return predict(x, **{k: value for k, value in options.items() if k not in _NOT_GIVEN or value != _NOT_GIVEN[k]})

    def only_here(self) -> str:
        """Why it cannot predict for other processes."""
        return f"it is a {type(self.keras_model).__name__} and no Keras model"

    def compiled(self) -> Compiled:
        """There is no such call.

        Raises:
            CannotPack: always.
        """
        raise CannotPack(self.only_here())

    def variables(self) -> list[Any]:
        """None that anybody knows of."""
        return []

    def sample(self) -> NoReturn:
        """There is none.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError(self.name, "what its own predict() takes", "nothing that says so")
