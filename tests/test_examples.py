"""The examples do what their READMEs say, and leave nothing behind; the quickstart is in test_demo.py."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Program, marked

EXAMPLES = Path(__file__).parent.parent / "examples"
#: Seconds until a program has run, on a slow machine.
PATIENCE = 300.0
ANSWERS = r"[\d.]+ s, \d+ ms, (?P<{0}_processes>\d) × (?P<{0}_size>\d+) MB"


class Example(Program):
    """A run of an example whose temporary files are in ``folder``, and whose processes can be found."""

    def __init__(self, folder: Path, program: str, *arguments: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        env = {**os.environ, "TMPDIR": str(folder), "TFPOOL_TEST_MARK": self.mark, "PYTHONUNBUFFERED": "1"}
        super().__init__([sys.executable, str(EXAMPLES / program), *arguments], env=env, cwd=folder)

    def left(self) -> list[psutil.Process | Path]:
        _, alive = psutil.wait_procs(marked(self.mark), timeout=10)  # those that were killed are going
        return [*alive, *self.folder.iterdir()]

    def kill(self) -> None:
        for process in marked(self.mark):
            process.kill()
        self.process.wait(10)


RunExample = Callable[..., Example]


@pytest.fixture
def run_example(tmp_path: Path) -> Iterator[RunExample]:
    examples: list[Example] = []

    def run(program: str, *arguments: str) -> Example:
        examples.append(Example(tmp_path, program, *arguments))
        return examples[-1]

    yield run
    for example in examples:
        example.kill()


def compare(run_example: RunExample, *ways: str, bound: int) -> dict[str, tuple[str, str]]:
    """Of each way to load models, what came of it before and after; the program checks the answers themselves."""
    example = run_example("migration/compare.py", "--bound", str(bound), "--ways", *ways)
    assert 0 == example.wait(PATIENCE), example.log
    assert [] == example.left()
    found = re.findall(r"^\| (\d) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", example.log, re.MULTILINE)
    return {way: (before, after) for way, before, after in found}


def private_memory(outcome: str) -> tuple[int, int]:
    """How many processes have predicted, and what each needs, in MB."""
    found = re.fullmatch(r"[\d.]+ s, \d+ ms, (\d) × (\d+) MB", outcome)
    assert found, outcome
    return int(found[1]), int(found[2])


def test_no_answer(run_example: RunExample) -> None:
    """Of what hangs or fails the same file answers with another flag."""
    rows = compare(run_example, "1", "2", "3", bound=10)
    assert ["hangs", "fails: RuntimeError", "hangs"] == [before for before, _ in rows.values()]
    assert [2, 2, 2] == [private_memory(after)[0] for _, after in rows.values()]


def test_answers_before(run_example: RunExample) -> None:
    """What answers before takes less memory in each process afterwards."""
    rows = compare(run_example, "4", "5", "6", "7", bound=90)
    before, after = zip(*[map(private_memory, row) for row in rows.values()], strict=True)
    assert ([2, 2, 2, 1], [2, 2, 2, 2]) == ([count for count, _ in before], [count for count, _ in after])
    assert all(new < old for (_, old), (_, new) in zip(before, after, strict=True))


def test_interrupted(run_example: RunExample) -> None:
    example = run_example("migration/compare.py", "--ways", "1")
    example.wait_for("before")
    example.process.send_signal(signal.SIGINT)

    assert 130 == example.wait(), example.log
    assert "Traceback" not in example.log
    assert [] == example.left()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root: run the tests with sudo")


@needs_root
def test_two_machines(run_example: RunExample) -> None:
    """Each answers for its own model; what is sent to one that is off is answered when it is back."""
    example = run_example("two_machines/run.py")
    assert 0 == example.wait(PATIENCE), example.log
    faces, masks = "   faces: 16.0 from faces", "   masks: 32.0 from masks"
    steps = [line for line in example.log.splitlines() if not re.match(r"\d\.", line)]
    assert [faces, masks, masks, masks, "   faces: 2 tasks wait in RabbitMQ", faces, faces] == steps
    assert [] == example.left()


@needs_root
@pytest.mark.parametrize(("moment", "number"), [("1. three", signal.SIGINT), ("2. a task", signal.SIGTERM)])
def test_machines_interrupted(run_example: RunExample, moment: str, number: signal.Signals) -> None:
    example = run_example("two_machines/run.py")
    example.wait_for(moment)
    example.process.send_signal(number)

    assert 130 == example.wait(), example.log
    assert "Traceback" not in example.log
    assert [] == example.left()
