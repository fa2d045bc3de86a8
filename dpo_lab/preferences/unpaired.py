"""Single answers with a label, as token ids: pairs taken apart, and prompts with the answer to another prompt.

N rows with K = 1 completion each. A weight below zero (−0.0 too) marks a bad answer; its size is how much it counts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dpo_lab.preferences.token_data import TokenData


def is_good(data: TokenData) -> np.ndarray:
    """The labels, (N,) bool."""
    return ~np.signbit(data.weights)


def taken_apart(data: TokenData) -> TokenData:
    """Pairs as unpaired rows: row 2n is the chosen answer of pair n, row 2n + 1 the rejected one. Others stay."""
    if data.num_completions == 1:
        return data
    rows = [
        (pair.prompt, (answer,), sign * pair.weight)
        for pair in map(data.row, range(len(data)))
        for answer, sign in zip(pair.completions, (1, -1), strict=True)
    ]
    return replace(TokenData.from_rows(rows), source_rows=np.repeat(data.source_rows, 2))


def mismatched(data: TokenData, max_length: int) -> TokenData:
    """Each prompt with the answer of the nearest row before it that has another prompt; before the first is the last.
    Where there is one prompt only, with the answer of the row before.

    KTO compares with how far the policy has moved on such answers. TRL takes them from the batch, so they change with
    its order. These belong to the data alone: the reference scores them once, and pairs taken apart, whose neighbours
    share their prompt, are mismatched too. An answer too long for its new prompt is cut at its end.
    """
    rows = [data.row(index) for index in range(len(data))]
    prompts = [row.prompt.tobytes() for row in rows]
    partner = np.arange(len(rows)) - 1  # -1 is the last row
    for index in [*range(len(rows))] * 2 if len(set(prompts)) > 1 else []:  # twice: the first look back to the last
        if prompts[index] == prompts[index - 1]:
            partner[index] = partner[index - 1]
    answers = [rows[other].completions[0] for other in partner]
    room = [max(1, max_length - len(row.prompt)) for row in rows]
    pieces = [(row.prompt, (answer[:most],)) for row, answer, most in zip(rows, answers, room, strict=True)]
    return replace(TokenData.from_rows(pieces), source_rows=data.source_rows)
