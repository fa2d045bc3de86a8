"""Where in an answer does the decision fall? Pairs as `token_rewards` gives them, or anything of that shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PARTS = ("shared", "parting", "after", "end")


def margin_parts(pairs: Sequence[Any]) -> dict[str, np.ndarray]:
    """Where in the answers the margins arise: four parts that add up to each pair's margin, (N,) each.

    shared: the tokens with which both answers begin alike (0 up to rounding); parting: the first token in which they
    differ; after: what follows; end: the last token of each, which in a finished answer is the end token.
    """
    table = np.zeros((len(pairs), len(PARTS)))
    for i, pair in enumerate(pairs):
        for answer, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            rewards = np.asarray(answer.rewards, np.float64)
            own = rewards[pair.num_shared :]
            pieces = (rewards[: pair.num_shared], own[:1], own[1:-1], own[1:][-1:])
            table[i] += sign * np.array([piece.sum() for piece in pieces])
    return dict(zip(PARTS, table.T, strict=True))


def margin_by_position(pairs: Sequence[Any], bins: int = 10) -> np.ndarray:
    """The mean margin that each tenth of the answers brings, (bins,); it adds up to the mean margin.

    A token at t of T counts at (t + ½)/T, in the chosen answer with a plus, in the rejected one with a minus.
    """
    if not len(pairs):
        raise ValueError("there are no pairs to look at; token_rewards gives some")
    totals = np.zeros(bins)
    for pair in pairs:
        for answer, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            num = len(answer.rewards)
            place = ((np.arange(num) + 0.5) / num * bins).astype(int)
            totals += sign * np.bincount(place, weights=answer.rewards, minlength=bins)
    return totals / len(pairs)


def tokens_for_half(rewards: Any) -> int:
    """The fewest tokens of an answer that carry half of Σ|reward|."""
    sizes = np.sort(np.abs(np.asarray(rewards, np.float64)))[::-1]
    return int(np.searchsorted(np.cumsum(sizes), sizes.sum() / 2) + 1)
