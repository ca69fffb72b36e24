"""One prediction of one row in one process, in turns: the compiled call, the handle, `keras.Model.predict`.

The handle is measured three times: of a model that this process has loaded, of its pack, and by way of a predictor.

    python handle_cost.py ROUNDS

Prints JSON: model → way → seconds of each call.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe import PACKS, PATHS, compiled, rows

from celery_tfpool.model_path import ModelPath
from celery_tfpool.models.handle import Handle
from celery_tfpool.models.of_process import Models
from celery_tfpool.packs import build
from celery_tfpool.packs.cache import PackCache
from celery_tfpool.predictors.client import Client
from celery_tfpool.predictors.remote_model import RemoteRunner
from celery_tfpool.predictors.server import Job
from celery_tfpool.predictors.supervisor import Supervisor
from celery_tfpool.settings import Settings

#: Calls of a round: the first is slow for whoever comes after another, so one call is not the typical one.
CALLS = {
    "compiled call": 20,
    "handle": 20,
    "handle, from its pack": 20,
    "handle, by way of a predictor": 20,
    "keras.Model.predict": 2,
}


def predictors() -> tuple[Supervisor, dict[str, Handle]]:
    """A predictor with all models, forked while TensorFlow does not run here, and handles that ask it."""
    settings = Settings(predictors=1)
    cache = PackCache(Path(PACKS), 2**40)
    packs = tuple((name, in_process(name, path, cache)) for name, path in PATHS.items())

    def job(index: int, models: tuple[ModelPath, ...], folder: str) -> Job:
        cores = len(os.sched_getaffinity(0))
        return Job(index, models, packs, settings, cores, cores, folder, os.getpid())

    supervisor = Supervisor(
        [tuple(ModelPath(name, path) for name, path in PATHS.items())],
        job=job,
        context=lambda: multiprocessing.get_context("fork"),
        fork_lock=threading.Lock(),
        give_up=sys.exit,
        startup_timeout=300.0,
    )
    served = supervisor.start(lambda: None)
    client = Client(supervisor.folder, 60.0)
    remote = {name: RemoteRunner(name, indices, facts, client) for name, (indices, facts) in served.items()}
    models = Models([ModelPath(*item) for item in PATHS.items()], safe_mode=True, remote=remote)
    return supervisor, {name: models.get(name) for name in PATHS}


def in_process(name: str, path: str, cache: PackCache) -> str:
    """The folder of the model's pack, made by a process of its own."""
    done = build.pack_in_process(
        name, path, cache, safe_mode=True, start_method="fork", timeout=300.0, tick=lambda: None
    )
    if done.folder is None:
        raise SystemExit(done.reason)
    return done.folder


def main(rounds: int) -> None:
    supervisor, remote = predictors()
    import keras

    found: dict[str, dict[str, list[float]]] = {}
    for name, path in PATHS.items():
        x, model = rows(name, 0), keras.models.load_model(path)
        pack = build.find_or_make(name, path, PackCache(Path(PACKS), 2**40), safe_mode=True)
        handle = Models([ModelPath(name, path)], safe_mode=True).get()
        packed = Models([ModelPath(name, path)], safe_mode=True, packs={name: pack}).get()
        ways: dict[str, Callable[[Any], Any]] = {
            "compiled call": compiled(model),
            "handle": handle.predict,
            "handle, from its pack": packed.predict,
            "handle, by way of a predictor": remote[name].predict,
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
    supervisor.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
