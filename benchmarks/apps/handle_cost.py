"""One prediction of one row in one process, in turns: the compiled call, the handle, `keras.Model.predict`.

The handle is measured twice: of a model that this process has loaded, and of its pack.

    python handle_cost.py ROUNDS

Prints JSON: model → way → seconds of each call.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe import PACKS, PATHS, compiled, rows

#: Calls of a round: the first is slow for whoever comes after another, so one call is not the typical one.
CALLS = {"compiled call": 20, "handle": 20, "handle, from its pack": 20, "keras.Model.predict": 2}


def main(rounds: int) -> None:
    import keras

    from celery_tfpool import packer
    from celery_tfpool.models import Models
    from celery_tfpool.pack_cache import PackCache

    found: dict[str, dict[str, list[float]]] = {}
    for name, path in PATHS.items():
        x, model = rows(name, 0), keras.models.load_model(path)
        pack = packer.find_or_make(name, path, PackCache(Path(PACKS), 2**40), safe_mode=True)
        handle = Models(((name, path),), safe_mode=True).get()
        packed = Models(((name, path),), safe_mode=True, packs={name: pack}).get()
        ways: dict[str, Callable[[Any], Any]] = {
            "compiled call": compiled(model),
            "handle": handle.predict,
            "handle, from its pack": packed.predict,
            "keras.Model.predict": lambda x, model=model: model.predict(x, verbose=0),
        }
        found[name] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            for way, call in ways.items():
                for _ in range(CALLS[way]):
                    started = time.perf_counter()
                    call(x)
                    if turn:  # the first round compiles
                        found[name][way].append(time.perf_counter() - started)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
