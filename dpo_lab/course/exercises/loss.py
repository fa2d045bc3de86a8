"""Checks for 03_loss_and_gradient: the loss, a planted bug in its gradient, and β against margins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpo_lab.course.exercises.checking import NotYet, as_array, as_number, call, close, expect, right
from dpo_lab.loss import PairScores, dpo


def check_dpo_loss(function: Callable[..., Any]) -> None:
    """`function(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)` → (B,) losses."""
    # Three pairs with gaps of different sign, whose references differ from each other and from the policy.
    policy_w, policy_l, reference_w, reference_l = torch.tensor(
        [[-11.5, -42.0, -7.0], [-30.2, -35.0, -9.0], [-11.0, -30.0, -8.5], [-20.3, -33.0, -4.5]], dtype=torch.float64
    )
    beta = 0.2
    one = torch.ones(3)
    expected = dpo(PairScores(policy_w, policy_l, reference_w, reference_l, one, one), beta=beta)
    answer = call(function, policy_w, policy_l, reference_w, reference_l, beta)
    if as_array(answer).size == 1:
        raise NotYet("It returns one number for three pairs. Return one loss per pair; whoever calls takes the mean.")
    h = (policy_w - reference_w) - (policy_l - reference_l)
    loss = lambda z: np.logaddexp(0, -z.numpy())
    same = call(function, policy_w, policy_l, policy_w, policy_l, beta)
    expect(answer, expected, name="the loss of three pairs", instead={
        "The reference is missing: with policy = reference the loss must be log 2, whatever the answers.":
            loss(beta * (policy_w - policy_l)),
        "Chosen and rejected are the wrong way round: the loss must fall when the chosen log-prob rises.":
            loss(-beta * h),
        "β is missing inside σ.": loss(h),
        "β stands before the logarithm; it belongs inside σ, beside the gap.": beta * loss(h),
        "Its sign is wrong: log σ is never positive, and a loss is −log σ.": -loss(beta * h),
        "The reference's gap was added where it should be taken away, or the references of chosen and rejected have "
        "changed places, which comes to the same.": loss(beta * (policy_w - policy_l + reference_w - reference_l)),
        "That is the probability σ(βh); the loss is minus its logarithm.": (beta * h).sigmoid(),
    }, otherwise=f"First test: with policy = reference it should be log 2 = 0.6931, and it gives {_first(same)}.",
    )  # fmt: skip
    zero = torch.zeros(2, dtype=torch.float64)
    far = call(function, torch.tensor([-1e4, 1e4], dtype=torch.float64), zero, zero, zero, 1.0)
    values = far.detach().numpy() if isinstance(far, torch.Tensor) else np.asarray(far, np.float64)
    if not (np.isfinite(values).all() and close(values, [1e4, 0.0])):
        raise NotYet(f"At gaps of −10,000 and 10,000 nats it gives {values}, where 10,000 and 0 are right: σ became 0 "
                     "before its logarithm was taken. torch.nn.functional has a function that does both at once.",
                     )  # fmt: skip
    right("log 2 where policy and reference agree, one loss per pair, and finite however wrong a pair is")


def check_loss_slope(function: Callable[..., Any]) -> None:
    """`function(h, beta)` → dL/dh = −β σ(−βh), for a tensor of gaps h."""
    h = torch.tensor([-20.0, -3.0, 0.0, 4.0, 25.0], dtype=torch.float64)
    beta = 0.3
    sigma = lambda x: (1 + np.tanh(x.numpy() / 2)) / 2
    found = call(function, h, beta)
    expect(found, -beta * sigma(-beta * h), name=f"the slope at h = {h.int().tolist()}", instead={
        "The bug is still there: pairs that are ranked right pull hardest, and those ranked wrongly hardly at all. "
        "Both versions agree at h = 0, which is why a test at the start doesn't notice.": -beta * sigma(beta * h),
        "Its sign is wrong: the loss falls as h grows, so the slope is negative everywhere.": beta * sigma(-beta * h),
        "The factor β before σ is missing: it comes from the inner derivative.": -sigma(-beta * h),
        "β is missing inside σ.": -beta * sigma(-h),
        "That is the slope of σ(βh), not of −log σ(βh).": beta * sigma(beta * h) * sigma(-beta * h),
        "That is −β times one half everywhere. The pull must fade as h grows.": np.full(5, -beta / 2),
    }, otherwise="Compare with (loss(h + 1e-6) − loss(h − 1e-6)) / 2e-6 at several h, not only at 0.")  # fmt: skip
    right("wrongly ranked pairs pull with almost β, well ranked ones hardly at all, and at the start it is β/2")


def check_share_behind_margin(function: Callable[..., Any]) -> None:
    """`function(h, beta)` → the share of people who chose y_w, read off a converged gap: σ(βh)."""
    cases = [(22.0, 0.1), (22.0, 0.05), (-8.0, 0.2), (0.0, 0.5)]
    found = [as_number(call(function, h, beta), "the share") for h, beta in cases]
    h, beta = np.array(cases).T
    sigma = lambda x: (1 + np.tanh(x / 2)) / 2
    expect(found, sigma(beta * h), name="the share for (h, β) = " + ", ".join(map(str, cases)), instead={
        "β is missing: the same gap means more agreement at a larger β.": sigma(h),
        "That is the margin βh, which is the logit of the share.": beta * h,
        "That is the share of those who chose y_l.": sigma(-beta * h),
        "At convergence h = logit(p)/β, so h is multiplied by β, not divided.": sigma(h / beta),
        "That is the loss. Which p has logit βh?": np.logaddexp(0, -beta * h),
    }, otherwise="Solve h = logit(p)/β for p.")  # fmt: skip
    right("where many people voted on a pair and nothing else moves its gap, the converged margin counts their votes; "
          "it says nothing about how good the answer is")  # fmt: skip


def check_beta_for_margin(function: Callable[..., Any]) -> None:
    """`function(share, gap)` → the β at which pairs with this share settle at this gap: logit(share)/gap."""
    cases = [(0.9, 5.0), (0.9, 20.0), (0.6, 5.0)]
    found = [as_number(call(function, share, gap), "β") for share, gap in cases]
    p, gap = np.array(cases).T
    logit = np.log(p / (1 - p))
    expect(found, logit / gap, name="β for (share, gap) = " + ", ".join(map(str, cases)), instead={
        "That is upside down: a larger β gives a smaller gap.": gap / logit,
        "Take the logit of the share, log(p/(1 − p)), and not its logarithm alone.": np.log(p) / gap,
        "That is −log(p): the loss of such a pair and not its logit.": -np.log(p) / gap,
        "Take the logit of the share before you divide.": p / gap,
        "That is the margin βh; divide it by the gap h.": logit,
        "That is the product. At convergence βh = logit(p): solve for β.": logit * gap,
    }, otherwise="At convergence βh = logit(p).")  # fmt: skip
    right("β sets the exchange rate between agreement and nats of drift")


def _first(values: Any) -> str:
    number = float(as_array(values).reshape(-1)[0])
    return f"{number:.4f}" if math.isfinite(number) else str(number)
