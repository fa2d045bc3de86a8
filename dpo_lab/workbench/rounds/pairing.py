"""Which pairs the scores of several answers give. Numbers in, places out; no texts, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpo_lab.workbench.rounds.config import RoundsConfig


class Places(NamedTuple):
    """A pair: its prompt's place in the round, and the places of its answers."""

    prompt: int
    chosen: int
    rejected: int


def make_pairs(
    scores: np.ndarray, texts: Sequence[Sequence[str]], config: RoundsConfig, rng: np.random.Generator
) -> list[Places]:
    """Pairs of the answers to P prompts, from scores (P, K); higher is better.

    An answer is paired with another where their scores differ by more than `config.margin`: a tie gives no pair. An
    answer without text takes part in none, and neither do two answers with the same text.
    """
    found = []
    for prompt, (own, said) in enumerate(zip(scores, texts, strict=True)):
        usable = [i for i, text in enumerate(said) if text]
        order = sorted(usable, key=lambda i: -own[i])  # stable: of equal scores the first answer comes first
        pairs = [(i, j) for i in order for j in order if own[i] - own[j] > config.margin and said[i] != said[j]]
        if not pairs:
            continue
        match config.pair_by:
            case "best_worst":
                pairs = [max(pairs, key=lambda pair: own[pair[0]] - own[pair[1]])]
            case "best_random":
                of_best = [pair for pair in pairs if pair[0] == pairs[0][0]]
                pairs = [of_best[rng.integers(len(of_best))]]
            case "bradley_terry":
                chosen, rejected = pairs[rng.integers(len(pairs))]
                gap = (own[chosen] - own[rejected]) / config.label_temperature
                is_right = rng.random() < 1 / (1 + np.exp(-min(gap, 700.0)))
                pairs = [(chosen, rejected) if is_right else (rejected, chosen)]
        found += [Places(prompt, *pair) for pair in pairs]
    return found
