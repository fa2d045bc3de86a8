"""Rewards at matched KL: by hand, against an exact frontier, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from dpo_lab.course.statistics import (
    SeedInterval,
    compare_along,
    compare_at_kl,
    curves_of,
    matched_kl,
    reach,
    reward_at_kl,
    rewards_at_kl,
    seed_interval,
    sentence,
)
from dpo_lab.worlds.tabular import expected_reward, frontier, small_world


def row(method, knob, seed, kl, reward):
    return {"method": method, "knob": knob, "seed": seed, "kl": kl, "reward": reward}


ROWS = [
    *(row("base", 0, seed, 0.0, 1.0 + seed) for seed in range(2)),
    *(row("a", 1, seed, 1.0, 2.0 + seed) for seed in range(2)),
    *(row("a", 2, seed, 4.0, 4.0 + 2 * seed) for seed in range(2)),
    *(row("b", 1, seed, 2.25, 1.0 + seed) for seed in range(2)),
]


def test_between_two_points_it_is_straight_in_the_root():
    # √1 = 1, √4 = 2, √2.25 = 1.5: half the way.
    assert reward_at_kl([4.0, 0.0, 1.0], [7.0, 0.0, 3.0], 2.25) == pytest.approx(5.0)
    np.testing.assert_allclose(reward_at_kl([0, 1, 4], [0.0, 3.0, 7.0], [0.25, 1.0, 4.0]), [1.5, 3.0, 7.0])


def test_nothing_is_extrapolated():
    assert np.isnan(reward_at_kl([0, 1], [0.0, 1.0], [1.01, 9.0])).all()
    assert np.isnan(reward_at_kl([0.5, 1], [0.0, 1.0], 0.1))


def test_estimates_below_zero_count_as_zero_and_equal_points_are_averaged():
    assert reward_at_kl([-0.02, 0.0, 1.0], [1.0, 3.0, 4.0], 0.0) == pytest.approx(2.0)
    assert reward_at_kl([0, 1, 1], [0.0, 1.0, 3.0], 1.0) == pytest.approx(2.0)


def test_on_an_exact_frontier_the_root_comes_nearer_than_a_chord():
    world = small_world()
    known = frontier(world, [4.0, 1.0, 0.5])
    start = float(expected_reward(world, world.reference_logps))
    kl, rewards = [0.0, *known.kl.tolist()], [start, *known.rewards.tolist()]
    between = frontier(world, [8.0, 2.0, 0.7])
    wanted, at = between.rewards.numpy(), between.kl.numpy()
    root, chord = reward_at_kl(kl, rewards, at), np.interp(at, kl, rewards)
    assert (chord < wanted).all()  # the frontier is concave, and a chord lies below
    assert np.abs(root - wanted).max() < np.abs(chord - wanted).max() / 3


def test_a_curve_begins_at_the_reference_of_its_seed():
    curves = curves_of(ROWS, "a")
    np.testing.assert_allclose(curves[0], [[0, 1, 4], [1, 2, 4]])
    np.testing.assert_allclose(curves[1], [[0, 1, 4], [2, 3, 6]])
    assert rewards_at_kl(ROWS, "a", 2.25) == {0: pytest.approx(3.0), 1: pytest.approx(4.5)}
    assert reach(ROWS, "a") == 4.0


def test_the_difference_is_taken_seed_by_seed():
    found = compare_at_kl(ROWS, "a", "b", 2.25)
    assert found.mean == pytest.approx((2.0 + 2.5) / 2)
    assert found.num_seeds == 2
    assert found == seed_interval([2.0, 2.5])
    assert compare_at_kl(ROWS, "a", "a", 3.0).mean == 0


@pytest.mark.parametrize("num", range(3, 11))
def test_the_interval_is_students(num):
    values = np.random.default_rng(num).normal(size=num)
    found = seed_interval(values)
    low, high = t.interval(0.95, num - 1, loc=values.mean(), scale=values.std(ddof=1) / math.sqrt(num))
    assert found.low == pytest.approx(low, abs=1e-3)
    assert found.high == pytest.approx(high, abs=1e-3)
    assert found.leaves_out_zero == (low > 0 or high < 0)


def test_one_seed_has_no_interval():
    found = seed_interval([2.0])
    assert found.mean == 2.0
    assert math.isnan(found.low)
    assert not found.leaves_out_zero
    assert str(seed_interval([1.0, 1.0])) == "+1.00 [+1.00, +1.00]"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda: reward_at_kl([1.0], [1.0, 2.0], 1.0), "the same length"),
        (lambda: reward_at_kl([math.inf], [1.0], 1.0), "must be finite"),
        (lambda: curves_of(ROWS, "c"), "no row is of the method 'c'; there are base, a, b"),
        (lambda: curves_of(ROWS[1:], "a"), "seed 0 has no row of 'base'"),
        (lambda: compare_at_kl(ROWS, "a", "b", 3.0), "at most 2.25 to compare a with b"),
        (lambda: seed_interval([]), "at least one seed, got none"),
    ],
)
def test_what_is_refused(what, words):
    with pytest.raises(ValueError, match=words):
        what()


def test_it_needs_no_torch():
    assert "torch" not in vars(matched_kl)


def test_where_one_of_two_ends_nothing_is_compared():
    assert list(compare_along(ROWS, "a", "b", [0.5, 2.25, 2.5])) == [0.5, 2.25]
    assert compare_along(ROWS, "a", "b", [0.5])[0.5] == compare_at_kl(ROWS, "a", "b", 0.5)


def test_a_sentence_says_what_the_intervals_say():
    found = {0.1: SeedInterval(0.1, -0.1, 0.3, 3), 0.5: SeedInterval(0.2, 0.1, 0.3, 3),
             1.0: SeedInterval(-0.2, -0.3, -0.1, 3), 2.0: SeedInterval(0.3, 0.2, 0.4, 3)}  # fmt: skip
    assert sentence(found, "RLOO", "DPO") == (
        "RLOO against DPO: more reward at KL 0.5 (+0.20 [+0.10, +0.30]), KL 2 (+0.30 [+0.20, +0.40]); less reward at "
        "KL 1 (-0.20 [-0.30, -0.10]); undecided at KL 0.1 (+0.10 [-0.10, +0.30])."
    )
    assert "nothing can be said" in sentence({}, "RLOO", "DPO")
    assert "undecided" in sentence({1.0: seed_interval([5.0])}, "RLOO", "DPO")
