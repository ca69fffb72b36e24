"""The model ready in a forked child, in turns: `keras.models.load_model`, and a pack attached.

    python load_cost.py ROUNDS

Prints JSON: model → way → seconds, each of a child of its own, whose
TensorFlow was imported before the fork and is initialised before the clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import keras
import tensorflow as tf
from recipe import PACKS, PATHS

from celery_tfpool.packs import build
from celery_tfpool.packs.attach import load
from celery_tfpool.packs.cache import PackCache


def in_child(way: str, name: str) -> float:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        tf.constant(0)
        pack = build.find_or_make(name, PATHS[name], PackCache(Path(PACKS), 2**40), safe_mode=True)
        started = time.perf_counter()
        if way == "pack attached":
            load(name, pack, safe_mode=True)
        elif way == "keras.models.load_model":
            keras.models.load_model(PATHS[name])
        os.write(writer, str(time.perf_counter() - started).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with open(reader) as file:
        return float(file.read())


def main(rounds: int) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for name in PATHS:
        in_child("made", name)
        found[name] = {"keras.models.load_model": [], "pack attached": []}
        for _ in range(rounds):
            for way, seconds in found[name].items():
                seconds.append(in_child(way, name))
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
