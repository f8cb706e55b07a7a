"""Users start where their choices put them (`user_init: choices`): one pass of the base before the first step."""

from __future__ import annotations

from prlhf.config import TrainConfig
from prlhf.model.closed_form import closed_form
from prlhf.model.engine import Engine
from prlhf.model.response_states import ResponseStates, open_states
from prlhf.progress import SILENT, Progress
from prlhf.train.encode import EncodedSet


def start_users(
    engine: Engine, config: TrainConfig, train_set: EncodedSet, users: int, progress: Progress = SILENT
) -> None:
    """Start the `users` seen users of the engine's untrained model at their codes, the same on all workers.

    Where choices show nothing in which users differ, they stay as they were built, all at the generic user.

    Raises:
        NotFinite: the base's hidden states of a response are nan or infinite.
    """
    states = states_of(engine, config, progress)
    states.fill(train_set.encoded, config.batch_size, progress)
    codes = closed_form(states, train_set.encoded, users, config.seed).codes.float().to(engine.device)
    if not codes.any():
        progress.note("users' choices show nothing in which they differ: all start as the generic user")
        return
    count = codes.shape[1]
    progress.note(f"users' choices differ in {count} direction{'s' * (count > 1)} of taste")
    for place in (engine.model.users, engine.model.users.gates):
        if place is not None and place.starts:
            place.start_at(codes, config.seed)


def states_of(engine: Engine, config: TrainConfig, progress: Progress = SILENT) -> ResponseStates:
    """The hidden states of the base of the engine's untrained model, cached on disk if `config` says so."""
    return ResponseStates(engine, open_states(engine.model.lm, progress) if config.reference_cache else None)
