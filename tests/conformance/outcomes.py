"""A pytest plugin that runs chosen tests only, and writes down how each ended.

One line of JSON per test, written when the test ends: what a crash of pytest
leaves behind is still true.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--outcomes", type=Path, required=True, help="File to write outcomes to.")
    group.addoption("--only", type=Path, help="File of test ids, one per line; all others are left out.")
    group.addoption("--shard", default="0/1", help="Which part of the tests to run, of how many.")
    group.addoption("--longest", type=float, required=True, help="Seconds a test may take, whatever its own mark says.")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Outcomes(config.getoption("outcomes")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only: Path | None = config.getoption("only")
    if only:
        chosen = set(only.read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in chosen]
    shard, shards = config.getoption("shard").split("/")
    items[:] = items[int(shard) :: int(shards)]
    longest: float = config.getoption("longest")
    for item in items:
        own = item.get_closest_marker("timeout")
        if own is None or _seconds(own) > longest:
            item.add_marker(pytest.mark.timeout(longest), append=False)


def _seconds(mark: pytest.Mark) -> float:
    return float(mark.args[0] if mark.args else mark.kwargs["timeout"])


class _Outcomes:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w")
        self._reports: list[pytest.TestReport] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", f"not collected: {_reason(report)}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        reports, self._reports = self._reports, []
        for report in reports:  # set-up, subtests, the test, teardown
            if report.failed:
                return self._write(nodeid, "failed", _reason(report))
        for report in reports:
            # Neither an expected failure nor an unexpected success can be relied on.
            xfail = hasattr(report, "wasxfail")
            if report.skipped or xfail:
                return self._write(nodeid, "skipped", f"xfail {report.wasxfail}" if xfail else _reason(report))
        return self._write(nodeid, "passed", "")

    def pytest_sessionfinish(self) -> None:
        self._file.close()

    def _write(self, nodeid: str, outcome: str, reason: str) -> None:
        print(json.dumps({"id": nodeid, "outcome": outcome, "reason": reason}), file=self._file, flush=True)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """One line of why: an exception's message, or why a test was skipped."""
    longrepr: Any = report.longrepr
    if isinstance(longrepr, tuple):
        return str(longrepr[2])
    crash = getattr(longrepr, "reprcrash", None)
    text = (crash.message if crash else str(longrepr)).strip()
    lines = text.splitlines() or [""]
    # pytest's own messages start with the reason, a collection error's traceback ends with it.
    return str(lines[0] if crash else lines[-1])[:200]
