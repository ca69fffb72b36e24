"""Keras 2, which is tf_keras now: with TF_USE_LEGACY_KERAS=1 its models load and predict, and are shared as others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import APPS, StartWorker, make_model, python_path, quiet

#: Where ``make`` installs it, with TensorFlow Hub: beside the environment of the tests, which Keras 3 has for itself.
PLACE = Path(__file__).parent.parent / ".venv-legacy" / "site-packages"


def environment(*folders: Path) -> dict[str, str]:
    assert PLACE.is_dir(), "`make .venv-legacy/.done` installs Keras 2"
    path = os.pathsep.join([str(PLACE), *map(str, folders), python_path(APPS)["PYTHONPATH"]])
    return {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of Keras 2, and what they predict."""
    made = tmp_path_factory.mktemp("legacy")
    command = [sys.executable, "-m", "legacy_models", str(made)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=quiet(os.environ) | environment(), cwd=APPS
    )
    assert done.returncode == 0, done.stderr
    return made


def paths(folder: Path) -> dict[str, object]:
    hub = {"path": str(folder / "hub.h5"), "custom_objects": {"KerasLayer": "tensorflow_hub:KerasLayer"}}
    files = {name: str(folder / name) for name in ("plain.h5", "plain.keras")}
    return {**files, "hub.h5": hub, "functional": "legacy_models:functional", "bert": "legacy_models:Bert"}


@pytest.mark.parametrize("predictors", [0, 1])
def test_all_forms(start_worker: StartWorker, folder: Path, predictors: int) -> None:
    """Files, hub layers, functions and subclassed models give what they gave where they were made."""
    conf = {"tf_model_path": paths(folder), "tf_predictors": predictors}
    worker = start_worker("-c", "1", app="legacy_app", conf=conf, env=environment())
    for name in ("plain.h5", "plain.keras", "hub.h5"):
        expected = np.load(folder / f"{name}.npy")
        assert np.allclose(expected, worker.call("predict_x", name), atol=1e-6), name
        assert worker.stats()["tfpool"]["packs"][name]["packed"], worker.log
    for name in ("functional", "bert"):
        assert worker.call("is_as_itself", name), name
    assert "fork" == worker.stats()["tfpool"]["start_method"]
    assert "2." == worker.stats()["tfpool"]["versions"]["tf_keras"][:2]


def test_bit_for_bit(start_worker: StartWorker, folder: Path) -> None:
    """Without packs as well, and in a child that replaces another."""
    conf = {"tf_model_path": paths(folder), "tf_share_weights": False}
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", app="legacy_app", conf=conf, env=environment())
    for name in ("plain.h5", "plain.keras", "hub.h5"):
        assert np.array_equal(np.load(folder / f"{name}.npy"), worker.call("predict_x", name)), name


def test_deferred(start_worker: StartWorker, folder: Path) -> None:
    """``tf.keras.models.load_model`` at the top of the app, and a file of Keras 3 by Keras 3 itself."""
    env = environment() | {"LEGACY_MODEL": str(folder / "plain.h5"), "MODEL": make_model(str(folder / "sum.keras"))}
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", app="legacy_app", env=env)
    for _ in range(2):
        assert np.array_equal(np.load(folder / "plain.h5.npy"), worker.call("predict_own"))
    assert [[16.0]] == worker.call("predict_with_keras_3")
    assert "fork" == worker.stats()["tfpool"]["start_method"]


def test_file_of_keras_3(start_worker: StartWorker, digits: str) -> None:
    """The variable does not change what Keras 3 has written."""
    worker = start_worker("-c", "1", conf={"tf_model_path": digits}, env=environment())
    assert [[16.0]] == worker.call("predict")


def test_without_it(start_worker: StartWorker, folder: Path) -> None:
    """What Keras 3 cannot load of Keras 2: says what to do."""
    worker = start_worker("-c", "1", conf={"tf_model_path": str(folder / "plain.h5")})
    with pytest.raises(
        Exception, match="It was written by Keras 2: pip install tf_keras, and set TF_USE_LEGACY_KERAS=1"
    ):
        worker.call("predict")


def test_built_in_worker_main(start_worker: StartWorker) -> None:
    """The fork guard sees it."""
    env = environment() | {"BUILT": "1"}
    worker = start_worker("-c", "1", app="legacy_app", conf={"tf_fork_guard": "error"}, env=env, wait=False)
    assert 1 == worker.wait()
    assert "TensorFlow was initialised in the worker's main process by " in worker.log
    assert re.search(r"by .*/legacy_models.py:\d+: super", worker.log), worker.log
