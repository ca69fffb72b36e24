"""Compute with ONNX Runtime: fast on CPUs, small, and imported in a fourth of a second.

graph.onnx, graph.data   the model as it was converted; does on every machine
tuned.onnx, tuned.data   as ONNX Runtime optimised it for one processor, with its weights as its kernels read them

Processes that open the tuned form map one copy of its weights.  It is used by
the version and on the processor that made it; elsewhere ONNX Runtime optimises
the other form anew, in memory of each process, and says so.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from .. import processes
from . import compared, processor, to_onnx
from .protocol import (
    DESCRIPTION,
    CannotConvert,
    CannotOpen,
    Description,
    Engine,
    FlatCall,
    Opened,
    read_description,
    write_description,
)

_GRAPH, _GRAPH_DATA = "graph.onnx", "graph.data"
_TUNED, _TUNED_DATA = "tuned.onnx", "tuned.data"
_FILES = (_GRAPH, _GRAPH_DATA, _TUNED, _TUNED_DATA)
#: Bytes from which on a weight is in the file that is mapped.
_LARGE = 1024
#: What conversion needs; the first is what makes users install the others.
_CONVERTERS = ("tf2onnx", "onnx")
#: What ONNX Runtime logs of itself is for its developers; what it raises is for us.
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class OnnxRuntime:
    """The engine."""

    name: str = "onnxruntime"

    def version(self) -> str | None:
        """As `Engine.version`."""
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version("onnxruntime")
        return None

    def cannot_convert_here(self) -> str:
        """As `Engine.cannot_convert_here`."""
        missing = [name for name in ("onnxruntime", *_CONVERTERS) if importlib.util.find_spec(name) is None]
        if not missing:
            return ""
        return f"{' and '.join(missing)} missing: pip install 'celery-tfpool[onnxruntime,onnx-convert]'"

    def convert(
        self, concrete: Any, folder: str, expected: FlatCall, samples: Sequence[Sequence[NDArray[Any]]] = ()
    ) -> Description:
        """As `Engine.convert`."""
        if why := self.cannot_convert_here():
            raise CannotConvert(why)
        to_onnx.check(concrete)
        inputs, _ = to_onnx.inputs_and_outputs(concrete)
        noise = list(compared.noise(inputs, expected))
        given = [(values, expected(*values)) for values in samples]
        reasons = []
        for route in to_onnx.routes(concrete):
            try:
                description = self._convert(concrete, route, folder, [noise, given])
                write_description(folder, description)
                return description
            except CannotConvert as exc:
                reasons.append(f"by {route}: {exc}")
            except OSError:
                _remove(folder)
                raise
            except Exception as exc:  # of three libraries, whatever they cannot do
                reasons.append(f"by {route}: {type(exc).__name__}: {_short(exc)}")
        _remove(folder)
        raise CannotConvert("; ".join(reasons))

    def open(self, folder: str, threads: int) -> Opened:
        """As `Engine.open`."""
        description = read_description(folder, self.name)
        if self.version() is None:
            raise CannotOpen("onnxruntime is not installed: pip install 'celery-tfpool[onnxruntime]'")
        here, made_by = (self.version(), processor.name()), (description.version, description.processor)
        remark = ""
        if here != made_by:
            was, is_ = (f"onnxruntime {version} on {processor_}" for version, processor_ in (made_by, here))
            remark = f"it was tuned for {was}; here is {is_}, so each process has a copy of its weights"
        elif _TUNED not in description.files:
            remark = f"onnxruntime {here[0]} cannot store it tuned, so each process has a copy of its weights"
        return self._open(folder, description, threads, tuned=not remark, remark=remark)

    def _convert(self, concrete: Any, route: str, folder: str, pairs: Sequence[compared.Pairs]) -> Description:
        import onnx

        _remove(folder)
        inputs, outputs = to_onnx.inputs_and_outputs(concrete)
        model = to_onnx.convert(concrete, route)
        onnx.save_model(
            model,
            os.path.join(folder, _GRAPH),
            save_as_external_data=True,
            location=_GRAPH_DATA,
            size_threshold=_LARGE,
        )
        del model
        tuned = _tune(folder)
        files = {name: os.path.getsize(path) for name in _FILES if os.path.exists(path := os.path.join(folder, name))}
        version = self.version() or ""
        description = Description(self.name, version, processor.name(), inputs, outputs, route, (), files)
        opened = self._open(folder, description, 1, tuned=tuned)
        found = tuple(map(max, *(compared.differences(opened, outputs, group) for group in pairs)))
        compared.check(found, outputs)
        return replace(description, differences=found)

    def _open(
        self, folder: str, description: Description, threads: int, *, tuned: bool, remark: str = ""
    ) -> OpenedSession:
        path = os.path.join(folder, _TUNED if tuned else _GRAPH)
        try:
            session = _new_session(path, threads, optimised=tuned)
        except Exception as exc:  # ONNX Runtime's own, of which there is one class for each status
            raise CannotOpen(f"onnxruntime cannot read {path}: {_short(exc)}") from exc
        processes.give_back_what_is_free()  # it has laid out each weight to see that the file has the same
        return OpenedSession(description, remark, session)


class OpenedSession:
    """As `Opened`: a session, which no fork may use."""

    def __init__(self, description: Description, remark: str, session: Any) -> None:
        self.description: Description = description
        self.remark: str = remark
        wanted = {one.name for one in session.get_inputs()}  # an input may have no say in any output
        self._feeds = [(n, one.name) for n, one in enumerate(description.inputs) if one.name in wanted]
        self._fetches = [one.name for one in description.outputs]
        self._session = session
        self._pid = os.getpid()

    def __call__(self, *values: NDArray[Any]) -> list[NDArray[Any]]:
        """As `Opened.__call__`.

        Raises:
            CannotOpen: this process is a fork of the one that opened it; ONNX Runtime would crash or wait for ever.
        """
        if os.getpid() != self._pid:
            raise CannotOpen(f"process {self._pid} opened it; its fork {os.getpid()} has to open its own")
        found: list[NDArray[Any]] = self._session.run(self._fetches, {name: values[n] for n, name in self._feeds})
        return found


def _tune(folder: str) -> bool:
    """Write the tuned form; whether there is one: of loops, ONNX Runtime 1.23 writes what it cannot read."""
    path = os.path.join(folder, _TUNED)
    _new_session(os.path.join(folder, _GRAPH), 1, tuned_file=path)
    try:
        _new_session(path, 1, optimised=True)
    except Exception:  # as in `OnnxRuntime._open`
        _remove(folder, (_TUNED, _TUNED_DATA))
        return False
    return True


def _new_session(path: str, threads: int, *, optimised: bool = False, tuned_file: str | None = None) -> Any:
    """A session on the model at ``path``.

    Args:
        optimised: nothing is left to be done to it.
        tuned_file: where to write it as it is optimised for this processor, beside a file of its weights.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # A number of its own also means that threads are not bound to processors, all processes to the same.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    entries = {"intra_op.allow_spinning": "0", "inter_op.allow_spinning": "0"}
    if optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if tuned_file is not None:
        options.optimized_model_filepath = tuned_file
        entries |= {
            "save_external_prepacked_constant_initializers": "1",
            "optimized_model_external_initializers_file_name": _TUNED_DATA,
            "optimized_model_external_initializers_min_size_in_bytes": str(_LARGE),
        }
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _short(exc: Exception) -> str:
    """What an exception says, without the number and file with which ONNX Runtime begins."""
    text = " ".join(str(exc).split())
    return text.rpartition("failed:")[2][:300] if text.startswith("[ONNXRuntimeError]") else text[:300]


def _remove(folder: str, names: Sequence[str] = (DESCRIPTION, *_FILES)) -> None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


#: The one that there is.
ENGINE: Engine = OnnxRuntime()
