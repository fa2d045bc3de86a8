"""Checks for the notebook on log-probabilities: the shift, the mask, the border, the shared row.

Each takes the reader's function and tries it on small made-up numbers with a known answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpo_lab.course.exercises.checking import NotYet, as_array, as_parts, call, close, expect, right


def check_token_logps(answer: Callable[..., Any]) -> None:
    """`answer(logits, ids, num_prompt)` with logits (T, V) and ids (T,) → log π of each completion token, (T − P,)."""
    for num_prompt, num, seed in ((3, 8, 0), (1, 5, 1), (4, 5, 2)):
        logits, ids = _numbers((num, 7), seed), _ids(num, 7, seed)
        expected = _log_softmax(logits)[np.arange(num - 1), ids[1:]][num_prompt - 1 :]
        found = as_array(call(answer, torch.tensor(logits), torch.tensor(ids), num_prompt))
        case = f"with {num} tokens of which {num_prompt} are the prompt"
        if found.ndim == 0:
            how = "their sum" if close(found, expected.sum()) else "one number"
            raise NotYet(f"{case}, your function gives {how} ({float(found):.4f}). Keep one number per token here.")
        _check_length(found, expected, case)
        every = _log_softmax(logits)
        expect(found, expected, name=f"your answer {case}", instead={
            "These are the logits at t read for the token at t. What does the model know at position t, and what "
            "is it asked there?": every[np.arange(num_prompt, num), ids[num_prompt:]],
            "These are raw logits: they are scores, and the scores of a vocabulary do not add up to anything. "
            "Which function makes them log-probabilities?": logits[np.arange(num - 1), ids[1:]][num_prompt - 1 :],
            "These are probabilities. Sums over tokens need their logarithms.": np.exp(expected),
            "The sign is flipped: a log-probability is never above 0.": -expected,
        }, otherwise="Take one position by hand: which row of the logits, and which column of it?")  # fmt: skip
    right("the logits at t score the token at t + 1, and the prompt's last token scores the answer's first")


def _check_length(found: np.ndarray, expected: np.ndarray, case: str) -> None:
    if found.shape == expected.shape:
        return
    report = f"{case}, your function gives {found.shape} numbers, and there are {len(expected)} completion tokens."
    if len(found) == len(expected) - 1:
        if close(found, expected[:-1]):
            raise NotYet(f"{report} The last one is missing: that is the end token, and it counts.")
        if close(found, expected[1:]):
            raise NotYet(f"{report} The first one is missing: the prompt's last token predicts it.")
    if len(found) > len(expected) and close(found[-len(expected) :], expected):
        raise NotYet(f"{report} The right ones are there, behind tokens of the prompt. Where does the answer begin?")
    raise NotYet(f"{report} Which positions predict a completion token?")


def check_mask_repair(answer: Callable[..., Any]) -> None:
    """`answer(logits, ids, is_completion)` with logits (R, T, V), ids and mask (R, T) → log π(y|x) per row, (R,)."""
    num_rows, num, num_vocab = 3, 9, 6
    logits, ids = _numbers((num_rows, num, num_vocab), 5), _ids(num_rows * num, num_vocab, 5).reshape(num_rows, num)
    borders, ends = np.array([3, 2, 4]), np.array([7, 9, 6])
    ids[np.arange(num_rows), ends - 1] = 0  # the end token, which also pads
    ids[np.arange(num) >= ends[:, None]] = 0
    places = np.arange(num)
    mask = (places >= borders[:, None]) & (places < ends[:, None])  # (R, T), on the tokens themselves
    every = _log_softmax(logits)
    rows = np.arange(num_rows)[:, None]
    shifted = every[rows, np.arange(num - 1), ids[:, 1:]]  # (R, T − 1): entry t scores the token t + 1
    expected = (shifted * mask[:, 1:]).sum(1)
    lengths = mask.sum(1)
    found = as_array(call(answer, torch.tensor(logits), torch.tensor(ids), torch.tensor(mask)), shape=(num_rows,))
    expect(found, expected, name="log π(y|x) of three rows", instead={
        "The bug is still there: the targets were moved by one and the mask was not, so the first token of each "
        "answer is dropped and one behind it is counted.": (shifted * mask[:, :-1]).sum(1),
        "Now nothing is shifted: the logits at t are read for the token at t.":
            (every[rows, places, ids] * mask).sum(1),
        "This is a mean per token. DPO sums.": expected / lengths,
        "The prompt and the padding are counted too: the mask is not used any more.": shifted.sum(1),
        "The end tokens are gone. Token 0 ends an answer and also pads, so a mask made by comparing ids loses "
        "it.": (shifted * (mask & (ids != 0))[:, 1:]).sum(1),
    }, otherwise="Write the columns of `ids[:, 1:]` and of the mask under each other: are they about the "
                 "same token?")  # fmt: skip
    right("logits, targets and mask must all be moved together, and the package does it in one place, `batching`")


def check_border(answer: Callable[..., Any]) -> None:
    """`answer(prompt, wholes)` → how many leading tokens belong to the prompt, as an int.

    prompt: ids of the prompt tokenised alone; wholes: ids of the prompt with each answer, tokenised together.
    """
    cases: list[tuple[str, list[int], list[list[int]], int]] = [
        ("nothing merges", [5, 6, 7], [[5, 6, 7, 1, 2], [5, 6, 7, 3]], 3),
        ("the prompt's last token merges with both answers", [5, 6, 7], [[5, 6, 8, 2], [5, 6, 9, 2]], 2),
        ("it merges with one of the answers only", [5, 6, 7], [[5, 6, 7, 2], [5, 6, 9, 2]], 2),
        ("both answers begin alike", [5, 6, 7], [[5, 6, 7, 4, 4, 1], [5, 6, 7, 4, 4, 2]], 3),
    ]
    for name, prompt, wholes, border in cases:
        arrays = np.array(prompt), [np.array(whole) for whole in wholes]
        found = as_array(call(answer, *arrays), shape=()).item()
        if found == border:
            continue
        report = f"Where {name}, your border is {found:g} (prompt {prompt}, with answers {wholes})."
        if "merges" in name and found == len(prompt):
            raise NotYet(f"{report} The prompt alone has that many tokens, but do all of them begin the whole?")
        if "only" in name and found > border:
            raise NotYet(f"{report} One prompt serves both answers: its tokens must begin both wholes.")
        if "alike" in name and found > border:
            raise NotYet(f"{report} What the answers have in common is still the answer, and is scored.")
        raise NotYet(f"{report} Count how many leading tokens are the same.")
    right("the border is the longest common beginning of the prompt alone and of the prompt with each answer")


def check_shared_row(answer: Callable[..., Any]) -> None:
    """`answer(num_prompt, num_chosen, num_rejected)` → positions (T,) and who sees whom (T, T), as booleans."""
    for sizes in ((3, 2, 4), (1, 3, 2), (5, 1, 1)):
        given = as_parts(call(answer, *sizes), 2, "two things, positions and the mask")
        num_prompt, num_chosen, num_rejected = sizes
        num = sum(sizes)
        case = f"with {num_prompt} + {num_chosen} + {num_rejected} tokens"
        expected = np.concatenate([np.arange(num_prompt + num_chosen), num_prompt + np.arange(num_rejected)])
        expect(as_array(given[0], "positions", (num,)), expected, name=f"positions {case}", instead={
            "They run on through the rejected answer. On a row of its own, which position would its first token "
            "have?": np.arange(num),
            "Each part starts at 0. An answer stands behind its prompt, not in its place.":
                np.concatenate([np.arange(size) for size in sizes]),
        }, otherwise="Each answer must have the positions that it has on a row of its own.")  # fmt: skip
        found = as_array(given[1], "the mask", (num, num)) > 0.5
        _check_mask(found, num_prompt, num_chosen, case)
    right("with this mask and these positions, one row gives what two rows give, and pays for the prompt once")


def _check_mask(found: np.ndarray, num_prompt: int, num_chosen: int, case: str) -> None:
    num = len(found)
    part = (np.arange(num) >= num_prompt).astype(int) + (np.arange(num) >= num_prompt + num_chosen)
    alike = (part[None, :] == 0) | (part[None, :] == part[:, None])
    expected = np.tril(alike)
    if np.array_equal(found, expected):
        return
    mistakes = {
        "the rejected answer sees the chosen one: plain causal attention lets it.": np.tril(np.ones((num, num), bool)),
        "tokens see their own future: the answer that they should predict is given away.": alike,
        "the mask is transposed: line t says whom token t sees, and not who sees it.": expected.T,
        "no token sees itself, but each may look at itself.": np.tril(alike, -1),
        "the answers do not see the prompt.": np.tril(part[None, :] == part[:, None]),
    }
    for message, wrong in mistakes.items():
        if np.array_equal(found, wrong):
            raise NotYet(f"The mask {case} is not right: {message}")
    token, seen = np.argwhere(found != expected)[0]
    what = "sees" if found[token, seen] else "does not see"
    raise NotYet(f"The mask {case} is not right: token {token} {what} token {seen}. Should it?")


def _numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape)


def _ids(num: int, num_vocab: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 100).integers(1, num_vocab, num)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    moved = logits - logits.max(-1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(-1, keepdims=True))
