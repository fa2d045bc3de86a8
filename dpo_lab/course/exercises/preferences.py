"""Checks for 01_preferences: probabilities, likelihood, the gap behind a share, and how much data an error costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dpo_lab.course.exercises.checking import NotYet, as_array, as_number, call, expect, right


def check_preference_probability(function: Callable[..., Any]) -> None:
    """`function(r_w, r_l)` → P(y_w ≻ y_l) = σ(r_w − r_l), for tensors of rewards."""
    chosen = torch.tensor([2.0, 0.5, -1.0, 3.0], dtype=torch.float64)
    rejected = torch.tensor([0.5, 0.5, 1.5, -1.0], dtype=torch.float64)
    gap = (chosen - rejected).numpy()
    strength = np.exp(chosen.numpy())
    found = call(function, chosen, rejected)
    expect(found, _sigma(gap), name="P(y_w ≻ y_l)", instead={
        "That is the chance of the other answer: at a larger r_w it must rise.": _sigma(-gap),
        "That is the gap itself. Which function turns any number into a probability?": gap,
        "Divide the strengths, not the rewards: the strength of an answer is exp(r).":
            (chosen / (chosen + rejected)).numpy(),
        "That is only the odds, which run from 0 to infinity. What share of 1 are they?":
            strength / np.exp(rejected.numpy()),
        "That is the logarithm of the probability.": np.log(_sigma(gap)),
        "That adds the rewards. The probability must not change when both grow by the same amount.":
            _sigma((chosen + rejected).numpy()),
    }, otherwise="It should be 0.5 for equal rewards, and depend on the difference only.")  # fmt: skip
    far = call(function, torch.tensor([900.0, -900.0]).double(), torch.tensor([0.0, 0.0]).double())
    if not close_to(far, [1.0, 0.0]):
        raise NotYet(f"For gaps of ±900 it gives {far}, where 1 and 0 are right: exp(900) overflows. "
                     "Is there a function that needs no exp of a large number?")  # fmt: skip
    right("equal rewards give one half, only the difference counts, and no gap is too large")


def check_bradley_terry_loss(function: Callable[..., Any]) -> None:
    """`function(rewards, chosen, rejected)` → the mean negative log-likelihood of comparisons of one prompt."""
    rewards = torch.tensor([1.2, 0.1, -0.4, -0.9], dtype=torch.float64, requires_grad=True)
    chosen, rejected = torch.tensor([0, 0, 1, 3, 2]), torch.tensor([1, 3, 2, 0, 1])
    gap = rewards.detach()[chosen] - rewards.detach()[rejected]
    per_comparison = -F.logsigmoid(gap)
    answer = call(function, rewards, chosen, rejected)
    if as_array(answer).size == len(gap) > 1:
        raise NotYet("It returns one value per comparison, and a fit needs one number. Take their mean.")
    expect(as_number(answer), per_comparison.mean(), instead={
        "That is the sum. The mean doesn't grow with the number of comparisons, so one learning rate fits all.":
            per_comparison.sum(),
        "Its sign is wrong: a likelihood is to be made large, a loss small.": -per_comparison.mean(),
        "Chosen and rejected are the wrong way round: this loss is small where the loser has more reward.":
            -F.logsigmoid(-gap).mean(),
        "That is the mean probability. The likelihood of many comparisons is a product: take logs before the mean.":
            gap.sigmoid().mean(),
        "That is the logarithm of the mean. The likelihood is a product: take logs first, then the mean.":
            -gap.sigmoid().mean().log(),
        "That is the mean gap, without the logistic function: it can be lowered for ever.": -gap.mean(),
    }, name="the loss", otherwise="Take −log σ of each comparison's gap, then the mean.")  # fmt: skip
    if not (isinstance(answer, torch.Tensor) and answer.requires_grad):
        raise NotYet("The value is right, and no gradient flows from it to the rewards: stay with torch functions, "
                     "without .item(), .detach() or numpy.")  # fmt: skip
    right("fitting rewards is a logistic regression, and this is its loss")


def check_reward_gap(function: Callable[..., Any]) -> None:
    """`function(share)` → the reward gap at which that share prefers the first answer: the logit."""
    shares = [0.84, 0.5, 0.1, 0.999]
    found = [as_number(call(function, share), "the gap") for share in shares]
    p = np.array(shares)
    expect(found, np.log(p / (1 - p)), name=f"the gap for shares {shares}", instead={
        "Its sign is wrong: more than half for the first answer means that its reward is higher.": np.log((1 - p) / p),
        "That is σ(share). Turn the formula round: which gap has this σ?": _sigma(p),
        "That is the odds; the gap is not yet there. The odds are exp(gap).": p / (1 - p),
        "log(share) is never positive, and it is not 0 at one half. Compare with the other side's share.": np.log(p),
        "That logarithm has base 10. Rewards are measured with the natural one.": np.log10(p / (1 - p)),
        "That logarithm has base 2. Rewards are measured with the natural one.": np.log2(p / (1 - p)),
    }, otherwise="Solve share = σ(gap) for the gap.")  # fmt: skip
    right("with two answers maximum likelihood needs no computer: the gap is the logarithm of the odds")


def check_comparisons_needed(answer: Any) -> None:
    """Comparisons for a tenth of the error that 400 comparisons leave: 40,000."""
    found = as_number(answer, "the number of comparisons")
    expect(found, 40_000, name="the number of comparisons", instead={
        "An error that fell as 1/n would need that many. It falls as 1/√n.": 4_000,
        "That is √10 times as many, and leaves 1/10^¼ of the error. Turn the rule round.": 400 * 10**0.5,
        "That is how many more are needed; asked is how many in all.": 39_600,
        "That is the factor. Asked is how many comparisons in all.": 100,
    }, otherwise="If the error is c/√n, what must n become for a tenth of it?", rtol=1e-3)  # fmt: skip
    right("one more digit of precision costs a hundred times the data")


def _sigma(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def close_to(found: Any, expected: list[float]) -> bool:
    array = np.asarray(found.detach().numpy() if isinstance(found, torch.Tensor) else found, np.float64)
    return array.shape == (len(expected),) and bool(np.allclose(array, expected, atol=1e-9))
