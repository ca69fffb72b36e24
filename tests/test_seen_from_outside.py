"""Banner, statistics, threads, and `celery tfpool check`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from celery import VERSION
from conftest import APPS, StartWorker, make_model, quiet

from celery_tfpool.pool.startup import usable_cores
from celery_tfpool.runners import installed


def test_banner_and_stats(start_worker: StartWorker, digits: str, engine: str) -> None:
    worker = start_worker("-c", "1", broker=engine, conf={"tf_model_path": {"sum": digits}})
    keras = version("keras")
    for row in (
        f".> models:      sum = {digits} (shared)",
        ".> load:        lazy, in each child",
        f".> threads:     {usable_cores()} intra-op, {usable_cores()} inter-op in each child",
        ".> start:       fork",
        f", keras {keras}",
    ):
        assert row in worker.log
    worker.call("predict", 1, "sum")
    stats = worker.stats()["tfpool"]
    (child,) = stats.pop("children")
    assert installed.versions_in_use() == stats.pop("versions")
    packed = stats.pop("packs")["sum"]
    assert packed["packed"] is True
    files = [file for file in Path(packed["folder"]).iterdir() if file.name != "pack.json"]
    assert packed["bytes_shared"] == sum(file.stat().st_size for file in files)
    assert {
        "models": {"sum": digits},
        "load": "lazy",
        "start_method": "fork",
        "predictors": [],
        "threads": {"intra_op": usable_cores(), "inter_op": usable_cores()},
    } == stats
    assert [0, worker.children()[0], True] == [child[key] for key in ("slot", "pid", "ready")]
    assert child["models"]["sum"]["loaded"] is True


@pytest.mark.parametrize(
    ("options", "conf", "expected"),
    [
        (["-c", "1"], {}, [usable_cores(), usable_cores()]),
        (["-c", "4"], {}, [max(1, usable_cores() // 4)] * 2),
        (["--autoscale=4,1"], {}, [max(1, usable_cores() // 4)] * 2),
        (["-c", "1"], {"tf_intra_op_parallelism": 3, "tf_inter_op_parallelism": 5}, [3, 5]),
    ],
)
def test_threads(start_worker: StartWorker, digits: str, options: list[str], conf: dict, expected: list[int]) -> None:  # type: ignore[type-arg]
    """Cores ÷ children (under autoscale the most there may be), unless a setting says otherwise."""
    worker = start_worker(*options, conf=conf | {"tf_model_path": "proj:slow_model"})
    assert expected == worker.call("threads_of_tensorflow")
    assert dict(zip(("intra_op", "inter_op"), expected, strict=True)) == worker.stats()["tfpool"]["threads"]


def cores_of(*before: str) -> int:
    command = [
        *before,
        sys.executable,
        "-c",
        "from celery_tfpool.pool.startup import usable_cores; print(usable_cores())",
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_cores_by_affinity() -> None:
    assert 1 == cores_of("taskset", "--cpu-list", "0")


@pytest.mark.skipif(VERSION < (5, 7), reason="loky knows the quota of the root cgroup only")
def test_cores_by_quota() -> None:
    """A cgroup below the root with the time of half a core has one."""
    controller = Path("/sys/fs/cgroup/cpu")
    if not (controller / "cpu.cfs_quota_us").exists() or os.getuid() != 0:
        pytest.skip("needs a writable cgroup v1 cpu controller")
    group = controller / f"tfpool-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        (group / "cpu.cfs_period_us").write_text("100000")
        assert 1 == cores_of("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        group.rmdir()


def test_native_threads(start_worker: StartWorker) -> None:
    """The runtime itself keeps to the number: it is set before it starts, also for code that never calls us."""
    worker = start_worker("-c", "1", conf={"tf_intra_op_parallelism": 1, "tf_inter_op_parallelism": 3})
    assert 3 == worker.call("compute_threads")


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "tfpool", "check", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=quiet(os.environ) | {"TFPOOL_TEST_CONF": "{}"},
        cwd=APPS,
    )


@pytest.mark.parametrize("source", [".keras", ".h5", "", "proj:slow_model"])
def test_check(tmp_path: Path, source: str) -> None:
    """Inputs, outputs, size and time of a model in each form, and one prediction."""
    path = source if ":" in source else make_model(str(tmp_path / f"model{source}"))
    done = check(path)
    assert 0 == done.returncode, done.stderr
    inputs, weights = ("2", "3") if ":" in source else ("16", "17")
    for text in (
        f"{path}: ",
        "loaded in ",
        f"float32 (rows, {inputs})",
        "float32 (rows, 1)",
        f"weights {weights} numbers",
    ):
        assert text in done.stdout
    assert "predict one row of zeros: ok" in done.stdout
    row = r" +\d+\.\d{3} +\d+\.\d{3}"
    assert re.search(rf"^tensorflow{row}$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(rf"^onnxruntime{row} +\de[+-]\d\d +\d+\.\d$", done.stdout, re.MULTILINE), done.stdout


def test_check_of_what_engines_do_not_take(tmp_path: Path) -> None:
    """Says why."""
    strings = "layers.Input((1,), dtype='string'), layers.StringLookup(vocabulary=['a', 'b'])"
    done = check(make_model(str(tmp_path / "m.keras"), f"model = keras.Sequential([{strings}])"))
    assert 0 == done.returncode, done.stderr
    assert re.search(r"^onnxruntime +not used: its .* is of dtype string$", done.stdout, re.MULTILINE), done.stdout
    done = check("proj:own_predict")
    assert "engines are not tried: it has a predict() or make_predict_function() of its own" in done.stdout


def test_check_of_any_object() -> None:
    """Which only its own code can try."""
    done = check("proj:Detector")
    assert 0 == done.returncode, done.stderr
    assert "predict is not tried: it is a Detector and no Keras model" in done.stdout


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    """One line and exit code 1."""
    code = "model = keras.Sequential([layers.Input((16,)), layers.Lambda(lambda x: x * 2)])"
    path = make_model(str(tmp_path / "lambda.keras"), code)
    for arguments, message in (
        (["/nowhere.keras"], "Error: /nowhere.keras: no such file or folder"),
        (["proj:broken_model"], "Error: proj:broken_model: RuntimeError: the weights are on the moon"),
        ([path], f"Error: {path}: it carries Python code"),
    ):
        done = check(*arguments)
        assert 1 == done.returncode
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert 0 == check("--unsafe", path).returncode
