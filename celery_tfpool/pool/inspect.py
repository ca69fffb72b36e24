"""What is seen of the pool from outside: ``celery inspect tfpool`` and ``stats``, and the banner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.worker.control import inspect_command

from ..runners import installed

if TYPE_CHECKING:
    from ..predictors.statistics import Figures
    from .prefork import TFPrefork


@inspect_command()  # type: ignore[untyped-decorator]
def tfpool(state: Any) -> dict[str, Any]:
    """Models, start method, threads and children of the TFPrefork pool."""
    from .prefork import TFPrefork  # a shell that only sends the command needs no pool

    pool = state.consumer.pool
    return facts(pool) if isinstance(pool, TFPrefork) else {"error": f"this worker's pool is {type(pool).__name__}"}


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
        "versions": installed.versions_in_use(),
        "children": pool.children(),
    }


def figures(pool: TFPrefork) -> tuple[list[dict[str, Any]], list[Figures]]:
    """What children, and predictors, are and have done, without asking them."""
    return pool.children(), pool.supervisor.figures() if pool.supervisor else []


def banner(pool: TFPrefork) -> str:
    """A part ``[tfpool]`` for the banner of ``celery worker``."""
    known = facts(pool)
    shared = {name for name, packed in known["packs"].items() if packed["packed"]}
    models = [
        f"{name} = {path}" + (" (shared)" if name in shared else "") for name, path in known["models"].items()
    ] or ["none (tf_model_path is not set)"]
    settings = pool.plan.settings
    if settings.of_predictors:
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
