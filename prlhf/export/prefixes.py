"""The vectors in front of users' prompts, read from a run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prlhf.export.template import Prefix, begins
from prlhf.model.checkpoint import Policy
from prlhf.model.personalized import unwrapped


@torch.no_grad()
def prefixes_of(policy: Policy, users: Mapping[str, int], names: Mapping[str, str]) -> list[Prefix]:
    """The prefix of each of `users` (id -> user index), who are called `names` in tokens and files.

    A text about the user follows the vectors, and BOS is between them (`Encoder.before`).
    """
    encoder, words = policy.encoder(), unwrapped(policy.model.lm).get_input_embeddings()
    bos = [policy.tokenizer.bos_token_id] if begins(policy.tokenizer) else []
    found = []
    for user, user_index in users.items():
        vectors = policy.model.users(torch.tensor([user_index], device=policy.device))[0].float()
        text = encoder.text(policy.user_texts.get(user, ""))
        if text:
            rows = words(torch.tensor([*bos, *text], device=policy.device)).float()
            vectors = torch.cat([vectors, rows])
        found.append(Prefix(user, names[user], vectors.cpu(), bool(text and bos)))
    return found
