"""The implicit reward of every single token: where in an answer does a policy differ from its reference?

A log-prob is a sum over tokens, so the implicit reward is one too (T scored tokens, in units of reward, β included):

    r̂(x, y) = β·log π(y|x)/π_ref(y|x) = Σ_t β·[log π(y_t|x, y_<t) − log π_ref(y_t|x, y_<t)]

As long as two answers to one prompt have the same tokens, their terms are equal and cancel in the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dpo_lab.batching import Layout, make_batch, row_lengths, split_passes
from dpo_lab.logprobs import Scorer, usable_layout
from dpo_lab.preferences.encoding import common_prefix, decode, token_texts
from dpo_lab.preferences.token_data import TokenData, plain
from dpo_lab.workbench.evaluation.pairs import dpo_beta, usable_pairs


@dataclass(frozen=True)
class TokenRewards:
    """One answer, token by token. `rewards` adds up to its implicit reward.

    The tokens' texts add up to the text of the answer, special tokens included. Where several tokens make up one
    character, the last of them holds it and the others are empty.
    """

    tokens: list[str]  # T scored tokens: all of the answer, less the first where the prompt is empty
    rewards: np.ndarray  # (T,) float64, β·(log π − log π_ref)
    logps: np.ndarray  # (T,) float32, log π of the policy, in nats
    reference_logps: np.ndarray  # (T,) float32, log π_ref, in nats


@dataclass(frozen=True)
class PairTokens:
    """One pair, token by token. `row` is the pair's index in the rows that were given."""

    row: int
    prompt_text: str
    chosen: TokenRewards
    rejected: TokenRewards
    num_shared: int = 0  # tokens with which both answers begin alike: they add nothing to the margin

    @property
    def margin(self) -> float:
        """The implicit reward of the chosen answer less that of the rejected one."""
        return float(self.chosen.rewards.sum() - self.rejected.rewards.sum())


def token_rewards(
    model: nn.Module, tokenizer: Any, preferences: Any,
    *, reference: nn.Module, beta: float | None = None, max_length: int = 1024, layout: Layout = "shared",
    precision: str = "float32", tokens_per_pass: int = 16384,
) -> list[PairTokens]:  # fmt: skip
    """Both answers of every pair, token by token, in the order of the pairs.

    preferences: rows as `load_preferences` gives them, or their `TokenData`; some dozens are usual, since every token
        is stored. beta: None takes the default of the "dpo" loss.
    Each `rewards` adds up to the `reward_chosen` or `reward_rejected` of `evaluate`.
    """
    scale, data = dpo_beta(beta), usable_pairs(preferences, tokenizer, max_length)
    options: dict[str, Any] = {"layout": layout, "precision": precision, "tokens_per_pass": tokens_per_pass}
    policy, frozen = (_token_logps_of(one, data, **options) for one in (model, reference))
    found = []
    for index in range(len(data)):
        row = data.row(index)
        scored = [own >= 0 for own in row.completions]
        for is_scored in scored:
            is_scored[0] &= len(row.prompt) > 0  # nothing predicts the first token of all
        answers = []
        for k, completion in enumerate(row.completions):
            logps, reference_logps = policy[index][k], frozen[index][k]
            texts = token_texts(tokenizer, plain(completion), before=row.prompt)
            texts = [texts[place] for place in np.flatnonzero(scored[k])]
            rewards = scale * (logps.astype(np.float64) - reference_logps)
            answers.append(TokenRewards(texts, rewards, logps, reference_logps))
        num_shared = int(scored[0][: common_prefix(*row.completions)].sum())
        prompt = decode(tokenizer, row.prompt)
        found.append(PairTokens(int(data.source_rows[index]), prompt, answers[0], answers[1], num_shared))
    return found


@torch.no_grad()
def _token_logps_of(
    model: nn.Module, data: TokenData, *, layout: Layout, precision: str, tokens_per_pass: int
) -> list[list[np.ndarray]]:
    """log π of every scored token: per pair, per completion, an array (T,) in float32."""
    layout = usable_layout(model, layout, data)
    device = next(model.parameters()).device
    lengths = row_lengths(data, layout)
    order = np.argsort(-lengths, kind="stable")
    found: list[list[np.ndarray]] = [[] for _ in range(len(data))]
    scorer, was_training = Scorer(model, precision), model.training
    model.eval()
    try:
        for indices in split_passes(order, lengths, tokens_per_pass=tokens_per_pass):
            batch = make_batch(data, indices, layout)
            logps = scorer(batch.to(device)).float().cpu().numpy()
            pieces = np.split(logps, np.cumsum(batch.lengths.numpy().ravel())[:-1])  # sequence by sequence
            for place, index in enumerate(indices):
                first = place * data.num_completions
                found[index] = pieces[first : first + data.num_completions]
    finally:
        model.train(was_training)
    return found
