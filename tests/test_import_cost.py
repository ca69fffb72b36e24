"""What an import brings along: a process that only sends tasks, or runs another command, pays nothing for models."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("numpy", "tensorflow", "keras", "h5py", "ml_dtypes", "wrapt")
SENDS_TASKS = """
import sys
from celery import Celery
before = set(sys.modules)
from celery_tfpool import get_model, PredictionTimeout
app = Celery("proj", broker="memory://")
app.conf.tf_model_path = "digits.keras"

@app.task
def predict(x):
    return get_model().predict(x)

predict.delay([1.0])
print(sorted(set(sys.modules) - before))
"""
OTHER_COMMAND = """
import sys
sys.argv[:] = ["celery", *sys.argv[1:]]
import celery.bin.celery
try: celery.bin.celery.main()
except SystemExit: pass
print(sorted(sys.modules), file=sys.stderr)
"""


def test_web_process() -> None:
    done = subprocess.run([sys.executable, "-c", SENDS_TASKS], capture_output=True, text=True, check=True)
    imported = eval(done.stdout)
    assert [] == [name for name in HEAVY if name in imported]
    # kombu has loaded the serializer, with all others, before.
    assert [] == [name for name in imported if name.startswith("celery_tfpool")]


def test_celery_itself() -> None:
    """Loads the serializer of this package, as kombu does with all that are installed, and nothing else of it."""
    program = "import celery, kombu.serialization, sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = eval(done.stdout)
    assert [] == [name for name in HEAVY if name in imported]
    ours = {name for name in imported if name.startswith("celery_tfpool")}
    assert {"celery_tfpool", "celery_tfpool.errors", "celery_tfpool.serialization"} == ours


@pytest.mark.parametrize(
    ("arguments", "watches"),
    [
        (["--version"], False),
        (["tfpool", "cache", "--help"], False),
        (["worker", "--help"], True),
        (["worker", "-P", "threads", "--help"], False),
        (["worker", "--pool=solo", "--help"], False),
        (["worker", "-P", "celery_tfpool:TFPrefork", "--help"], True),
    ],
)
def test_commands(arguments: list[str], watches: bool) -> None:
    """Only what may become a worker of ours looks out for TensorFlow's start; only what is one imports NumPy for us."""
    program = [sys.executable, "-c", OTHER_COMMAND, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    imported = eval(done.stderr.splitlines()[-1])
    assert watches == ("wrapt" in imported)
    of_ours = ["wrapt", *(["numpy"] if "celery_tfpool:TFPrefork" in arguments else [])]
    assert [] == [name for name in HEAVY if name in imported and name not in of_ours]
