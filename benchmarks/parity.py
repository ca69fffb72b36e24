"""How far our predict is from that of Keras, how much faster it is, and whether it leaks.

    python benchmarks/parity.py

Prints Markdown.  The models are those of ``tests/zoo.py``.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from zoo import ZOO, Specimen

from celery_tfpool.model_path import ModelPath
from celery_tfpool.models import loading
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs.attach import PackRunner
from celery_tfpool.packs.write import write
from celery_tfpool.runners.protocol import CannotPack

ROUNDS, OURS_PER_ROUND = 60, 20
LEAK_CALLS = 5_000


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} cores\n")
        print("| model | outputs | largest difference, 1 row | 33 rows | through a pack, 1 row | 33 rows |")
        print("|---|---|---|---|---|---|")
        for number, (name, specimen) in enumerate(ZOO.items()):
            try:
                theirs, ours = load(specimen, f"{folder}/{number}.keras")
            except (TypeError, ValueError) as exc:
                print(f"| {name} | this Keras cannot: {' '.join(str(exc).split())[:80]} | | | | |")
                continue
            one, many = (differences(specimen.rows(rows), theirs, ours) for rows in (1, 33))
            through_pack = packed(specimen, theirs, f"{folder}/{number}.keras")
            print(f"| {name} | {one[1]} | {one[0]:g} | {many[0]:g} | {through_pack} |", flush=True)
        theirs, ours = load(ZOO["dense"], f"{folder}/dense.keras")
        print()
        for line in (*speed(theirs, ours), leak(ours)):
            print(f"- {line}", flush=True)


def load(specimen: Specimen, path: str) -> tuple[Any, Handle]:
    specimen.build().save(path)
    theirs = keras.models.load_model(path)
    # Keras compiles its first number of rows as a constant, and TensorFlow may then pick another kernel: its own
    # numbers for 1 row differ by 1e-7 (simple rnn) with what came before.  Two numbers of rows leave it none.
    for rows in (2, 3):
        theirs.predict(tensors(specimen.rows(rows)), verbose=0)
    return theirs, Models([ModelPath("model", path)], safe_mode=True).get()


def packed(specimen: Specimen, theirs: Any, path: str) -> str:
    """The largest differences for 1 and for 33 rows when the model is called from a pack, or why it has none."""
    folder = f"{path}.pack"
    os.mkdir(folder)
    try:
        write(loading.load("model", path, safe_mode=True), folder)
    except CannotPack as exc:
        return f"not packed: {exc} | "
    # Models would load the model itself where a pack cannot be used.
    runner = PackRunner("model", folder)
    return " | ".join(f"{differences(specimen.rows(rows), theirs, runner)[0]:g}" for rows in (1, 33))


def tensors(x: Any) -> Any:
    """Keras itself takes strings as tensors only."""
    return keras.tree.map_structure(tf.convert_to_tensor, x)


def differences(x: Any, theirs: Any, ours: Handle | PackRunner) -> tuple[float, str]:
    """The largest absolute difference over all outputs, and the outputs' dtypes."""
    expected, got = flat(theirs.predict(tensors(x), verbose=0)), flat(ours.predict(x, 32))
    if [(part.dtype, part.shape) for part in expected] != [(part.dtype, part.shape) for part in got]:
        return float("inf"), "other dtypes or shapes"
    worst = max(
        float(np.max(np.abs(a.astype("float64") - b.astype("float64")), initial=0.0))
        for a, b in zip(expected, got, strict=True)
    )
    return worst, ", ".join(dict.fromkeys(str(part.dtype) for part in expected))


def flat(outputs: Any) -> list[Any]:
    leaves = keras.tree.flatten(outputs)
    return [np.asarray(leaf.flat_values if isinstance(leaf, tf.RaggedTensor) else leaf) for leaf in leaves]


def speed(theirs: Any, ours: Handle) -> list[str]:
    """One row, in the same process: alternately one call each, and in short turns of each."""
    x = ZOO["dense"].rows(1)

    def keras_predict() -> None:
        theirs.predict(x, verbose=0)

    def our_predict() -> None:
        ours.predict(x)

    for call in (keras_predict, our_predict):
        for _ in range(10):
            call()
    turns: dict[str, tuple[list[float], list[float]]] = {"alternately": ([], []), "in turns": ([], [])}
    for _ in range(ROUNDS):
        turns["alternately"][0].append(timed(keras_predict))
        turns["alternately"][1].append(timed(our_predict))
    for _ in range(ROUNDS // 3):
        turns["in turns"][0].extend(timed(keras_predict) for _ in range(3))
        turns["in turns"][1].extend(timed(our_predict) for _ in range(OURS_PER_ROUND))
    lines = []
    for how, (slow, fast) in turns.items():
        a, b = statistics.median(slow), statistics.median(fast)
        lines.append(
            f"one row through a small MLP, called {how}: keras.Model.predict {a * 1e3:.1f} ms, "
            f"ours {b * 1e3:.2f} ms: {a / b:.0f} times as fast (medians of {len(slow)} and {len(fast)})"
        )
    return lines


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def leak(ours: Handle) -> str:
    rows = ZOO["dense"].rows(64)

    def calls(number: int) -> None:
        for index in range(number):
            ours.predict(rows[: 1 + index % 64])

    calls(1_000)
    before = private_memory()
    calls(LEAK_CALLS)
    grown = private_memory() - before
    return f"private memory after {LEAK_CALLS:,} more calls with 1 to 64 rows: {grown / 2**20:+.2f} MiB"


def private_memory() -> int:
    """Bytes that this process has written and shares with none.

    Private_Clean is left out: pages of TensorFlow's libraries come to it and
    go, 300 MiB at a time, when other processes stop or start to use them.
    """
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_Dirty"))


if __name__ == "__main__":
    main()
