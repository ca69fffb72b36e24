"""Private names of other packages are used in three files, which say so when one is gone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import billiard.pool
import billiard.queues
import pytest
from celery.concurrency import asynpool, base, prefork
from conftest import StartWorker, python_path

from celery_tfpool import _backends, _celery, _tensorflow

PACKAGE = Path(__file__).parent.parent / "celery_tfpool"
HOMES = {"_celery.py", "_tensorflow.py", "_backends.py"}
#: Public in spite of their names; and the standard library's own, which `processes` says it uses.
PUBLIC = {"_replace", "_fields", "_getframe", "_exit"}
OF_MULTIPROCESSING = {"_config", "_forkserver", "_forkserver_pid", "_forkserver_address", "_forkserver_alive_fd"}
#: Modules that nobody promises.
PRIVATE_MODULES = (
    "tensorflow.python",
    "tensorflow.core",
    "keras.src",
    "jax._src",
    "celery._state",
    "celery.bin.worker",
)


def private_names_of(*modules: object) -> set[str]:
    """What classes of these modules call themselves, or have."""
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):  # type: ignore[attr-defined]
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", None)
            if isinstance(name, str) and is_private(name):
                found.add(name)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


INHERITED = private_names_of(billiard.pool, billiard.queues, asynpool, prefork, base)


def wrong(path: Path, source: str) -> Iterator[str]:
    """Where ``source``, which stands at ``path``, uses a private name that is not its own."""
    room = path.relative_to(PACKAGE).parts[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in PUBLIC:
            is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            is_self = is_super or (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            if path.name == "processes.py" and node.attr in OF_MULTIPROCESSING:
                continue
            if not is_self or (room == "pool" and node.attr in INHERITED):
                yield f"{path.name}:{node.lineno} {node.attr}"
        elif isinstance(node, ast.FunctionDef) and room == "pool" and node.name in INHERITED and is_private(node.name):
            yield f"{path.name}:{node.lineno} def {node.name}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if any(module.startswith(PRIVATE_MODULES) for module in modules) and not getattr(node, "level", 0):
                yield f"{path.name}:{node.lineno} import {modules}"
            for alias in node.names:
                if is_private(alias.name) and not getattr(node, "level", 0):
                    yield f"{path.name}:{node.lineno} import {alias.name}"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in HOMES],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_there(path: Path) -> None:
    assert [] == list(wrong(path, path.read_text()))


PLANTED = [
    "from tensorflow.python.eager import context",
    "import keras.src.models",
    "import jax._src.xla_bridge",
    "from celery import _state",
    "def f(process): return process._popen",
    "class Pool:\n    def _create_worker_process(self, i): return None",
    "class Pool:\n    def f(self): return self._inqueue",
]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_one_is_seen(planted: str) -> None:
    assert list(wrong(PACKAGE / "pool" / "planted.py", planted))


def test_each_says_what_is_missing() -> None:
    """Each function and mixin of these files, in the words that the others use."""
    for module in (_celery, _tensorflow, _backends):
        tree = ast.parse(Path(module.__file__).read_text())
        for node in tree.body:
            if (
                isinstance(node, (ast.FunctionDef, ast.ClassDef))
                and not node.name.startswith("_")
                and node.name != "gone"
            ):
                assert "Public way missing: " in (ast.get_docstring(node) or ""), node.name


def test_all_are_there() -> None:
    """With the versions that are installed."""
    program = "import tensorflow; from celery_tfpool import _celery, _tensorflow; "
    program += "print(_celery.gone(), _tensorflow.gone(), _tensorflow.context_state())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[] [] (False, [])" == done.stdout.strip()


RENAMED = {
    "the context": ("import tensorflow.python.eager.context as c; del c._context", "_context"),
    "its handle": (
        "import tensorflow.python.eager.context as c; c._context = object()",
        "Context._context_handle",
    ),
}


@pytest.mark.parametrize("rename", RENAMED)
def test_a_renamed_name_does_not_silence_the_fork_guard(rename: str) -> None:
    """What cannot be known is not taken for harmless."""
    code, name = RENAMED[rename]
    program = f"import tensorflow; {code}; from celery_tfpool.runners import tf_state; print(tf_state.evidence())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = "a version of TensorFlow whose state cannot be read: it has no tensorflow.python.eager.context"
    assert f"{told}.{name}" == done.stdout.strip()


def test_the_worker_says_what_is_gone(start_worker: StartWorker, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import billiard.util; del billiard.util.get_pdeathsig")
    worker = start_worker("-c", "1", env=python_path(tmp_path), wait=False)
    worker.wait_for("this version of Celery has no billiard.util.get_pdeathsig any more, which celery_tfpool uses")
