"""When a child is overdue, and when to give up on children: rules, with the time as an argument.

Nothing here knows processes or signals; `engines` applies these rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..processes import GRACE


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

    def update(self, facts: dict[str, Any], now: float) -> None:
        """Note what the child has said of itself."""
        self.ready = self.ready or bool(facts.get("ready"))
        self.models = facts["models"]
        if facts["loading"] != self.loading:
            self.loading, self.loading_since = facts["loading"], now

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
