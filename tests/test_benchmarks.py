"""The harness of ``make bench`` works: a quick suite, really run.  Nobody judges its times here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import with_everything

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def bench(output: Path, *arguments: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """Run a suite quickly; what it printed, and its JSON."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench.py"), *arguments, "--quick", "--output", str(output)],
        env={**with_everything(os.environ), **variables},
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout, json.loads((output / f"{arguments[0]}.json").read_text())


def test_throughput(tmp_path: Path) -> None:
    """Every contestant asked for, and both ceilings, with each model: rates, latencies, a table and a picture."""
    printed, found = bench(tmp_path, "throughput", "--only", "stock,tfpool")

    rows = {(row["contestant"], row["model"]): row for row in found["rows"]}
    assert {"stock", "tfpool", "plain"} == {contestant for contestant, model in rows if model == "lstm"}
    assert {"stock", "tfpool", "plain", "noop"} == {contestant for contestant, model in rows if model == "mlp"}
    for (contestant, _), row in rows.items():
        assert "failed" not in row
        assert row["tasks_per_second"]["min"] > 0
        if contestant != "plain":
            assert row["samples"] >= 32
            assert 0 < row["latency"]["p50"] <= row["latency"]["p95"] <= row["latency"]["p99"]
    assert {"python", "celery", "keras", "celery-tfpool"} <= set(found["versions"])
    assert os.cpu_count() == found["machine"]["cores"]
    assert "× stock" in printed
    assert printed.strip() == (tmp_path / "throughput.md").read_text().strip()
    assert (tmp_path / "throughput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kept", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_kept_results(kept: Path, tmp_path: Path) -> None:
    """Table and picture of a suite can be made again from its kept figures."""
    program = "import json, sys; import bench, report; "
    program += "found = json.load(open(sys.argv[1])); name = found['suite']; "
    program += "report.write(name, bench.SUITES[name], found['rows'], bench.Path(sys.argv[2]), quick=False, seconds=1)"
    command = [sys.executable, "-c", program, str(kept), str(tmp_path)]
    subprocess.run(command, cwd=BENCHMARKS, env=with_everything(os.environ), check=True, timeout=120)
    assert (tmp_path / f"{kept.stem}.md").read_text().startswith("# ")
    assert (tmp_path / f"{kept.stem}.png").read_bytes().startswith(b"\x89PNG")


def test_cannot_be_installed(tmp_path: Path) -> None:
    """A contestant that cannot be installed is reported as failed, with what pip says."""
    environments = tmp_path / "environments"
    variables = {"BENCH_ENVIRONMENTS": str(environments), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    printed, found = bench(tmp_path, "leak", "--only", "batches", **variables)

    (row,) = found["rows"]
    assert "batches" == row["contestant"]
    assert "pip could not install celery[redis] celery-batches: ERROR: " in row["failed"]
    assert "Failed:\n\n- celery-batches (threads), compiled call: pip could not install" in printed


@pytest.mark.parametrize(("answer", "wrong"), [([1.0, 2.0005], False), ([1.0, 2.1], True), ([1.0, float("nan")], True)])
def test_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: list[float], wrong: bool) -> None:
    """A contestant whose outputs are not Keras's own has failed before any timing."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import session

    monkeypatch.setattr(session, "MODELS", tmp_path)
    (tmp_path / "mlp.json").write_text("[[5.0, 6.0], [1.0, 2.0]]")

    if wrong:
        with pytest.raises(session.Failed, match="mlp: outputs differ from Keras's own, relatively by"):
            session.compare("mlp", [answer], first=1)
    else:
        session.compare("mlp", [answer], first=1)
