"""Worker main: check the settings before anything is forked, decide for all children, say it in the banner."""

from __future__ import annotations

import contextlib
import glob
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.worker import state as worker_state

from .. import _celery
from ..errors import SettingsError
from ..model_path import NAME, ModelPath
from ..packs import build, fingerprint, manifest
from ..packs.build import Packing
from ..packs.cache import CacheUnusable, PackCache
from ..packs.fingerprint import Content
from ..processes import say_what_is_gone
from ..runners import installed, location
from ..runners.location import Kind
from ..runners.options import LoadOptions
from ..settings import Settings, check
from .bases import StartStopStep
from .deferral import with_deferred
from .inspect import banner, facts, figures
from .plan import (
    absolute,
    all_predicted_elsewhere,
    needs_preimport,
    plan,
    predictor_threads,
    preimport,
    usable_cores,
)
from .prefork import TFPrefork, preparation

if TYPE_CHECKING:
    from ..observe.prometheus import MetricsServer

logger: logging.Logger = get_logger(__name__)


class Models(StartStopStep):
    """Runs after the pool is made and before it forks; only with `TFPrefork`."""

    requires: tuple[str, ...] = ("celery.worker.components:Pool",)
    _metrics: MetricsServer | None = None

    def include_if(self, w: Any) -> bool:
        """Whether this worker's pool is ours."""
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
        settings, found = with_deferred(settings)
        for one in found:
            logger.info("model %r is loaded where it is used, and not at %s", one.name, one.line)
        check_models(settings)
        say_what_is_gone(_celery.gone(), "Celery")
        # A task may change the working directory, and replaced children load again.
        settings = replace(settings, model_path=tuple(map(absolute, settings.model_path)))
        if needs_preimport(settings):
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
            code = fingerprint.code_of_this_process() if any(m.is_pattern for m in settings.model_path) else None
            w.pool.plan = replace(w.pool.plan, packs=packs, code=code)
        w.pool.plan = replace(w.pool.plan, contents=contents(settings, w.pool.packings))
        if settings.metrics_port is not None:
            self._metrics = metrics_server(w.pool, settings.metrics_port)
        if original := getattr(w, "extra_info", None):  # the banner of `celery worker`
            w.extra_info = lambda: (original() or "") + banner(w.pool)

    def start(self, w: Any) -> None:
        """Serve metrics, now that children and predictors are there."""
        if self._metrics is not None:
            self._metrics.start()

    def stop(self, w: Any) -> None:
        """Serve none any more."""
        if self._metrics is not None:
            self._metrics.stop()

    terminate = stop

    def info(self, w: Any) -> dict[str, Any]:
        """The part ``tfpool`` of ``celery inspect stats``."""
        return {"tfpool": facts(w.pool)} if isinstance(w.pool, TFPrefork) else {}


def metrics_server(pool: TFPrefork, port: int) -> MetricsServer:
    """What serves the pool's metrics.

    Raises:
        SettingsError: the port is taken, or the library is not installed.
    """
    try:
        from ..observe import prometheus

        return prometheus.MetricsServer(port, lambda: prometheus.Snapshot(*figures(pool)))
    except ImportError as exc:
        raise SettingsError(f"  tf_metrics_port: {exc}; pip install 'celery-tfpool[prometheus]'") from exc
    except OSError as exc:
        raise SettingsError(f"  tf_metrics_port: {port} cannot be used: {exc.strerror or exc}") from exc


def check_models(settings: Settings) -> None:
    """Look at every model's path, as far as that goes without TensorFlow.

    Raises:
        SettingsError: of all models that cannot be loaded, each with the reason.
    """
    problems = []
    if settings.model_path and (why := installed.missing()):
        problems.append(f"  tf_model_path: {why}")
    for model in settings.model_path:
        try:
            if model in settings.of_predictors and (nameless := LoadOptions.of(model).nameless()):
                raise location.BadSource(
                    f"predictors cannot import its custom object {nameless}; give it a name in a module"
                )
            if model.is_pattern:
                check_pattern(model)
                continue
            kind = location.check(model.path, safe_mode=settings.safe_mode, weights=model.weights)
            if kind in (Kind.PACK, Kind.SAVED_MODEL) and (why := installed.without_tensorflow()):
                raise location.BadSource(why)
            if kind is Kind.PACK:
                manifest.check_versions(manifest.read_manifest(os.path.expanduser(model.path)))
        except (location.BadSource, manifest.DamagedPack) as exc:
            problems.append(f"  tf_model_path: model {model.name!r} at {model.path!r}: {exc}")
    if problems:
        raise SettingsError("\n".join(problems))


def check_pattern(model: ModelPath) -> None:
    """Say how many models a pattern stands for now; more may come.

    Raises:
        BadSource: there is no such folder.
    """
    varies = model.path if NAME in model.path else str(model.weights)
    if "://" in varies:
        return
    folder = os.path.dirname(os.path.expanduser(varies).partition(NAME)[0]) or "."
    if not os.path.isdir(folder):
        raise location.BadSource(f"there is no folder {folder!r}")
    count = len(glob.glob(glob.escape(os.path.expanduser(varies)).replace(NAME, "*")))
    logger.info("model %r: %d at %r now; a child loads one at its first use", model.name, count, varies)


def pack_models(pool: TFPrefork, app: Any) -> list[Packing]:
    """Find or make the packs of all models, and keep them from being removed while this worker lives."""
    settings = pool.plan.settings
    cache = PackCache.of(settings, os.environ)
    start_method = pool.start_method
    if all_predicted_elsewhere(settings):
        # This process does not import TensorFlow; the forkserver does, once for all packs and predictors.
        start_method = "forkserver"
        multiprocessing.set_forkserver_preload(list(pool.preload))
    done = []
    for model in (one for one in settings.model_path if not one.is_pattern):
        name, path = model.name, model.path
        packing = build.pack_in_process(
            name,
            path,
            cache,
            safe_mode=settings.safe_mode,
            options=LoadOptions.of(model),
            start_method=start_method,
            timeout=pool.plan.startup_timeout,
            tick=worker_state.maybe_shutdown,
            import_app=preparation(app),
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
    for model in settings.model_path:
        if model.name in found or model.is_pattern or location.kind_of(model.path) in (Kind.FUNCTION, Kind.REMOTE):
            continue
        with contextlib.suppress(OSError):  # whoever loads it says what is wrong
            found[model.name] = fingerprint.content(LoadOptions.of(model).files(model.path))
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
