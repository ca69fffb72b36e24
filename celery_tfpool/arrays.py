"""Import this, and arrays in arguments and results of tasks become lists of numbers in Celery's JSON.

Arrays and scalars of NumPy, tensors of TensorFlow.  A child of the pool has it already: ``return model.predict(x)``
works.  For arrays that stay arrays there is the serializer "tensor" (`serialization`).
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import wrapt
from kombu.utils.json import register_type


def register() -> None:
    """Let Celery's JSON know arrays; done when this module is imported."""
    register_type(np.ndarray, None, lambda array: array.tolist())
    register_type(np.generic, None, lambda scalar: scalar.item())  # type: ignore[type-abstract]
    wrapt.register_post_import_hook(_with_tensors, "tensorflow")


def _with_tensors(tensorflow: ModuleType) -> None:
    register_type(tensorflow.RaggedTensor, None, lambda tensor: tensor.to_list())
    for kind in (tensorflow.Tensor, tensorflow.Variable):
        register_type(kind, None, lambda tensor: tensor.numpy().tolist())


register()
