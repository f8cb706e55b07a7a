"""What the application answers from: the model, its users, and what it keeps of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from prlhf.config import ServeConfig
from prlhf.model.checkpoint import Policy
from prlhf.serve.conversation_log import ConversationLog
from prlhf.serve.engine import ServingEngine
from prlhf.serve.keeper import Keeping
from prlhf.serve.keys import Caller
from prlhf.serve.metrics import Metrics
from prlhf.serve.roster import Roster


@dataclass(frozen=True)
class Service:
    """A run that is served."""

    name: str
    run: Path
    policy: Policy
    roster: Roster
    engine: ServingEngine
    config: ServeConfig
    keeper: Keeping
    log: ConversationLog | None = None  # None: conversations are not kept
    keys: dict[str, Caller] | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def close(self) -> None:
        """Finish all that was begun."""
        self.engine.close()
        if self.log:
            self.log.close()
        self.keeper.close()
