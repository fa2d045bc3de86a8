"""The checks of the family's exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import (
    NotYet,
    check_betas_for_gap,
    check_paired_difference,
    check_resting_margins,
    check_simpo_repair,
)
from dpo_lab.losses import LOSSES, PairScores


def cost(margin):
    return np.logaddexp(0, -margin)


def simpo(w, v, nw, nv, b, g):
    return cost(b * (w / nw - v / nv) - g)


def test_right_simpo(capsys):
    def from_the_package(w, v, nw, nv, beta, gamma):
        tensors = [torch.tensor(values) for values in (w, v, 0 * w, 0 * v, nw, nv)]
        return LOSSES["simpo"].bind(beta=beta, gamma=gamma)(PairScores(*tensors))

    check_simpo_repair(simpo)
    check_simpo_repair(from_the_package)
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, v, nw, nv, b, g: cost(b * (w - v) / nw - g), "planted bug"),
        (lambda w, v, nw, nv, b, g: cost(b * (w - v) / nv - g), "rejected one's length"),
        (lambda w, v, nw, nv, b, g: cost(b * (w / nv - v / nw) - g), "other one's length"),
        (lambda w, v, nw, nv, b, g: cost(b * (w - v) - g), "Those are sums"),
        (lambda w, v, nw, nv, b, g: cost(2 * b * (w - v) / (nw + nv) - g), "mean of the two lengths"),
        (lambda w, v, nw, nv, b, g: simpo(w, v, nw, nv, b, -g), "margin to be reached"),
        (lambda w, v, nw, nv, b, g: simpo(w, v, nw, nv, b, 0), "γ is missing"),
        (lambda w, v, nw, nv, b, g: simpo(w, v, nw, nv, b, b * g), "beside"),
        (lambda w, v, nw, nv, b, g: -simpo(w, v, nw, nv, b, g), "minus before it"),
        (lambda w, v, nw, nv, b, g: simpo(w, v, nw, nv, b, g).mean(), "one loss per pair"),
        (lambda w, v, nw, nv, b, g: 1.0, "yours is one number"),
        (lambda w, v, nw, nv, b, g: np.ones((2, 4)), "have shape"),
        (lambda w, v, nw, nv, b, g: np.ones(4), "which isn't right"),
        (lambda w, v, nw, nv, b, g: None, "returned nothing"),
    ],
)
def test_wrong_simpo(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_simpo_repair(wrong)


def betas(gap, epsilon):
    logit = math.log((1 - epsilon) / epsilon)
    return {"ipo": 1 / (2 * gap), "hinge": 1 / gap, "cdpo": logit / gap, "sppo_hard": 1 / gap}


def test_right_betas(capsys):
    check_betas_for_gap(betas)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, e: {"ipo": 1 / h}, "not 1/β"),
        (lambda h, e: {"ipo": 2 * h}, "Solve 1/"),
        (lambda h, e: {"ipo": 0.0}, "Where is"),
        (lambda h, e: {"hinge": 1 / (2 * h)}, "not of ½"),
        (lambda h, e: {"hinge": h}, "Solve βh = 1"),
        (lambda h, e: {"cdpo": math.log(e / (1 - e)) / h}, "larger than 1"),
        (lambda h, e: {"cdpo": (1 - e) / e / h}, "logarithm of the odds"),
        (lambda h, e: {"cdpo": -math.log(1 - e) / h}, "its odds are"),
        (lambda h, e: {"sppo_hard": 1 / (2 * h)}, "both together"),
        (lambda h, e: {"ipo": "one"}, "should be numbers"),
    ],
)
def test_wrong_betas(change, message):
    with pytest.raises(NotYet, match=message):
        check_betas_for_gap(lambda gap, epsilon: betas(gap, epsilon) | change(gap, epsilon))


def test_betas_come_by_name():
    with pytest.raises(NotYet, match="the keys ipo"):
        check_betas_for_gap(lambda gap, epsilon: 1 / gap)


def logit(p):
    return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)


def resting(share, epsilon):
    mixed = share * (1 - epsilon) + (1 - share) * epsilon
    return logit(share), logit(mixed), logit(min(1.0, (share - epsilon) / (1 - 2 * epsilon)))


def test_right_margins_and_they_are_the_minimisers_of_the_package(capsys):
    check_resting_margins(resting)
    assert capsys.readouterr().out.startswith("Right: ")
    z = torch.arange(-8, 8, 0.001, dtype=torch.float64)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    said, denied = PairScores(z, zero, zero, zero, one, one), PairScores(zero, z, zero, zero, one, one)
    for name, wanted in zip(("dpo", "cdpo", "robust"), resting(0.8, 0.1), strict=True):
        knobs = {} if name == "dpo" else {"label_smoothing": 0.1}
        loss = LOSSES[name].bind(beta=1.0, **knobs)
        mean = 0.8 * loss(said) + 0.2 * loss(denied)
        assert z[mean.argmin()].item() == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, e: (p, *resting(p, e)[1:]), "the share itself"),
        (lambda p, e: (-logit(p), *resting(p, e)[1:]), "The sign"),
        (lambda p, e: (logit(p), logit(1 - e), resting(p, e)[2]), "all labels agree"),
        (lambda p, e: (logit(p), logit(p), resting(p, e)[2]), "comes on top"),
        (lambda p, e: (logit(p), resting(p, e)[2], resting(p, e)[2]), "what robust does"),
        (lambda p, e: (*resting(p, e)[:2], resting(p, e)[1]), "cdpo's"),
        (lambda p, e: (*resting(p, e)[:2], logit(p)), "dpo's"),
        (lambda p, e: (*resting(p, e)[:2], logit(p - e)), "Divide by 1"),
        (lambda p, e: [min(50.0, margin) for margin in resting(p, e)], "return inf"),
        (lambda p, e: (logit(p), 0.123, 0.0), "slope of the mean loss"),
        (lambda p, e: (*resting(p, e)[:2], math.nan), "is nan"),
        (lambda p, e: (*resting(p, e)[:2], "none"), "should be a number"),
        (lambda p, e: logit(p), "three margins"),
    ],
)
def test_wrong_margins(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_resting_margins(wrong)


def paired(ours, theirs):
    difference = ours - theirs
    return difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))


def test_right_differences(capsys):
    check_paired_difference(paired)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda a, b: (-paired(a, b)[0], paired(a, b)[1]), "ours minus theirs"),
        (lambda a, b: ((a - b).sum(), paired(a, b)[1]), "sum over seeds"),
        (lambda a, b: (paired(a, b)[0], math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))), "share nothing"),
        (lambda a, b: (paired(a, b)[0], (a - b).std(ddof=1)), "surer by"),
        (lambda a, b: (paired(a, b)[0], (a - b).std() / math.sqrt(len(a))), "ddof=1"),
        (lambda a, b: (paired(a, b)[0], (a - b).std(ddof=1) / len(a)), "not by S"),
        (lambda a, b: (paired(a, b)[0], (a - b).std()), "without the correction"),
        (lambda a, b: (paired(a, b)[0], 0.0), "divided by √S"),
        (lambda a, b: paired(a, b)[0], "two numbers"),
    ],
)
def test_wrong_differences(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_paired_difference(wrong)
