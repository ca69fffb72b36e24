"""Worker main: check the settings before anything is forked, decide for all children, say it in the banner."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker import state as worker_state

from ..errors import SettingsError
from ..packs import build, fingerprint, manifest
from ..packs.build import Packing
from ..packs.cache import CacheUnusable, PackCache, default_folder
from ..packs.fingerprint import Content
from ..runners import location, tf_state
from ..runners.convert import short
from ..runners.location import Kind
from ..settings import ModelPath, Settings, check
from .child import Plan
from .prefork import TFPrefork

logger = get_logger(__name__)


class Models(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs after the pool is made and before it forks; only with `TFPrefork`."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, w: Any) -> bool:
        return isinstance(w.pool, TFPrefork)

    def create(self, w: Any) -> None:
        """Check everything that can be checked without TensorFlow, and give the pool its plan.

        Raises:
            SettingsError: wrong settings, or models that cannot be loaded.
            ForkGuardError: TensorFlow runs here already, and forking is all there is.
        """
        if sys.platform != "linux":
            logger.warning("celery_tfpool is made for Linux and not tested on %s", sys.platform)
        settings = check(w.app.conf, os.environ, namespace=w.app.namespace or "")
        check_models(settings)
        # A task may change the working directory, and replaced children load again.
        settings = replace(settings, model_path=tuple(map(absolute, settings.model_path)))
        if settings.preimport and settings.model_path:
            preimport()
        w.pool.plan = plan(
            settings,
            processes=w.max_concurrency or w.concurrency,
            cores=usable_cores(),
            proc_alive_timeout=w.app.conf.worker_proc_alive_timeout,
        )
        w.pool.predictor_threads = predictor_threads(settings, cores=usable_cores())
        w.pool.guard_fork()
        if settings.share_weights:
            w.pool.packings = pack_models(w.pool, w.app)
            packs = tuple((done.name, done.folder) for done in w.pool.packings if done.folder)
            w.pool.plan = replace(w.pool.plan, packs=packs)
        w.pool.plan = replace(w.pool.plan, contents=contents(settings, w.pool.packings))
        if hasattr(w, "extra_info"):  # the banner of `celery worker`, which has no public way to add to
            original = w.extra_info
            w.extra_info = lambda: (original() or "") + banner(w.pool)

    def info(self, w: Any) -> dict[str, Any]:
        """The part ``tfpool`` of ``celery inspect stats``."""
        return {"tfpool": facts(w.pool)} if isinstance(w.pool, TFPrefork) else {}


def check_models(settings: Settings) -> None:
    """Look at every model's path, as far as that goes without TensorFlow.

    Raises:
        SettingsError: of all models that cannot be loaded, each with the reason.
    """
    problems = []
    if settings.model_path and (why := tf_state.missing()):
        problems.append(f"  tf_model_path: {why}")
    for name, path, *_ in settings.model_path:
        try:
            if location.check(path, safe_mode=settings.safe_mode) is Kind.PACK:
                check_pack(os.path.expanduser(path))
        except (location.BadSource, manifest.DamagedPack) as exc:
            problems.append(f"  tf_model_path: model {name!r} at {path!r}: {exc}")
    if problems:
        raise SettingsError("\n".join(problems))


def check_pack(folder: str) -> None:
    """See whether the user's own pack may be used here.

    Raises:
        BadSource: other versions have made it.
        DamagedPack: it has no manifest that can be read.
    """
    if why := manifest.made_elsewhere(manifest.read_manifest(folder)):
        raise location.BadSource(why)


def absolute(model: ModelPath) -> ModelPath:
    """``model`` with the whole path of its file or folder; a function or an address stays as it is."""
    is_local = location.kind_of(model.path) not in (Kind.FUNCTION, Kind.REMOTE)
    return model._replace(path=os.path.abspath(os.path.expanduser(model.path))) if is_local else model


def preimport() -> None:
    """Import TensorFlow here, for all children.

    Raises:
        SettingsError: it cannot be imported.
    """
    try:
        threads = tf_state.preimport()
    except Exception as exc:  # a broken installation fails in many ways
        reason = f"{type(exc).__name__}: {short(exc)}"
        raise SettingsError(f"  tf_model_path: TensorFlow or Keras cannot be imported: {reason}") from exc
    if threads and not tf_state.evidence():
        logger.warning(
            "importing TensorFlow and Keras started native threads (%s), which children will not have. "
            "Should they hang, set tf_preimport = False",
            ", ".join(threads),
        )


def pack_models(pool: TFPrefork, app: Any) -> list[Packing]:
    """Find or make the packs of all models, and keep them from being removed while this worker lives."""
    settings = pool.plan.settings
    folder = Path(settings.cache_dir) if settings.cache_dir else default_folder(os.environ)
    cache = PackCache(folder, settings.cache_max_bytes)
    done = []
    for name, path, *_ in settings.model_path:
        packing = build.pack_in_process(
            name,
            path,
            cache,
            safe_mode=settings.safe_mode,
            start_method=pool.start_method,
            timeout=pool.plan.startup_timeout,
            tick=worker_state.maybe_shutdown,
            import_app=functools.partial(import_app, app),
        )
        if packing.folder and packing.folder != os.path.expanduser(path):  # the user's own pack is not ours to remove
            packing = held(packing, pool)
        done.append(packing)
        if packing.folder:
            remark = f"; {packing.remark}" if packing.remark else ""
            logger.info("model %r: packed in %s (%.1f s)%s", name, packing.folder, packing.seconds, remark)
        else:
            level = logging.WARNING if packing.is_problem else logging.INFO
            consequence = "so each child loads a copy of its own"
            logger.log(level, "model %r from %r is not shared: %s; %s", name, path, packing.reason, consequence)
    return done


def contents(settings: Settings, packings: Sequence[Packing]) -> tuple[tuple[str, Content], ...]:
    """What the files of each model hold that has files on this machine: what is loaded later must be the same."""
    found = {done.name: done.content for done in packings if done.content}
    for name, path, *_ in settings.model_path:
        if name not in found and location.kind_of(path) not in (Kind.FUNCTION, Kind.REMOTE):
            with contextlib.suppress(OSError):  # whoever loads it says what is wrong
                found[name] = fingerprint.content(path)
    return tuple(found.items())


def held(packing: Packing, pool: TFPrefork) -> Packing:
    """``packing``, whose pack cannot be removed any more; without one if that is impossible."""
    try:
        if pool.hold(packing.folder or ""):
            return packing
        reason = "its pack was removed as soon as it was made"
    except CacheUnusable as exc:
        reason = str(exc)
    return Packing(packing.name, reason=reason, is_problem=True, content=packing.content)


def import_app(app: Any) -> None:
    """Import what Celery's own spawned children do: the modules of all tasks, ``imports``, ``include``."""
    app.loader.import_default_modules()


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


def facts(pool: TFPrefork) -> dict[str, Any]:
    """What there is to know of the pool from outside; JSON-friendly."""
    settings = pool.plan.settings
    return {
        "models": {model.name: model.path for model in settings.model_path},
        "load": settings.model_load,
        "packs": {done.name: done.facts() for done in pool.packings},
        "start_method": pool.start_method,
        "threads": {"intra_op": pool.plan.intra_op, "inter_op": pool.plan.inter_op},
        "predictors": pool.supervisor.facts() if pool.supervisor else [],
        "versions": tf_state.versions(),
        "children": pool.children(),
    }


def banner(pool: TFPrefork) -> str:
    known = facts(pool)
    shared = {name for name, packed in known["packs"].items() if packed["packed"]}
    models = [
        f"{name} = {path}" + (" (shared)" if name in shared else "") for name, path in known["models"].items()
    ] or ["none (tf_model_path is not set)"]
    settings = pool.plan.settings
    if settings.predictors:
        threads = "{} intra-op, {} inter-op in each predictor".format(*pool.predictor_threads)
        where = f"{settings.predictors}, batches of up to {settings.max_batch_size} rows"
        more = [("predictors", where), ("threads", threads)]
    else:
        more = [
            ("load", f"{known['load']}, in each child"),
            ("threads", "{intra_op} intra-op, {inter_op} inter-op in each child".format(**known["threads"])),
        ]
    rows = [
        ("models", f"\n{'':16}".join(models)),
        *more,
        ("start", known["start_method"]),
        ("versions", ", ".join(" ".join(item) for item in known["versions"].items())),
    ]
    return "\n[tfpool]\n" + "".join(f".> {name + ':':<12} {value}\n" for name, value in rows)
