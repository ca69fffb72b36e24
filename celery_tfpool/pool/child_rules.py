"""When a child is overdue, and when to give up on children: rules, with the time as an argument.

Nothing here knows processes or signals; `watched` applies these rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..processes import GRACE


@dataclass(frozen=True)
class Status:
    """What a child says of itself to worker main."""

    #: By name, of each model of its: whether it is loaded, from its pack or not, and in how many seconds.
    models: dict[str, dict[str, Any]]
    #: The model that it is loading.
    loading: str | None = None
    #: Whether it takes tasks.
    ready: bool = False


@dataclass
class ChildState:
    """What worker main knows of one child.  Times are of ``time.monotonic``."""

    slot: int
    started: float
    ready: bool = False
    #: The model being loaded, and since when.
    loading: str | None = None
    loading_since: float = 0.0
    models: dict[str, Any] = field(default_factory=dict)
    killed_at: float | None = None

    def update(self, status: Status, now: float) -> None:
        """Note what the child has said of itself."""
        self.ready = self.ready or status.ready
        self.models = status.models
        if status.loading != self.loading:
            self.loading, self.loading_since = status.loading, now

    def overdue(self, now: float, timeout: float) -> str | None:
        """Why this child has to be killed; None when it does not."""
        doing = f", loading model {self.loading!r}" if self.loading else ""
        if not self.ready and now - self.started > timeout + (GRACE if self.loading else 0):
            return f"not ready after {now - self.started:.0f} s{doing}"
        # The child raises ModelLoadError by itself at the timeout, unless it
        # is stuck in native code.
        if self.loading and now - self.loading_since > timeout + GRACE:
            return f"not done after {now - self.loading_since:.0f} s{doing}"
        return None

    def unwanted(self, now: float, closing_since: float | None) -> bool:
        """Whether this child, which has no task, keeps a pool that closes from its end."""
        return not self.ready and closing_since is not None and now - closing_since > GRACE
