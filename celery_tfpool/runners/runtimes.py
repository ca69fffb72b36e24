"""Runtimes that do not survive a fork: which of them runs in this process, who started it, and with how many threads.

Keras runs on TensorFlow, JAX or PyTorch.  A process may *import* any of them
and still fork safely; nothing here starts one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import wrapt

from .. import _backends, _tensorflow
from . import first_calls, installed, openmp, tf_state
from .culprit import search_modules


@dataclass(frozen=True)
class Runtime:
    """One that may run in a process."""

    title: str
    #: What shows that it does; empty when nothing does.
    evidence: Callable[[], str]
    #: Whether a fork has inherited it.
    is_inherited: Callable[[], bool]
    #: Whose models and tensors, in a module of the user's, show who started it.
    packages: tuple[str, ...]

    def culprit(self) -> str:
        """Who started it here: the line when `watch` was on, else what can be found."""
        return (
            first_calls.line(self.title)
            or search_modules(self.packages)
            or f"an unknown line (found {self.evidence() or 'nothing'})"
        )


def _jax_evidence() -> str:
    try:
        return "a client of XLA" if _backends.jax_is_initialised() else ""
    except LookupError as exc:  # what cannot be known is not taken for harmless
        return f"a version of JAX whose state cannot be read: it has no {exc.args[0]}"


def _torch_evidence() -> str:
    """On a CPU its threads are OpenMP's, which are given back before each fork, where that is possible."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    if torch.cuda.is_initialized():
        return "an initialised CUDA driver"
    return "" if openmp.give_threads_back() else "a version of OpenMP that cannot end its threads before a fork"


RUNTIMES = (
    Runtime("TensorFlow", tf_state.evidence, tf_state.is_inherited, ("tensorflow", "keras", "tf_keras")),
    Runtime("JAX", _jax_evidence, lambda: bool(_jax_evidence()), ("jax", "jaxlib", "keras")),
    # Which says itself that a forked process cannot use its driver.
    Runtime("PyTorch", _torch_evidence, lambda: False, ("torch", "keras")),
)


def running() -> Runtime | None:
    """The first that runs in this process, and would not survive a fork; None where it may fork."""
    return next((runtime for runtime in RUNTIMES if runtime.evidence()), None)


def watch() -> None:
    """From now on remember the line that starts one of them in this process."""
    first_calls.watch("TensorFlow", _tensorflow.first_calls())
    first_calls.watch("JAX", _backends.jax_first_calls())
    wrapt.register_post_import_hook(_leave_driver_alone, "torch")


def _leave_driver_alone(torch: ModuleType) -> None:
    """Let the question whether there is a GPU, which Keras asks when it is imported, not start CUDA's driver here."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


#: Their OpenBLAS starts threads when they are imported, and anew in a fork: JAX imports the first two, and Keras the
#: last, where it is installed.
_WITH_OPENBLAS = ("numpy", "scipy.linalg"), ("sklearn.base",)


def preimport() -> list[str]:
    """Import Keras and what it runs on, which initialises nothing; names of the native threads that it started."""
    for module in _WITH_OPENBLAS[0 if installed.backend() == "jax" else 1]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    before = tf_state.native_threads()
    wrapt.register_post_import_hook(_leave_driver_alone, "torch")
    for module in installed.modules():
        importlib.import_module(module)
    return tf_state.native_threads()[len(before) :]


def names_gone() -> list[str]:
    """Which private names of what is imported are not there any more, as ``module.name``."""
    return [*_tensorflow.gone(), *_backends.gone()]


# -- threads -------------------------------------------------------------------


def limit_threads(*, intra_op: int, inter_op: int, explicit: bool) -> None:
    """Give this process so many threads to compute with, now or as soon as anybody imports what computes.

    Args:
        explicit: the number comes from a setting, and so goes before the user's own; see `tf_state.limit_threads`.
    """

    def limit_torch(torch: ModuleType) -> None:
        if explicit or "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(intra_op)

    tf_state.limit_threads(intra_op=intra_op, inter_op=inter_op, explicit=explicit)
    wrapt.register_post_import_hook(limit_torch, "torch")
    wrapt.register_post_import_hook(lambda _: _backends.limit_jax_threads(intra_op, explicit=explicit), "jax")


# -- forks of a process in which one runs --------------------------------------

#: The parent of which this process is a fork that has inherited a runtime, which does not work here; and which runtime.
_inherited: tuple[int, str] | None = None
_is_protected = False


def inherited() -> tuple[int, str] | None:
    """The parent whose runtime this process, a fork of it, has inherited, and its name; None where there is none."""
    return _inherited


def _note_fork() -> None:
    global _inherited
    if _inherited is None:
        found = next((runtime.title for runtime in RUNTIMES if runtime.is_inherited()), None)
        _inherited = (os.getppid(), found) if found else None


def protect_forks() -> None:
    """From now on let the threads that PyTorch computes with end before each fork of this process, and of its forks."""
    global _is_protected
    if not _is_protected:
        _is_protected = True
        os.register_at_fork(before=openmp.before_fork)


os.register_at_fork(after_in_child=_note_fork)
