"""TensorFlow as a whole: is it initialised and by whom, how many threads, which versions.

A process may *import* TensorFlow and still fork safely; once it is
*initialised* (the first tensor, layer or session starts native thread pools)
a forked child waits for ever.  Nothing here initialises it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import wrapt

from .. import _tensorflow
from .culprit import blame, search_modules

_DISTRIBUTIONS = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tensorflow-macos",
    "tensorflow-rocm",
    "tf-nightly",
    "tf-nightly-cpu",
)

_OF_A_GRAPH = "tf_graph_runner"  # the thread of a ``tf.Graph()``
#: Where TensorFlow was initialised in this process, as `watch` saw it.
_initialised_at: str | None = None


# -- is it initialised? --------------------------------------------------------


def is_initialised() -> bool:
    """Whether this process has a TensorFlow runtime, which would not survive a fork."""
    return bool(evidence())


def evidence() -> str:
    """What shows that TensorFlow runs in this process; empty when nothing does."""
    if "tensorflow" not in sys.modules:
        return ""
    try:
        has_context, device_types = _tensorflow.context_state()
    except LookupError as exc:  # what cannot be known is not taken for harmless
        return f"a version of TensorFlow whose state cannot be read: it has no {exc.args[0]}"
    return judge(
        has_context=has_context,
        thread_names=_native_threads(),
        device_types=device_types,
        was_seen=_initialised_at is not None,
    )


def judge(
    *, has_context: bool, thread_names: Iterable[str], device_types: Iterable[str], was_seen: bool = False
) -> str:
    """Why a process with these marks must not fork; empty when it may.

    A session of TensorFlow 1 has no context.  It has threads, named since some version after 2.16; where `watch` was on
    it was seen besides.  A ``tf.Graph()`` has a thread that a fork does not need.

    Listing devices is harmless on a CPU.  With a GPU among them it has started the CUDA driver, which cannot be used in
    a forked process.
    """
    if has_context:
        return "an eager context"
    if was_seen or any(name.startswith("tf_") and name != _OF_A_GRAPH for name in thread_names):
        return "native threads of a TensorFlow session"
    if any(kind != "CPU" for kind in device_types):
        return "an initialised accelerator driver"
    return ""


def _native_threads() -> list[str]:
    """Names of this process's native threads that are not Python's (Linux; elsewhere none)."""
    names, of_python = [], {str(thread.native_id) for thread in threading.enumerate()}
    try:
        for thread in os.listdir("/proc/self/task"):
            if thread in of_python:
                continue
            with open(f"/proc/self/task/{thread}/comm") as file:
                names.append(file.read().strip())
    except OSError:  # a thread ended meanwhile, or there is no /proc
        pass
    return names


def preimport() -> list[str]:
    """Import TensorFlow and Keras, which initialises nothing; names of the native threads that it started."""
    before = _native_threads()
    importlib.import_module("tensorflow")
    importlib.import_module("keras")
    return _native_threads()[len(before) :]


def eagerly() -> AbstractContextManager[Any]:
    """Computes at once, inside ``with graph.as_default()`` as well."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or tensorflow.executing_eagerly():
        return contextlib.nullcontext()
    return _tensorflow.eager_mode()


def is_recording() -> bool:
    """Whether what is computed now is part of a graph, or recorded for a gradient."""
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and (not tensorflow.executing_eagerly() or _tensorflow.has_tape())


# -- forks of a process in which it is initialised ---------------------------------

#: The process of which this one is a fork that has inherited a runtime, which does not work here.
_inherited_from: int | None = None


def inherited_from() -> int | None:
    """The parent whose runtime this process, a fork of it, has inherited; None where there is none."""
    return _inherited_from


def _note_fork() -> None:
    global _inherited_from
    if _inherited_from or _initialised_at or _has_context():
        _inherited_from = os.getppid()


def _has_context() -> bool:
    try:
        return _tensorflow.context_state()[0]
    except LookupError:
        return False


os.register_at_fork(after_in_child=_note_fork)


# -- who did it? ------


def watch() -> None:
    """From now on remember the line that initialises TensorFlow in this process."""
    for module, owner, method in _tensorflow.first_calls():
        wrapt.register_post_import_hook(functools.partial(_watch_first_call, owner=owner, method=method), module)


def _watch_first_call(module: ModuleType, *, owner: str, method: str) -> None:
    target: Any = getattr(module, owner, None)
    original = getattr(target, method, None)
    if original is None:  # `_tensorflow.gone` says so
        return

    @functools.wraps(original)
    def first_call(*args: Any, **kwargs: Any) -> Any:
        global _initialised_at
        # Once is enough, and a context's method is on the path of every operation.
        setattr(target, method, original)
        _initialised_at = _initialised_at or blame(traceback.extract_stack(sys._getframe(1)))
        return original(*args, **kwargs)

    setattr(target, method, first_call)


def culprit() -> str:
    """Who initialised TensorFlow here: the line when `watch` was on, else what can be found."""
    return _initialised_at or search_modules() or f"an unknown line (found {evidence() or 'nothing'})"


# -- threads -------------------------------------------------------------------


def threads_per_process(configured: int, *, cores: int, processes: int) -> int:
    """``configured`` threads, or for 0 an equal share of ``cores``, at least 1."""
    return configured or max(1, cores // max(1, processes))


def limit_threads(*, intra_op: int, inter_op: int, explicit: bool) -> None:
    """Give this process's TensorFlow so many threads, now or as soon as anybody imports it.

    A number that the user's own code has given to ``tf.config.threading``
    stays, unless ``explicit`` says that ours comes from a setting.  Without
    effect where TensorFlow is initialised already.
    """

    def apply(tensorflow: ModuleType) -> None:
        if is_initialised():
            return
        options = tensorflow.config.threading
        if explicit or not options.get_intra_op_parallelism_threads():
            options.set_intra_op_parallelism_threads(intra_op)
        if explicit or not options.get_inter_op_parallelism_threads():
            options.set_inter_op_parallelism_threads(inter_op)

    wrapt.register_post_import_hook(apply, "tensorflow")


def threads_of_environment(name: str) -> int:
    """How many threads TensorFlow's own variable ``name`` asks for; 0 where it says nothing."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


# -- versions ------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of TensorFlow and Keras, without importing either; absent ones are left out."""
    found = {}
    for module, distributions in (("tensorflow", _DISTRIBUTIONS), ("keras", ("keras", "keras-nightly"))):
        loaded = getattr(sys.modules.get(module), "__version__", None)
        if loaded is None and importlib.util.find_spec(module) is None:
            continue
        found[module] = loaded or next(filter(None, map(_version_of, distributions)), "installed")
    return found


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing() -> str:
    """Why no model can be loaded on this machine, and what to do; empty when one can."""
    have = versions()
    if "tensorflow" not in have:
        return "TensorFlow is not installed. Install it: pip install 'celery-tfpool[tensorflow]' (or [tensorflow-cpu])"
    if "keras" not in have:
        return "Keras is not installed. Install it: pip install 'keras>=3.1'"
    if have["keras"].startswith(("2.", "3.0.")):
        return f"Keras {have['keras']} is too old. Install a newer one: pip install 'keras>=3.1'"
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        return f"KERAS_BACKEND is {backend!r} in the environment; this pool needs 'tensorflow'. Unset it"
    return ""
