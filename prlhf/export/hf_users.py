"""`--format hf-users`: users' vectors as tokens of the model's own, so that any engine serves the one a prompt names.

Each vector is a row of the input embeddings, and its token a special one of the tokenizer. The model must not write
such a token. Its row of the output embeddings is the mean of the others: its logit is the mean of theirs, so at any
temperature its probability is at most one in the size of the vocabulary, and it is never the most probable token.
`generation_config.json` forbids it besides (`suppress_tokens`, which transformers follows).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn

from prlhf.errors import PrlhfError
from prlhf.export.compare import Compared, Sample, compare, log_prob
from prlhf.export.template import Prefix, check_ids, prompt_ids, template_of
from prlhf.export.whole import ends_of, merged, read_whole, write_whole
from prlhf.model.checkpoint import Policy


def write_with_users(
    policy: Policy, user_index: int, prefixes: Sequence[Prefix], dtype: torch.dtype, folder: Path
) -> None:
    """Write the model with the tokens of `prefixes` into the existing `folder`. `policy` is used up.

    `user_index`: whose gates are merged with the adapter, if there are gates too.

    Raises:
        PrlhfError: the tokenizer has a token of such a name already.
    """
    tokenizer, ends = copy.deepcopy(policy.tokenizer), ends_of(policy)
    tokenizer.chat_template = template_of(policy, prefixes)
    ids = add_tokens(tokenizer, [token for one in prefixes for token in one.tokens])
    lm = merged(policy, user_index)
    add_rows(lm, ids, torch.cat([one.vectors for one in prefixes]))
    lm.generation_config.suppress_tokens = [*(lm.generation_config.suppress_tokens or []), *ids]
    write_whole(lm, tokenizer, ends, dtype, folder)


def add_tokens(tokenizer: Any, names: Sequence[str]) -> list[int]:
    """Add special tokens; returns their ids, which ascend."""
    known = tokenizer.get_vocab()
    for name in names:
        if name in known:
            raise PrlhfError(f"the tokenizer has a token '{name}' already", "use a run on a base without users' tokens")
    plain = [AddedToken(name, special=True, normalized=False) for name in names]
    tokenizer.add_tokens(plain, special_tokens=True)
    return [int(id_) for id_ in tokenizer.convert_tokens_to_ids(list(names))]


@torch.no_grad()
def add_rows(lm: Any, ids: Sequence[int], vectors: torch.Tensor) -> None:
    """Give the tokens `ids` the input embeddings `vectors` [n, d], and output embeddings that are hardly written."""
    _untie(lm)
    words, first = lm.get_input_embeddings(), min(ids)
    if max(ids) >= len(words.weight):
        lm.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        words = lm.get_input_embeddings()
    at = torch.tensor(list(ids), device=words.weight.device)
    words.weight[at] = (vectors.to(words.weight) / _scale(words)).to(words.weight)
    head = lm.get_output_embeddings()
    head.weight[at] = head.weight[:first].mean(0)
    if getattr(head, "bias", None) is not None:
        head.bias[at] = head.bias[:first].mean()


def _untie(lm: Any) -> None:
    head, words = lm.get_output_embeddings(), lm.get_input_embeddings()
    for config in {id(one): one for one in (lm.config, lm.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    if head.weight is words.weight:
        head.weight = nn.Parameter(words.weight.detach().clone(), requires_grad=False)


def _scale(words: nn.Module) -> float:
    """What the embeddings are multiplied by on their way to the first layer: not 1 for Gemma 3, for example."""
    weight = words.weight[0].float()  # type: ignore[index]
    read = words(torch.zeros(1, dtype=torch.long, device=weight.device))[0].float()
    return float(read @ weight / (weight @ weight)) if weight.any() else 1.0


def compare_with_users(
    rows: Sequence[Sample], prefixes: Sequence[Prefix], dtype: torch.dtype, folder: Path
) -> Compared:
    """Compare the run's log-probs with those of what was written, prompts by its own tokenizer and template.

    Raises:
        PrlhfError: they differ, or the template does not write what the run reads.
    """
    lm, tokenizer = read_whole(folder, dtype)
    of = {one.user: tokenizer.convert_tokens_to_ids(one.tokens) for one in prefixes}

    def theirs(row: Sample) -> float:
        ids, own = prompt_ids(tokenizer, row, user=row.user), list(of[row.user])
        check_ids(row, ids[len(own) :] if ids[: len(own)] == own else ids)
        return log_prob(lm, ids, row.response, without=lm.generation_config.suppress_tokens)

    return compare(rows, theirs, dtype, "the model with users' tokens")
