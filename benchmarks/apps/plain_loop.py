"""The machine's limit: one process, no Celery, inputs made and predicted in batches of the best size.

    python plain_loop.py SECONDS MODEL...

Tries the compiled call and the frozen graph, in several batch sizes, on all
cores.  Prints JSON: model → the best rows per second with how they were had,
and the first answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recipe import PATHS, answer, compiled, rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from models import payload

SIZES = (4, 32, 128)
#: Of a call that takes so many seconds a larger one is not tried.
LONG = 0.3


def frozen(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """As `compiled`, with the variables turned into constants."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), "float32")]
    function = tf.function(lambda x: model(x, training=False), input_signature=signature).get_concrete_function()
    constant = convert_variables_to_constants_v2(function)
    return lambda x: constant(tf.constant(x))[0].numpy()


def rate(call: Callable[[np.ndarray], np.ndarray], name: str, size: int, seconds: float) -> float:
    """Rows per second."""
    payloads = [payload(name, number) for number in range(size)]
    call(np.concatenate([rows(name, data) for data in payloads]))
    started, done = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        call(np.concatenate([rows(name, data) for data in payloads]))
        done += size
    return done / (time.perf_counter() - started)


def rates(way: str, call: Callable[[np.ndarray], np.ndarray], name: str, seconds: float) -> Iterator[tuple[float, str]]:
    """Rows per second, and how they were had, for each size that is worth a try."""
    for size in SIZES:
        found = rate(call, name, size, seconds)
        yield found, f"{way}, {size} rows"
        if size / found > LONG:
            break


def main(seconds: float) -> None:
    import keras

    best = {}
    for name, path in PATHS.items():
        model = keras.models.load_model(path)
        ways = {"compiled": compiled(model), "frozen": frozen(model)}
        runs = [run for way, call in ways.items() for run in rates(way, call, name, seconds)]
        answers = [answer(ways["frozen"](rows(name, payload(name, number)))) for number in range(3)]
        best[name] = (*max(runs), answers)
    print(json.dumps(best))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(float(sys.argv[1]))
