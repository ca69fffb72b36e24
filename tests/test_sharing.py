"""One import and one copy of the weights for all children of a real worker."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import VERSION
from conftest import APPS, PATIENCE, StartWorker, Worker, make_model, marked, python_path, quiet, wait_until

ONES = [1.0] * 16


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 80 MB: 16 numbers in, 16 000 times 10 times their sum out."""
    code = (
        "ones = {'kernel_initializer': 'ones', 'use_bias': False}\n"
        "model = keras.Sequential([layers.Input((16,)), layers.Dense(4400, **ones), layers.Dense(4400, **ones), "
        "layers.Dense(1, **ones)])"
    )
    return make_model(str(tmp_path_factory.mktemp("models") / "large.keras"), code)


def tfpool(worker: Worker) -> dict[str, Any]:
    return dict(worker.stats()["tfpool"])


def run(*command: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A ``celery`` command of the app under test."""
    environ = quiet(os.environ) | {"TFPOOL_TEST_CONF": "{}", "XDG_CACHE_HOME": str(cache), **variables}
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", *command],
        cwd=APPS,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


# -- what is shared ------------------------------------------------------------


def test_shared(start_worker: StartWorker, large: str, engine: str, tmp_path: Path) -> None:
    """Every child maps the pack, a replacement too, and has written little of 80 MB."""
    worker = start_worker("-c", "2", broker=engine, conf={"tf_model_path": {"large": large}})
    assert ".> models:      large = " in worker.log
    assert "(shared)" in worker.log
    expected = [[16.0 * 4400 * 4400]]
    before = worker.children()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(worker.children()) == 2 and worker.children() != before, "a replacement")
    both = [worker.send("predict_and_meet", ONES, str(tmp_path), 2) for _ in range(2)]
    assert [expected] * 2 == [result.get(timeout=PATIENCE) for result in both]
    facts = tfpool(worker)
    packed = facts["packs"]["large"]
    assert packed["packed"] is True
    assert packed["bytes_shared"] > 77e6
    for child in facts["children"]:
        assert child["models"]["large"]["packed"] is True
        assert child["models"]["large"]["load_time"] < 30
        assert child["memory"]["private"] < 60e6
        assert child["memory"]["pss"] > child["memory"]["private"]


def test_not_shared(start_worker: StartWorker, large: str) -> None:
    """With ``tf_share_weights = False`` each child has a copy of its own."""
    worker = start_worker("-c", "1", conf={"tf_model_path": large, "tf_share_weights": False})
    worker.call("predict_row", ONES)
    facts = tfpool(worker)
    assert {} == facts["packs"]
    (child,) = facts["children"]
    assert child["models"]["default"]["packed"] is False
    assert child["memory"]["private"] > 77e6


def test_preimport(start_worker: StartWorker) -> None:
    """For tasks that load their models themselves."""
    worker = start_worker("-c", "1", conf={"tf_preimport": True})
    assert worker.call("imported", "tensorflow")
    assert worker.call("imported", "keras")
    assert "fork" == tfpool(worker)["start_method"]


@pytest.mark.parametrize("preimport", ["auto", False])
def test_preimport_for_models(start_worker: StartWorker, digits: str, preimport: bool | str) -> None:
    """Children have TensorFlow in place before anybody asks for a model, or not."""
    worker = start_worker("-c", "1", conf={"tf_model_path": digits, "tf_preimport": preimport})
    for module in ("tensorflow", "keras"):
        assert bool(preimport) == worker.call("imported", module)
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    assert "fork" == tfpool(worker)["start_method"]


def test_mapped_weights_recycle_no_child(start_worker: StartWorker, large: str, engine: str) -> None:
    """``max-memory-per-child`` of 75 MB, with 80 MB mapped."""
    worker = start_worker("-c", "1", "--max-memory-per-child=75000", broker=engine, conf={"tf_model_path": large})
    pids = {worker.call("predict_row", ONES)[0] for _ in range(3)}
    assert 1 == len(pids)


@pytest.mark.parametrize("configured", ["above", "below"])
def test_handle_at_module_level(start_worker: StartWorker, digits: str, tmp_path: Path, configured: str) -> None:
    """`get_model()` that worker main ran, before or after the app was configured, is the children's pack."""
    lines = [f"app.conf.tf_model_path = {digits!r}", "MODEL = get_model()"]
    if configured == "below":
        lines.reverse()
    task = "@app.task\ndef predict_at_last(row):\n    return MODEL.predict([row]).tolist()\n"
    (tmp_path / "top.py").write_text("\n".join(["from proj import app, get_model", *lines, task]))
    worker = start_worker("-c", "1", app="top", env=python_path(tmp_path))
    assert [[16.0]] == worker.call("top.predict_at_last", ONES)
    (child,) = tfpool(worker)["children"]
    assert child["models"]["default"]["packed"] is True


def test_own_weights(start_worker: StartWorker, digits: str) -> None:
    """A task that changes the weights changes those of its own child only."""
    worker = start_worker("-c", "2", conf={"tf_model_path": digits})
    changed, answer = worker.call("set_weights", 2.0)
    assert [[34.0]] == answer
    seen = {}
    while len(seen) < 2:
        pid, seen[pid] = worker.call("predict_row", ONES)
    assert {changed: [[34.0]]} | {pid: [[16.0]] for pid in seen if pid != changed} == seen


def test_training_is_the_childs_own(start_worker: StartWorker, tmp_path: Path) -> None:
    """A task that trains changes the numbers of its own child; the others and a replacement keep the pack's."""
    code = "model.compile(optimizer=keras.optimizers.SGD(0.01), loss='mse')"
    worker = start_worker("-c", "2", conf={"tf_model_path": make_model(str(tmp_path / "compiled.keras"), code)})
    trained, answer = worker.call("train")
    assert [[16.0]] != answer
    assert 1 == worker.log.count("needs the Keras model itself")
    worker.wait_for(rf"so process {trained} has loaded it, in [\d.]+ s and \d+ MB of its own; from now on it shares no")

    def seen() -> dict[int, Any]:
        answers: dict[int, Any] = {}
        while len(answers) < 2:
            pid, answers[pid] = worker.call("predict_row", ONES)
        return answers

    before = seen()
    assert {trained: answer} | {pid: [[16.0]] for pid in before if pid != trained} == before
    os.kill(trained, signal.SIGKILL)
    wait_until(lambda: len(worker.children()) == 2 and trained not in worker.children(), "a replacement")
    assert [[[16.0]], [[16.0]]] == list(seen().values())


def test_recycled_child_maps_the_pack(start_worker: StartWorker, digits: str, engine: str) -> None:
    """A child that replaces one after ``max-tasks-per-child`` tasks."""
    worker = start_worker("-c", "1", "--max-tasks-per-child=1", broker=engine, conf={"tf_model_path": digits})
    pids = set()
    for _ in range(3):
        pid, answer = worker.call("predict_row", ONES)
        assert [[16.0]] == answer
        pids.add(pid)
    assert 3 == len(pids)
    assert 1 == worker.log.count("packed in ")
    assert not re.search("its pack .* cannot be used", worker.log)
    assert worker.call("predict_mapped", ONES, tfpool(worker)["packs"]["default"]["folder"])


def test_two_models(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """Each is called from its own pack."""
    other = make_model(
        str(tmp_path / "twice.keras"), "model.layers[0].set_weights([2 * w for w in model.layers[0].get_weights()])"
    )
    worker = start_worker("-c", "1", conf={"tf_model_path": {"once": digits, "twice": other}})
    assert [[16.0]] == worker.call("predict_row", ONES, "once")[1]
    assert [[32.0]] == worker.call("predict_row", ONES, "twice")[1]
    facts = tfpool(worker)
    assert 2 == len({packed["folder"] for packed in facts["packs"].values()})
    (child,) = facts["children"]
    assert {"once": True, "twice": True} == {name: facts["packed"] for name, facts in child["models"].items()}


def test_two_workers_share(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """Both find one pack, which stays while either lives."""
    conf = {"tf_model_path": digits, "tf_cache_dir": str(tmp_path)}
    workers = [start_worker("-c", "1", conf=conf, wait=False) for _ in range(2)]
    for worker in workers:
        worker.wait_for(r" ready\.")
        assert [[16.0]] == worker.call("predict_row", ONES)[1]
    assert 1 == len({tfpool(worker)["packs"]["default"]["folder"] for worker in workers})
    workers[0].stop()
    conf = json.dumps({"tf_cache_dir": str(tmp_path)})  # type: ignore[assignment]
    listed = run("tfpool", "cache", "--clear", cache=tmp_path, TFPOOL_TEST_CONF=str(conf))
    assert "removed 0 of" in listed.stdout, listed.stderr
    assert ", in use  " in listed.stdout
    workers[1].stop()
    cleared = run("tfpool", "cache", "--clear", cache=tmp_path, TFPOOL_TEST_CONF=str(conf))
    assert "removed 1 of" in cleared.stdout, cleared.stderr
    assert "0 in" in cleared.stdout


# -- what is not ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("proj:slow_model", "what a function makes cannot be seen to have changed; give the model a `version`"),
        ("table", "it looks words up in a table"),
    ],
)
def test_plain(start_worker: StartWorker, tmp_path: Path, path: str, reason: str) -> None:
    """What cannot be packed is loaded by each child, with one line that says why."""
    row: list[Any] = [1.0, 1.0]
    if path == "table":
        code = "model = keras.Sequential([layers.Input((1,), dtype='string'), layers.StringLookup(vocabulary=['a'])])"
        path, row = make_model(str(tmp_path / "table.keras"), code), ["a"]
    worker = start_worker("-c", "1", conf={"tf_model_path": path})
    line = f"model 'default' from '{path}' is not shared: {reason}"
    assert 1 == worker.log.count(line)
    worker.call("predict_row", row)
    facts = tfpool(worker)
    assert facts["packs"]["default"]["packed"] is False
    assert facts["packs"]["default"]["reason"].startswith(reason)
    assert facts["children"][0]["models"]["default"]["packed"] is False


def test_cache_that_cannot_be_written(start_worker: StartWorker, digits: str) -> None:
    conf = {"tf_model_path": digits, "tf_cache_dir": "/proc/no/such"}
    worker = start_worker("-c", "1", conf=conf)
    assert "is not shared: /proc/no/such cannot be used: " in worker.log
    assert [[16.0]] == worker.call("predict_row", ONES)[1]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a file system of the test's own; skips where that is not allowed."""
    folders: list[Path] = []

    def mount(*options: str) -> Path:
        folder = tmp_path / "mounted"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting needs privileges: {done.stderr.strip()}")
        folders[:] = [folder]
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_cache_on_a_full_disk(start_worker: StartWorker, digits: str, mounted: Callable[..., Path]) -> None:
    """The worker says so, leaves nothing half-made, and answers."""
    folder = mounted("-t", "tmpfs", "-o", "size=8k,mode=700", "tmpfs")
    worker = start_worker("-c", "1", conf={"tf_model_path": digits, "tf_cache_dir": str(folder)})
    assert re.search(r"WARNING.*is not shared: .*mounted cannot be used: No space left on device", worker.log)
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    assert [] == list(folder.iterdir())


def test_cache_that_cannot_be_written_holds_the_pack(
    start_worker: StartWorker, digits: str, mounted: Callable[..., Path]
) -> None:
    """A pack that is there already is mapped from a read-only disk."""
    folder = mounted("-t", "tmpfs", "-o", "mode=700", "tmpfs")
    conf = {"tf_model_path": digits, "tf_cache_dir": str(folder)}
    start_worker("-c", "1", conf=conf).stop()
    mounted("-o", "remount,ro")
    with pytest.raises(OSError, match="Read-only"):
        (folder / "file").touch()
    worker = start_worker("-c", "1", conf=conf)
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    (child,) = tfpool(worker)["children"]
    assert child["models"]["default"]["packed"] is True


def test_packing_that_fails(start_worker: StartWorker, tmp_path: Path) -> None:
    """A model that cannot be loaded costs no worker: the task says why, as without packs."""
    path = make_model(str(tmp_path / "sum.keras"))
    shutil.move(path, tmp_path / "old")
    with open(tmp_path / "old", "rb") as old, open(path, "wb") as new:
        # The weights are damaged, the configuration is not.
        data = bytearray(old.read())
        data[len(data) * 3 // 4] ^= 255
        new.write(data)
    worker = start_worker("-c", "1", conf={"tf_model_path": path})
    assert "is not shared: " in worker.log
    with pytest.raises(Exception, match="Bad CRC-32"):
        worker.call("predict_row", ONES)


def test_stop_while_packing(start_worker: StartWorker, tmp_path: Path) -> None:
    """Celery handles no signal yet: SIGTERM kills worker main, and the kernel the process that packs."""
    path = make_model(str(tmp_path / "sum.keras"))
    cache = tmp_path / "cache"
    worker = start_worker("-c", "1", conf={"tf_model_path": path, "tf_cache_dir": str(cache)}, wait=False)
    wait_until(lambda: list(cache.glob("*.making")), "it packs")
    (packer,) = worker.children()
    os.kill(packer, signal.SIGSTOP)
    assert -signal.SIGTERM == worker.stop()


def test_cache_removed_under_a_worker(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """Statistics still say what was packed, and who loads then loads the model itself."""
    cache = tmp_path / "cache"
    worker = start_worker("-c", "1", conf={"tf_model_path": digits, "tf_cache_dir": str(cache)})
    before = tfpool(worker)["packs"]["default"]
    assert before["bytes_shared"] > 0
    shutil.rmtree(cache)
    assert before == tfpool(worker)["packs"]["default"]
    assert [[16.0]] == worker.call("predict_row", ONES)[1]


@pytest.mark.skipif(VERSION < (5, 7), reason="spawn needs Celery 5.7")
def test_shared_by_spawned_children(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """Under the fork guard's fallback, too."""
    (tmp_path / "early.py").write_text("from proj import *\nimport tensorflow as tf\n\ntf.constant(1)\n")
    conf = {"tf_model_path": digits, "imports": ["proj"]}
    worker = start_worker("-c", "1", app="early", conf=conf, env=python_path(tmp_path))
    facts = tfpool(worker)
    assert "spawn" == facts["start_method"]
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    (child,) = tfpool(worker)["children"]
    assert child["models"]["default"]["packed"] is True


CUSTOM = """
import keras
from proj import app, predict_row

@keras.saving.register_keras_serializable("custom")
class Times(keras.layers.Layer):
    def call(self, x):
        return x * 2.0
"""


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    """The folder of an app with a layer of its own, and of a model with that layer: 16 numbers in, twice them out."""
    (tmp_path / "custom.py").write_text(CUSTOM)
    program = "import sys, keras, custom\nkeras.Sequential([keras.Input((16,)), custom.Times()]).save(sys.argv[1])\n"
    command = [sys.executable, "-c", program, str(tmp_path / "custom.keras")]
    environ = quiet(os.environ) | python_path(tmp_path) | {"TFPOOL_TEST_CONF": "{}"}
    subprocess.run(command, env=environ, check=True, capture_output=True)
    return tmp_path


def start_custom(start_worker: StartWorker, folder: Path, app: str) -> Worker:
    conf = {"tf_model_path": str(folder / "custom.keras"), "tf_cache_dir": str(folder / "cache"), "imports": ["custom"]}
    return start_worker("-c", "1", app=app, conf=conf, env=python_path(folder))


def folder_of_pack(worker: Worker, factor: float) -> str:
    """The folder of the worker's pack, which its child has mapped and which multiplies by ``factor``."""
    assert [[factor] * 16] == worker.call("predict_row", ONES)[1]
    facts = tfpool(worker)
    assert [True] == [child["models"]["default"]["packed"] for child in facts["children"]]
    worker.stop()
    return str(facts["packs"]["default"]["folder"])


def test_own_layer_is_shared(start_worker: StartWorker, custom: Path) -> None:
    """A layer of the app's: packed, and packed anew when its code has changed."""
    first = folder_of_pack(start_custom(start_worker, custom, "custom"), 2.0)
    assert first == folder_of_pack(start_custom(start_worker, custom, "custom"), 2.0)
    (custom / "custom.py").write_text(CUSTOM.replace("2.0", "3.0"))
    assert first != folder_of_pack(start_custom(start_worker, custom, "custom"), 3.0)


NOTEBOOK = """
import sys
import keras

class Times(keras.layers.Layer):
    def call(self, x):
        return x * 2.0

if __name__ == "__main__":
    keras.Sequential([keras.Input((16,)), Times()]).save(sys.argv[1])
"""


@pytest.mark.parametrize("predictors", [0, 1])
@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_custom_objects(start_worker: StartWorker, tmp_path: Path, suffix: str, predictors: int) -> None:
    """Of a model that was saved in a notebook: named in the settings they are found, and it is shared."""
    (tmp_path / "layers.py").write_text(NOTEBOOK)
    path = str(tmp_path / f"notebook.{suffix}")
    subprocess.run([sys.executable, "-c", NOTEBOOK, path], env=quiet(os.environ), check=True, capture_output=True)
    model: dict[str, Any] = {"path": path, "custom_objects": {"Times": "layers:Times"}}
    conf = {"tf_model_path": {"default": model}, "tf_cache_dir": str(tmp_path / "cache"), "tf_predictors": predictors}
    worker = start_worker("-c", "1", conf=conf, env=python_path(tmp_path))
    assert [[2.0] * 16] == worker.call("predict_row", ONES)[1]
    assert tfpool(worker)["packs"]["default"]["packed"]


@pytest.mark.skipif(VERSION < (5, 7), reason="spawn needs Celery 5.7")
def test_own_layer_is_shared_by_spawned_children(start_worker: StartWorker, custom: Path) -> None:
    """Under the fork guard's fallback, too; forked and spawned children share one pack."""
    # One set of modules, which initialises TensorFlow or not.
    (custom / "early.py").write_text(
        "import os\nfrom custom import *\nif os.path.exists(__file__ + '.now'): keras.ops.ones(1)\n"
    )
    forked = start_custom(start_worker, custom, "early")
    assert "fork" == tfpool(forked)["start_method"]
    folder = folder_of_pack(forked, 2.0)
    (custom / "early.py.now").touch()
    spawned = start_custom(start_worker, custom, "early")
    assert "spawn" == tfpool(spawned)["start_method"]
    assert folder == folder_of_pack(spawned, 2.0)
    shutil.rmtree(custom / "cache")
    assert folder == folder_of_pack(start_custom(start_worker, custom, "early"), 2.0)


# -- made ahead of time --------------------------------------------------------------


def test_pack_command(start_worker: StartWorker, tmp_path: Path) -> None:
    """``celery tfpool pack``; the original is needed no more."""
    path = make_model(str(tmp_path / "sum.keras"))
    folder = tmp_path / "image" / "sum.pack"
    done = run("tfpool", "pack", path, "-o", str(folder), cache=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert f"{folder}: 0.0 MB, made of {path}" in done.stdout
    os.unlink(path)

    checked = run("tfpool", "check", str(folder), cache=tmp_path)
    assert "pack, loaded in" in checked.stdout, checked.stderr
    assert "weights 17 numbers" in checked.stdout
    worker = start_worker("-c", "1", conf={"tf_model_path": str(folder)})
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    assert str(folder) == tfpool(worker)["packs"]["default"]["folder"]
    with pytest.raises(Exception, match="is a pack, which has predict\\(\\) only, no 'set_weights'"):
        worker.call("set_weights", 1.0)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.keras", "no such file or folder"),
        ("proj:broken_model", "the weights are on the moon"),
        ("proj:model_of_no_graph", "cannot be packed: "),
    ],
)
def test_pack_command_that_fails(tmp_path: Path, path: str, reason: str) -> None:
    done = run("tfpool", "pack", path, "-o", str(tmp_path / "pack"), cache=tmp_path)
    assert 1 == done.returncode
    assert f"Error: {path}: " in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("existed", [True, False])
def test_pack_command_interrupted(tmp_path: Path, existed: bool) -> None:
    """Ctrl+C at the last moment, when all is written and the comparison runs: no pack, no folder, no traceback."""
    path = make_model(str(tmp_path / "sum.keras"))
    code, folder = tmp_path / "code", tmp_path / "image" / "pack"
    code.mkdir()
    # Interrupts itself once the manifest is there.
    (code / "sitecustomize.py").write_text(
        "import json, os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # also where the tests run in the background
        "dump = json.dump\n"
        "def interrupt(facts, file, **options):\n"
        "    dump(facts, file, **options)\n"
        "    if file.name.endswith('pack.json'): file.flush(); print(os.listdir(os.path.dirname(file.name)))\n"
        "    if file.name.endswith('pack.json'): os.kill(os.getpid(), signal.SIGINT)\n"
        "json.dump = interrupt\n"
    )
    if existed:
        folder.mkdir(parents=True)
    done = run("tfpool", "pack", path, "-o", str(folder), cache=tmp_path, **python_path(code))
    assert "pack.json" in done.stdout
    assert 1 == done.returncode
    assert "Traceback" not in done.stderr
    assert ([folder] if existed else []) == list((tmp_path / "image").iterdir())
    assert not existed or [] == list(folder.iterdir())


def test_pack_command_fills_a_folder(tmp_path: Path) -> None:
    """An empty folder that is there, a volume say, is filled; it is not replaced."""
    path, folder = make_model(str(tmp_path / "sum.keras")), tmp_path / "volume"
    folder.mkdir()
    inode = folder.stat().st_ino
    done = run("tfpool", "pack", path, "-o", str(folder), cache=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert inode == folder.stat().st_ino
    assert ["graph.pb", "layers.pb", "pack.json", "weights.bin"] == sorted(part.name for part in folder.iterdir())


def test_pack_command_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    done = run("tfpool", "pack", "proj:slow_model", "-o", str(tmp_path), cache=tmp_path)
    assert 1 == done.returncode
    assert "is there already" in done.stderr
    assert "precious" == (tmp_path / "file").read_text()


def test_damaged_pack_of_the_users(start_worker: StartWorker, tmp_path: Path) -> None:
    """A pack that was made ahead is the user's: a damaged one is said to be, and not repaired."""
    path = make_model(str(tmp_path / "sum.keras"))
    folder = tmp_path / "sum.pack"
    run("tfpool", "pack", path, "-o", str(folder), cache=tmp_path)
    (folder / "graph.pb").write_bytes(b"")
    worker = start_worker("-c", "1", conf={"tf_model_path": str(folder)})
    assert "graph.pb has changed since it was written" in worker.log
    with pytest.raises(Exception, match=r"graph\.pb has 0 bytes instead of"):
        worker.call("predict_row", ONES)


# -- killed ----------------------------------------------------------------------------


def test_workers_killed_at_random(start_worker: StartWorker, digits: str, tmp_path: Path) -> None:
    """SIGKILL of worker main at any moment of its start, packing included: the next start finds no damage."""
    cache, chance = tmp_path / "cache", random.Random(4)
    conf = {"tf_model_path": digits, "tf_cache_dir": str(cache)}
    half_made = 0
    for after in (0, *(chance.uniform(0, 1.5) for _ in range(3))):
        worker = start_worker("-c", "1", conf=conf, wait=False)
        wait_until(lambda: [*cache.glob("temporary-*"), *cache.glob("*/pack.json")], "it packs, or has a pack")
        time.sleep(after)
        psutil.Process(worker.process.pid).kill()
        worker.process.wait()
        wait_until(lambda worker=worker: not marked(worker.mark), "the end of what it had started")
        half_made += bool(list(cache.glob("temporary-*")))
    assert half_made > 0
    worker = start_worker("-c", "1", conf=conf)
    assert [[16.0]] == worker.call("predict_row", ONES)[1]
    (child,) = tfpool(worker)["children"]
    assert child["models"]["default"]["packed"] is True
    assert [] == list(cache.glob("temporary-*"))
