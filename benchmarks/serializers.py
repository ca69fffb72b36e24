"""Bytes and time of an array as an argument of a task: JSON, pickle, and the serializer "tensor".

python benchmarks/serializers.py
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from kombu.serialization import dumps, loads
from tabulate import tabulate

import celery_tfpool.arrays  # noqa: F401 - so that JSON knows them

SHAPES = {"1 KB": (256,), "600 KB": (224, 224, 3), "50 MB": (50, 512, 512)}
SERIALIZERS = ("json", "pickle", "tensor")
ROUNDS = {"1 KB": 200, "600 KB": 10, "50 MB": 3}


def main() -> None:
    rows = []
    for size, shape in SHAPES.items():
        array = np.random.default_rng(0).random(shape, "float32")
        seconds: dict[str, list[float]] = {name: [] for name in SERIALIZERS}
        sizes = {}
        for _ in range(ROUNDS[size]):  # in turns: the machine may be slow for a while
            for name in SERIALIZERS:
                started = time.perf_counter()
                content_type, encoding, data = dumps({"x": array}, serializer=name)
                came = loads(data, content_type, encoding, accept=[content_type])["x"]
                seconds[name].append(time.perf_counter() - started)
                sizes[name] = len(data)
                assert np.array_equal(np.asarray(came, "float32"), array)
        for name in SERIALIZERS:
            own = statistics.median(seconds[name])
            times = statistics.median(seconds["json"]) / own
            rows.append((size, name, f"{sizes[name]:,}", f"{1e3 * own:.2f}", f"{times:.0f}"))
    print(tabulate(rows, ["float32 array", "serializer", "bytes", "ms there and back", "times as fast as JSON"]))


if __name__ == "__main__":
    main()
