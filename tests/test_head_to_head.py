"""Win rates: counts worked by hand, judges whose bias is known, and a regression held against its own conditions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dpo_lab.workbench.evaluation import length_controlled_rate, win_rate
from dpo_lab.workbench.evaluation.head_to_head import PRIOR_SCALE, fit_logistic
from dpo_lab.workbench.evaluation.intervals import bootstrap_weights


def longer_is_better(prompt, first, second):
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def made_answers(num: int, *, seed: int = 0, more: int = 0):
    """Two sides' answers of random lengths, the first side's `more` characters longer on average."""
    lengths = np.random.default_rng(seed).integers(20, 200, (2, num))
    return ["x" * (n + more) for n in lengths[0]], ["y" * n for n in lengths[1]]


def test_a_preference_counts_where_both_orders_agree():
    """Six prompts, one for each kind of outcome; the judge's word on (first, second) stands in a table."""
    said = {
        "win": {("a", "b"): 1.0, ("b", "a"): 0.0},
        "slight win": {("a", "b"): 0.6, ("b", "a"): 0.3},
        "loss": {("a", "b"): 0.0, ("b", "a"): 1.0},
        "tie": {("a", "b"): 0.5, ("b", "a"): 0.5},
        "first": {("a", "b"): 1.0, ("b", "a"): 0.9},
        "half": {("a", "b"): 1.0, ("b", "a"): 0.5},
    }
    found = win_rate(list(said), ["a"] * 6, ["b"] * 6, lambda prompt, *sides: said[prompt][sides])
    assert found["outcomes"] == [1, 1, 0, 0.5, 0.5, 0.5]
    assert found["counts"] == {"wins": 2, "losses": 1, "ties": 1, "disagreements": 2}
    assert found["win_rate"]["value"] == pytest.approx(3.5 / 6)
    assert found["disagreement"]["value"] == pytest.approx(2 / 6)
    # first shown: 1 and 0; 1 and 0; 0 and 1; ½ and ½; 1 and 1; 1 and ½
    assert found["first_preferred"]["value"] == pytest.approx((0.5 * 4 + 1 + 0.75) / 6)
    assert json.loads(json.dumps(found)) == found


def test_both_orders_are_asked_and_the_other_side_has_the_rest():
    calls = []
    judge = lambda *call: calls.append(call) or len(call[1]) > len(call[2])
    found = win_rate(["p"], ["long"], ["s"], judge)
    assert calls == [("p", "long", "s"), ("p", "s", "long")]
    assert found["outcomes"] == [1]
    assert win_rate(["p"], ["s"], ["long"], judge)["outcomes"] == [0]


def test_a_judge_that_always_picks_the_first_decides_nothing_and_is_found_out():
    ours, theirs = made_answers(50)
    found = win_rate(range(50), ours, theirs, lambda *_: 1.0)
    assert found["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 50}
    assert found["counts"] == {"wins": 0, "losses": 0, "ties": 0, "disagreements": 50}
    assert found["first_preferred"]["value"] == 1
    assert found["disagreement"]["value"] == 1
    assert found["length_controlled"]["value"] == pytest.approx(0.5, abs=1e-6)


def test_a_bias_for_the_first_place_is_measured():
    """A judge that says "the first" in 40 % of its calls and is right in the others: both orders are right in 0.36."""
    generator = np.random.default_rng(0)
    judge = lambda prompt, first, second: 1.0 if generator.random() < 0.4 else float(first == "good")
    found = win_rate(range(3000), ["good"] * 3000, ["bad"] * 3000, judge)
    assert found["win_rate"]["value"] == pytest.approx(0.6 + 0.4 / 2, abs=0.02), "the second order decides"
    assert found["first_preferred"]["value"] == pytest.approx(0.4 + 0.6 / 2, abs=0.02)
    assert found["disagreement"]["low"] < 0.4 < found["disagreement"]["high"]


def test_a_judge_that_only_likes_long_answers_is_undecided_at_equal_length():
    ours, theirs = made_answers(400, more=60)
    found = win_rate(range(400), ours, theirs, longer_is_better)
    assert found["win_rate"]["value"] > 0.7
    assert found["length_controlled"]["value"] == pytest.approx(0.5, abs=0.1)
    assert found["length_controlled"]["low"] < 0.5 < found["length_controlled"]["high"]
    assert found["length_controlled"]["length_weight"] > 5
    assert found["longer"]["value"] == pytest.approx(60, abs=10)


def test_the_rate_at_equal_length_is_the_one_that_made_the_data():
    """Outcomes drawn from σ(θ + φ·tanh(Δ/s)); answers are longer, so the plain rate is wrong and this one is not."""
    generator, hits, theta = np.random.default_rng(0), 0, -0.5
    truth = 1 / (1 + math.exp(-theta))
    for trial in range(40):
        lengths = generator.normal(40, 60, 500).round()
        chance = 1 / (1 + np.exp(-(theta + 1.5 * np.tanh(lengths / np.sqrt((lengths**2).mean())))))
        outcomes = generator.random(500) < chance
        found = length_controlled_rate(outcomes, lengths, resamples=200, seed=trial)
        hits += found["low"] <= truth <= found["high"]
        assert outcomes.mean() - truth > 0.04
    assert hits >= 35


def test_the_fit_meets_the_conditions_of_its_maximum():
    """At the maximum of a concave function the slope is zero; a weight of 2 is a row that stands there twice."""
    generator = np.random.default_rng(0)
    features = np.stack([np.ones(30), generator.normal(size=30)], 1)
    outcomes = generator.choice([0, 0.5, 1], 30)
    weights = generator.integers(0, 3, (4, 30)).astype(float)
    found = fit_logistic(features, outcomes, weights)
    for row, own in zip(found, weights, strict=True):
        chances = 1 / (1 + np.exp(-features @ row))
        slope = ((own * (outcomes - chances)) @ features) - row / PRIOR_SCALE**2
        np.testing.assert_allclose(slope, 0, atol=1e-6)
        twice = np.repeat(np.arange(30), own.astype(int))
        (again,) = fit_logistic(features[twice], outcomes[twice], np.ones((1, len(twice))))
        np.testing.assert_allclose(again, row, atol=1e-6)


def test_the_fit_stays_finite_where_length_decides_everything():
    lengths = np.array([-30, -10, -1, 1, 10, 30.0])
    features = np.stack([np.ones(6), np.tanh(lengths / 20)], 1)
    (found,) = fit_logistic(features, (lengths > 0).astype(float), np.ones((1, 6)))
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert 3 < found[1] < 30
    (won,) = fit_logistic(features, np.ones(6), np.ones((1, 6)))
    assert 0.9 < 1 / (1 + math.exp(-won[0])) < 1


def test_where_one_side_is_always_longer_no_rate_at_equal_length_is_made_up():
    found = length_controlled_rate([1, 0, 1], [5, 9, 2])
    assert found["value"] is None
    assert found["why"].startswith("the answers are longer than the others' on every prompt")
    assert "shorter" in length_controlled_rate([1, 0], [-5, -9])["why"]
    assert length_controlled_rate([1, 0], [-5, 0])["value"] is not None


def test_all_won_keeps_an_interval_and_draws_add_up():
    found = win_rate(range(20), ["yes"] * 20, ["no"] * 20, longer_is_better)
    assert found["win_rate"]["value"] == 1
    assert found["win_rate"]["low"] == pytest.approx(0.839, abs=1e-3), "Wilson's for 20 of 20"
    drawn = np.concatenate(list(bootstrap_weights(7, 50, 0)))
    assert drawn.shape == (50, 7)
    assert (drawn.sum(1) == 7).all()


@pytest.mark.parametrize("value", [-1, 1.5, float("nan"), None, "first"])
def test_a_judge_that_answers_in_another_scale_is_refused(value):
    with pytest.raises(ValueError, match=r"from 0 \(the second is better\) to 1 \(the first\), got .*; 0.5 is a tie"):
        win_rate(["p"], ["a"], ["b"], lambda *_: value)


def test_sides_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="got 2 prompts, 2 answers and 1 others"):
        win_rate(["p", "q"], ["a", "b"], ["c"], longer_is_better)
    with pytest.raises(ValueError, match="got 0 prompts"):
        win_rate([], [], [], longer_is_better)
