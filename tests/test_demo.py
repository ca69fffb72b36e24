"""The demo of ``make demo`` does what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Program, marked, with_everything

DEMO = Path(__file__).parent.parent / "examples" / "quickstart" / "demo.py"


class Demo(Program):
    """A run of the demo whose temporary files are in ``folder``, and whose processes can be found."""

    def __init__(self, folder: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.home = folder.parent / f"{folder.name}-home"
        self.home.mkdir()
        environ = {
            **with_everything(os.environ),
            "TMPDIR": str(folder),
            "HOME": str(self.home),
            "TFPOOL_TEST_MARK": self.mark,
            "PYTHONUNBUFFERED": "1",
        }
        del environ["XDG_CACHE_HOME"]  # set for the tests
        super().__init__([sys.executable, str(DEMO), *arguments], env=environ | (env or {}), cwd=folder)

    def left(self) -> list[psutil.Process | Path]:
        return [*marked(self.mark), *self.folder.iterdir(), *self.home.rglob("celery_tfpool*")]

    def kill(self) -> None:
        for process in marked(self.mark):
            process.kill()
        self.process.wait(10)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, "--images", "40", env={"CELERY_BROKER_URL": "redis://nowhere", "KERAS_BACKEND": "jax"})
    yield demo
    demo.kill()


def test_demo(demo: Demo) -> None:
    """It classifies digits, whatever the user's environment says of Celery and Keras."""
    assert 0 == demo.wait(), demo.log
    accuracy = re.search(r"^accuracy: (\d\.\d+) \((\d+) of 40 right\)$", demo.log, re.MULTILINE)
    assert accuracy, demo.log
    assert float(accuracy[1]) >= 0.9
    assert re.search(r"^speed: \d+ tasks per second", demo.log, re.MULTILINE), demo.log
    assert [] == demo.left()


@pytest.mark.parametrize(
    ("moment", "number"),
    [("1. train", signal.SIGTERM), ("3. start a worker", signal.SIGINT), ("0/40", signal.SIGTERM)],
)
def test_interrupted(demo: Demo, moment: str, number: signal.Signals) -> None:
    """Ctrl+C or ``kill`` at any moment ends it at once, without a traceback."""
    demo.wait_for(re.escape(moment))
    demo.process.send_signal(number)

    assert 130 == demo.wait(), demo.log
    assert "Traceback" not in demo.log
    assert [] == demo.left()


def test_worker_fails(tmp_path: Path) -> None:
    """A worker that cannot start makes the demo fail, with the reason from the worker's log."""
    temporary, code = tmp_path / "tmp", tmp_path / "code"
    temporary.mkdir()
    code.mkdir()
    (code / "sitecustomize.py").write_text('import sys\nif "worker" in sys.orig_argv: sys.exit("no worker today")\n')
    demo = Demo(temporary, "--images", "40", env={"PYTHONPATH": str(code)})

    assert 1 == demo.wait(), demo.log
    assert "no worker today" in demo.log
    assert "the demo failed: the worker has ended by itself, with exit code 1" in demo.log
    assert [] == demo.left()
