"""TensorFlow as a whole: is it initialised, does it compute at once, how many threads.

A process may *import* TensorFlow and still fork safely; once it is
*initialised* (the first tensor, layer or session starts native thread pools)
a forked child waits for ever.  Nothing here initialises it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import wrapt

from .. import _tensorflow
from . import first_calls

_OF_A_GRAPH = "tf_graph_runner"  # the thread of a ``tf.Graph()``
#: Under which `first_calls` has what it saw.
_TITLE = "TensorFlow"


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
        thread_names=native_threads(),
        device_types=device_types,
        was_seen=first_calls.line(_TITLE) is not None,
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


def native_threads() -> list[str]:
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


def is_inherited() -> bool:
    """Whether this process, just forked, has inherited a runtime, which does not work here."""
    if first_calls.line(_TITLE) is not None:
        return True
    try:
        return _tensorflow.context_state()[0]
    except LookupError:
        return False


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
