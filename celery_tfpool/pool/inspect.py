"""Remote control: ``celery inspect tfpool``."""

from __future__ import annotations

from typing import Any

from celery.worker.control import inspect_command


@inspect_command()  # type: ignore[untyped-decorator]
def tfpool(state: Any) -> dict[str, Any]:
    """Models, start method, threads and children of the TFPrefork pool."""
    from .prefork import TFPrefork
    from .startup import facts  # a shell that only sends the command needs no pool

    pool = state.consumer.pool
    return facts(pool) if isinstance(pool, TFPrefork) else {"error": f"this worker's pool is {type(pool).__name__}"}
