"""Run Celery's own tests with our pool in place of prefork.

    python tests/conformance/run.py              # every test that passes with prefork must pass with ours
    python tests/conformance/run.py --baseline   # write down which tests pass with prefork

The tests are those of the Celery that is installed (`sources`), on a Redis
server of their own (`broker`); the pool is exchanged by `substitute`, and
`outcomes` writes down how each test ended.  Here is decided which tests run,
and what their outcomes mean.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from broker import redis_server
from sources import celery_tests
from substitute import VARIABLE

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "conformance"
POOL = "celery_tfpool.pool.prefork:TFPrefork"
NEEDED = ("pytest", "pytest_timeout", "redis", "pydantic", "cryptography", "freezegun")

#: How the ids of tests start that never meet the prefork pool or tell nothing of it, and why they are left out.
LEFT_OUT = {
    "t/integration/test_backend.py": "needs Azure",
    "t/integration/test_backend_leak_in_fixture_teardown.py": "starts 20 solo workers, which takes a minute",
    "t/integration/test_cache_backend.py": "needs memcached",
    "t/integration/test_database_backend.py": "a result backend without a worker; needs SQLAlchemy",
    "t/integration/test_tasks.py::test_tasks::test_multi": "two of producers; hang in 5.5, skipped as broken in 5.7",
    "t/integration/test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0": (
        "clears what it looks at after it has sent the task: fails where the worker is faster, with any pool"
    ),
    "t/integration/test_worker.py::test_django_fixup": "three tests of solo workers with Django",
}

#: More failures than this have one cause, which a second try does not remove.
WORTH_A_SECOND_TRY = 40


@dataclass(frozen=True)
class Suite:
    """Some of Celery's tests, and how they are run.  Times are seconds."""

    path: str
    #: So many pytests share the tests.
    shards: int
    #: The longest a test may take, and the longest all of them may take.
    longest: float
    deadline: float


SUITES = (
    # A test of t/integration mostly waits, the better part of it for replies to
    # inspect() when it is over.  The shards cannot disturb each other: each has
    # its own Redis, and so its own worker.  The slowest test takes 85 s of waiting.
    Suite("t/integration", shards=4, longest=150, deadline=600),
    Suite("t/unit/concurrency", shards=1, longest=30, deadline=120),
    Suite("t/unit/worker", shards=1, longest=30, deadline=300),
)


@dataclass(frozen=True)
class Ending:
    """How a test ended: "passed", "failed" or "skipped", and the reason unless it passed."""

    outcome: str
    reason: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run Celery's own tests with our pool in place of prefork.")
    parser.add_argument("--baseline", action="store_true", help="write down which tests pass with prefork itself")
    parser.add_argument("--pool", default=POOL, help='the pool to test, as "module:class" (%(default)s)')
    parser.add_argument("-k", dest="part", default="", metavar="TEXT", help="only tests whose id contains TEXT")
    options = parser.parse_args()
    assert isinstance(sys.stdout, io.TextIOWrapper)  # for mypy
    sys.stdout.reconfigure(line_buffering=True)  # pytest writes to it too

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; pip install -r {HERE / 'requirements.txt'}")
    if not options.baseline and find_spec(options.pool.partition(":")[0].partition(".")[0]) is None:
        raise SystemExit(f"{options.pool} is not installed for {sys.executable}; pip install -e . first")
    # So that `with` and `finally` also clean up after a plain kill.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return write_baseline() if options.baseline else check(options.pool, options.part)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def write_baseline() -> int:
    """Write down the tests that pass with prefork, twice in a row."""
    tests = celery_tests(CACHE)
    passed: set[str] = set()
    for suite in SUITES:
        endings = run(suite, tests)
        first = good(endings)
        again = run(suite, tests, only=first)
        passed |= first & good(again)
        second = {test: again.get(test, Ending("failed", "did not run")) for test in first}
        for test, ending in sorted({**endings, **second}.items()):
            if ending.outcome != "passed":
                at_times = " the second time" if test in first else ""
                print(f"left out: {test} {ending.outcome}{at_times} - {ending.reason}")
    by_file = {
        file: [test.partition("::")[2] for test in ids]
        for file, ids in groupby(sorted(passed), key=lambda test: test.partition("::")[0])
    }
    baseline_path().write_text(json.dumps(by_file, indent=0) + "\n")
    print(f"{len(passed)} tests in {baseline_path()}")
    return 0


def check(pool: str, part: str) -> int:
    """Run the tests of the baseline with ``pool``; 1 when one of them does not pass."""
    tests = celery_tests(CACHE)
    baseline = {test for test in read_baseline() if part in test}
    failures: dict[str, Ending] = {}
    for suite in SUITES:
        expected = {test for test in baseline if test.startswith(f"{suite.path}/")}
        failures |= check_suite(suite, tests, pool, expected)
    for test, ending in sorted(failures.items()):
        print(f"FAILED {test} - {ending.reason}")
    passed = len(baseline) - len(failures)
    print(f"conformance with celery {version('celery')}: {passed} passed, {len(failures)} failed")
    return 1 if failures else 0


def check_suite(suite: Suite, tests: Path, pool: str, expected: set[str]) -> dict[str, Ending]:
    """The tests among ``expected`` that do not pass, not even when they are tried again on their own."""
    start = time.monotonic()
    endings = run(suite, tests, pool=pool, only=expected)
    bad = expected - good(endings)
    if 0 < len(bad) <= WORTH_A_SECOND_TRY:
        print(f"{suite.path}: trying again, on their own: {len(bad)} that did not pass")
        endings |= run(suite, tests, pool=pool, only=bad, alone=True)
    did_not_run = Ending("failed", "did not run")
    failures = {test: endings.get(test, did_not_run) for test in expected - good(endings)}
    seconds = time.monotonic() - start
    print(f"{suite.path}: {len(expected) - len(failures)} passed, {len(failures)} failed in {seconds:.0f} s")
    return failures


def good(endings: dict[str, Ending]) -> set[str]:
    return {test for test, ending in endings.items() if ending.outcome == "passed"}


def baseline_path() -> Path:
    return HERE / f"baseline-{version('celery')}.json"


def read_baseline() -> set[str]:
    try:
        by_file: dict[str, list[str]] = json.loads(baseline_path().read_text())
    except FileNotFoundError:
        raise SystemExit(
            f"there is no {baseline_path()}, so it is not known which tests pass with prefork itself; "
            "first run: make conformance-baseline"
        ) from None
    return {f"{file}::{name}" for file, names in by_file.items() for name in names}


def run(
    suite: Suite, tests: Path, *, pool: str = "", only: set[str] | None = None, alone: bool = False
) -> dict[str, Ending]:
    """Run a suite and say how each of its tests ended; one that is missing did not run.

    Args:
        pool: what takes prefork's place, if anything does.
        only: the ids of the tests to run, all when it is None.
        alone: the tests do not share the machine with others, and their tracebacks are shown.
    """
    shards = 1 if alone else suite.shards
    print(f"{suite.path} with {pool or 'prefork'}, celery {version('celery')}:")
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch, ExitStack() as stack:
        chosen = Path(scratch, "only")
        chosen.write_text("\n".join(only or ()))
        files = [Path(scratch, f"outcomes-{shard}") for shard in range(shards)]
        processes = []
        for shard, file in enumerate(files):
            command = [
                *pytest_command(suite, tests),
                f"--shard={shard}/{shards}",
                f"--outcomes={file}",
                f"--tb={'short' if alone else 'no'}",
                *([f"--only={chosen}"] if only is not None else []),
            ]
            variables = {**environment(stack.enter_context(redis_server())), VARIABLE: pool, "TMPDIR": scratch}
            processes.append(stack.enter_context(process_group(command, cwd=tests, env=variables)))
        wait(processes, suite.deadline)
        print()
        return read_endings(files)


def pytest_command(suite: Suite, tests: Path) -> list[str]:
    plugins = ("pytest_timeout", "celery.contrib.pytest", "substitute", "outcomes", "no:cacheprovider")
    return [
        *(sys.executable, "-m", "pytest", suite.path, f"--rootdir={tests}", f"--longest={suite.longest}"),
        *(word for plugin in plugins for word in ("-p", plugin)),
        *(f"--{'deselect' if '::' in start else 'ignore'}={start}" for start in LEFT_OUT),
        # Only dots, for several pytests write at once.
        *("-qq", "-rN", "--no-header", "--disable-warnings", "--override-ini=console_output_style=classic"),
    ]


def environment(port: int) -> dict[str, str]:
    """The environment that Celery's tests expect, on the Redis at ``port``."""
    url = f"redis://127.0.0.1:{port}/0"
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    return {
        **ours,
        "TEST_BROKER": url,
        "TEST_BACKEND": url,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(port),
        "WORKER_LOGLEVEL": "INFO",  # as in Celery's tox.ini
        # Only the plugins named above, whatever else is installed: pytest-rerunfailures
        # would try a failing test six times, which can take minutes each.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        # Some tests start "celery".
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


@contextmanager
def process_group(command: Sequence[str], *, cwd: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program; in the end, kill it and whatever it started."""
    process = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"\npytest {process.pid} is not done after {seconds:.0f} s and is killed")


def read_endings(files: Iterable[Path]) -> dict[str, Ending]:
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return {line["id"]: Ending(line["outcome"], line["reason"]) for line in lines}


if __name__ == "__main__":
    sys.exit(main())
