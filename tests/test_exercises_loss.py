"""The exercises on the loss: right answers pass, wrong and almost right ones are told apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpo_lab.course.exercises import (
    NotYet,
    check_beta_for_margin,
    check_dpo_loss,
    check_loss_slope,
    check_share_behind_margin,
)


def nll(z):
    return -F.logsigmoid(z)


def sigma(x):
    return 1 / (1 + math.exp(-x))


def logit(p):
    return math.log(p / (1 - p))


def test_right_answers_pass_and_say_what_they_show(capsys):
    check_dpo_loss(lambda w, lo, rw, rl, beta: nll(beta * ((w - rw) - (lo - rl))))
    check_dpo_loss(lambda w, lo, rw, rl, beta: F.softplus(-beta * (w - lo - rw + rl)))
    check_dpo_loss(lambda w, lo, rw, rl, beta: np.logaddexp(0, -beta * ((w - lo) - (rw - rl)).numpy()))
    check_loss_slope(lambda h, beta: -beta * torch.sigmoid(-beta * h))
    check_loss_slope(lambda h, beta: -beta * (1 - torch.sigmoid(beta * h)))
    check_share_behind_margin(lambda h, beta: sigma(beta * h))
    check_beta_for_margin(lambda p, gap: logit(p) / gap)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.startswith("Right: ") for line in lines)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w, lo, rw, rl, b: nll(b * (w - lo)), "The reference is missing"),
        (lambda w, lo, rw, rl, b: nll(-b * ((w - rw) - (lo - rl))), "wrong way round"),
        (lambda w, lo, rw, rl, b: nll((w - rw) - (lo - rl)), "β is missing inside"),
        (lambda w, lo, rw, rl, b: b * nll((w - rw) - (lo - rl)), "before the logarithm"),
        (lambda w, lo, rw, rl, b: -nll(b * ((w - rw) - (lo - rl))), "Its sign is wrong"),
        (lambda w, lo, rw, rl, b: nll(b * ((w + rw) - (lo + rl))), "was added"),
        (lambda w, lo, rw, rl, b: nll(b * ((w - rl) - (lo - rw))), "changed places"),
        (lambda w, lo, rw, rl, b: torch.sigmoid(b * ((w - rw) - (lo - rl))), "minus its logarithm"),
        (lambda w, lo, rw, rl, b: nll(b * ((w - rw) - (lo - rl))).mean(), "one number for three pairs"),
        (lambda w, lo, rw, rl, b: nll(b * (w - rw)), r"log 2 = 0.6931, and it gives 0.6931"),
        (lambda w, lo, rw, rl, b: nll(b * ((w - lo) - rw)), "it gives"),
        (lambda w, lo, rw, rl, b: -torch.log(torch.sigmoid(b * ((w - rw) - (lo - rl)))), "σ became 0"),
    ],
)
def test_the_loss_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_dpo_loss(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h, b: -b * torch.sigmoid(b * h), "The bug is still there"),
        (lambda h, b: b * torch.sigmoid(-b * h), "Its sign is wrong"),
        (lambda h, b: -torch.sigmoid(-b * h), "factor β before σ"),
        (lambda h, b: -b * torch.sigmoid(-h), "β is missing inside"),
        (lambda h, b: b * torch.sigmoid(b * h) * torch.sigmoid(-b * h), "slope of σ"),
        (lambda h, b: torch.full_like(h, -b / 2), "one half everywhere"),
        (lambda h, b: -h, "not only at 0"),
        (lambda h, b: torch.tensor(-0.1), "shape"),
    ],
)
def test_the_planted_bug_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_loss_slope(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda h, b: sigma(h), "β is missing"),
        (lambda h, b: b * h, "That is the margin"),
        (lambda h, b: sigma(-b * h), "those who chose y_l"),
        (lambda h, b: sigma(h / b), "multiplied by β"),
        (lambda h, b: math.log1p(math.exp(-b * h)), "That is the loss"),
        (lambda h, b: 0.9, "Solve h"),
    ],
)
def test_the_share_behind_a_margin_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_share_behind_margin(answer)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, gap: gap / logit(p), "upside down"),
        (lambda p, gap: math.log(p) / gap, "logarithm alone"),
        (lambda p, gap: -math.log(p) / gap, "the loss of such a pair"),
        (lambda p, gap: p / gap, "before you divide"),
        (lambda p, gap: logit(p), "divide it by the gap"),
        (lambda p, gap: logit(p) * gap, "That is the product"),
        (lambda p, gap: 0.1, "At convergence"),
    ],
)
def test_the_choice_of_beta_refuses(answer, message):
    with pytest.raises(NotYet, match=message):
        check_beta_for_margin(answer)
