"""Losses as curves: pulls by two ways, resting places from the formulas, and what each loss sees."""

from __future__ import annotations

import math

import pytest
import torch

from dpo_lab.course.loss_curves import (
    LENGTH,
    NATS,
    loss_curve,
    numerical_pulls,
    pulls,
    reads_lengths,
    resting_place,
    sees_gap_only,
    typical_pairs,
    wrong_pull,
)
from dpo_lab.losses import LOSSES

each_loss = pytest.mark.parametrize("name", LOSSES)


def bound(name, **knobs):
    return LOSSES[name].bind(**knobs)


def test_every_loss_says_what_it_assumes():
    assert all(spec.assumes.endswith(".") for spec in LOSSES.values())


def test_a_typical_pair_starts_where_the_policy_is_the_reference():
    scores = typical_pairs(torch.zeros(1), torch.tensor([2.0]), rejected_length=5)
    assert scores.policy_chosen.item() == scores.reference_chosen.item() == -LENGTH * NATS
    assert scores.policy_rejected.item() == -5 * NATS + 2
    assert scores.rejected_length.item() == 5


@each_loss
def test_pulls_are_minus_the_slopes_by_central_differences(name):
    generator = torch.Generator().manual_seed(0)
    a, b = 10 * torch.rand(2, 50, generator=generator, dtype=torch.float64) - 5
    scores = typical_pairs(a, b, rejected_length=7)
    for exact, differences in zip(pulls(bound(name), scores), numerical_pulls(bound(name), scores), strict=True):
        torch.testing.assert_close(exact, differences, atol=1e-5, rtol=1e-6)


def test_the_pull_of_dpo_is_beta_times_the_chance_of_being_wrong_up_and_down():
    curve = loss_curve(bound("dpo", beta=0.5), torch.tensor([-4.0, 0.0, 4.0]))
    expected = 0.5 * torch.sigmoid(-0.5 * curve.gaps)
    torch.testing.assert_close(curve.chosen_pull, expected)
    torch.testing.assert_close(curve.rejected_pull, -expected)
    assert curve.values[1].item() == pytest.approx(math.log(2))


def test_no_answer_is_more_than_certain():
    with pytest.raises(ValueError, match="more than certain"):
        loss_curve(bound("dpo"), torch.tensor([48.0]))


@pytest.mark.parametrize(
    ("name", "knobs", "gap"),
    [
        ("dpo", {"beta": 0.5}, math.inf),
        ("cdpo", {"beta": 0.5, "label_smoothing": 0.1}, math.log(9) / 0.5),
        ("robust", {"beta": 0.5, "label_smoothing": 0.1}, math.inf),
        ("ipo", {"beta": 0.1, "length_power": 0.0}, 5.0),
        ("ipo", {"beta": 0.5, "length_power": 1.0}, 1.0 * LENGTH),  # a nat per token
        ("hinge", {"beta": 0.1}, 10.0),
        ("sigmoid_norm", {"beta": 5.0}, math.inf),
        ("exo_pair", {"beta": 0.1, "label_smoothing": 0.001}, math.log(999) / 0.1),
        ("discopop", {"beta": 0.1}, math.inf),
        ("simpo", {"beta": 2.0, "gamma": 1.0}, math.inf),
    ],
)
def test_losses_of_the_gap_rest_where_their_formulas_say(name, knobs, gap):
    rest = resting_place(bound(name, **knobs))
    assert rest.gap == pytest.approx(gap, abs=0.051)
    assert math.isnan(rest.chosen)


@pytest.mark.parametrize(
    ("name", "knobs", "chosen", "rejected"),
    [
        ("nca_pair", {"beta": 0.1}, math.log(2) / 0.1, -math.inf),
        ("bco_pair", {"beta": 0.1}, math.inf, -math.inf),
        ("sppo_hard", {"beta": 0.1}, 5.0, -5.0),
        ("apo_zero", {"beta": 0.1}, math.inf, -math.inf),
        ("apo_down", {"beta": 0.1}, -math.inf, -math.inf),
        ("rpo", {"beta": 0.1}, math.inf, -math.inf),
        ("cpo", {"beta": 0.1}, math.inf, -math.inf),
        ("orpo", {"lam": 0.1}, math.inf, -math.inf),
        ("simper", {}, math.inf, -math.inf),
    ],
)
def test_losses_of_both_sides_rest_where_their_formulas_say(name, knobs, chosen, rejected):
    rest = resting_place(bound(name, **knobs))
    assert math.isnan(rest.gap)
    assert rest.chosen == pytest.approx(chosen, abs=0.13)
    assert rest.rejected == pytest.approx(rejected, abs=0.13)


def test_what_a_loss_sees():
    gap_only = {name for name in LOSSES if sees_gap_only(bound(name))}
    # The losses of gap.py, and SimPO, whose two answers here have the same length.
    assert gap_only == {name for name, spec in LOSSES.items() if spec.takes_divergence} | {"simpo"}
    lengths = {name for name in LOSSES if reads_lengths(bound(name))}
    assert lengths == {"ipo", "sigmoid_norm", "simpo", "orpo", "simper"}


def test_the_pull_on_badly_wrong_pairs():
    assert wrong_pull(bound("dpo", beta=1.0)) == pytest.approx(2)
    assert wrong_pull(bound("hinge", beta=0.1)) == pytest.approx(1)
    assert abs(wrong_pull(bound("exo_pair", beta=1.0))) < 1e-3
    assert wrong_pull(bound("ipo", beta=0.5, length_power=0.0), gap=-10.0) == pytest.approx(11)
    assert wrong_pull(bound("discopop")) < 0
