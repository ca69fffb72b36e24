"""What worker main decides for all its children: settings, threads, time, packs, and who imports TensorFlow."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from celery.utils.log import get_logger

from ..errors import SettingsError
from ..model_path import ModelPath
from ..packs.fingerprint import Content
from ..predictors.client import Predictors
from ..processes import say_what_is_gone
from ..runners import installed, location, runtimes, tf_state
from ..runners.convert import short
from ..runners.location import Kind
from ..settings import Settings

logger: logging.Logger = get_logger(__name__)


#: Kinds of models that are no files here.
_ELSEWHERE = (Kind.FUNCTION, Kind.REMOTE)


@dataclass(frozen=True)
class Plan:
    """What worker main decides for all its children."""

    settings: Settings = field(default_factory=Settings)
    intra_op: int = 1
    inter_op: int = 1
    #: Name of a model → folder of its pack, for those that have one.
    packs: tuple[tuple[str, str], ...] = ()
    #: Name of a model → what its files held when the worker started.
    contents: tuple[tuple[str, Content], ...] = ()
    #: The code that custom classes may come from, where children make packs themselves: see `fingerprint.code_facts`.
    code: tuple[list[str], list[str]] | None = None
    #: Who predicts for the children, if anybody does.
    predictors: Predictors | None = None
    #: Seconds until a child must be ready, and a model loaded.
    startup_timeout: float = 120.0

    @property
    def explicit_threads(self) -> bool:
        """Whether a setting says how many threads, and not a share of the cores."""
        return bool(self.settings.intra_op_parallelism or self.settings.inter_op_parallelism)


def usable_cores() -> int:
    """Cores that this process may use: affinity, and the cgroup's CPU quota rounded up."""
    try:
        from celery.utils.sysinfo import cpu_budget
    except ImportError:  # Celery before 5.7; loky sees the quota of a container, not of a systemd unit
        import loky

        return int(loky.cpu_count())
    return int(cpu_budget().count)


def plan(settings: Settings, *, processes: int, cores: int, proc_alive_timeout: float | None) -> Plan:
    """What each of ``processes`` children gets of ``cores``, and how long it may take to start."""
    intra_op, inter_op = threads(settings, cores=cores, processes=processes)
    return Plan(
        settings=settings,
        intra_op=intra_op,
        inter_op=inter_op,
        startup_timeout=max(settings.startup_timeout, proc_alive_timeout or 0.0),
    )


def predictor_threads(settings: Settings, *, cores: int) -> tuple[int, int]:
    """Threads of one predictor inside an operation and for operations: all cores, divided among predictors."""
    return threads(settings, cores=cores, processes=settings.predictors)


def threads(settings: Settings, *, cores: int, processes: int) -> tuple[int, int]:
    """Threads inside an operation, and operations: as set, as TensorFlow's own variables say, or a share of cores."""
    configured = (
        settings.intra_op_parallelism or tf_state.threads_of_environment("TF_NUM_INTRAOP_THREADS"),
        settings.inter_op_parallelism or tf_state.threads_of_environment("TF_NUM_INTEROP_THREADS"),
    )
    intra_op, inter_op = (
        tf_state.threads_per_process(number, cores=cores, processes=processes) for number in configured
    )
    return intra_op, inter_op


def needs_preimport(settings: Settings) -> bool:
    """Whether children will need TensorFlow, by what is configured."""
    if not settings.model_path:
        return settings.preimport is True
    return bool(settings.preimport) and not all_predicted_elsewhere(settings)


def preimport() -> None:
    """Import Keras and what it runs on here, for all children, and say which private names they lack.

    Raises:
        SettingsError: it cannot be imported.
    """
    title = installed.other_backend() or "TensorFlow"
    try:
        threads = runtimes.preimport()
    except Exception as exc:  # a broken installation fails in many ways
        reason = f"{type(exc).__name__}: {short(exc)}"
        raise SettingsError(f"  tf_preimport: {title} or Keras cannot be imported: {reason}") from exc
    say_what_is_gone(runtimes.names_gone(), title)
    if threads and runtimes.running() is None:
        logger.warning(
            "importing %s and Keras started native threads (%s), which children will not have. "
            "Should they hang, set tf_preimport = False",
            title,
            ", ".join(threads),
        )


def absolute(model: ModelPath) -> ModelPath:
    """``model`` with the whole path of its file or folder; a function or an address stays as it is."""
    weights = model.weights and os.path.abspath(os.path.expanduser(model.weights))
    is_file = "://" not in model.path if model.is_pattern else location.kind_of(model.path) not in _ELSEWHERE
    path = os.path.abspath(os.path.expanduser(model.path)) if is_file else model.path
    return model._replace(path=path, weights=weights)


def all_predicted_elsewhere(settings: Settings) -> bool:
    """Whether predictors have every model, so that children need no TensorFlow."""
    return bool(settings.predictors) and len(settings.of_predictors) == len(settings.model_path)


def assign(models: Sequence[ModelPath], count: int) -> list[tuple[ModelPath, ...]]:
    """Which models each of ``count`` predictors has: all, or those with the fewest models where a number is given."""
    has: list[list[ModelPath]] = [[] for _ in range(count)]
    for model in models:
        wanted = count if model.predictors is None else min(count, model.predictors)
        for one in sorted(has, key=len)[:wanted]:
            one.append(model)
    return [tuple(one) for one in has]
