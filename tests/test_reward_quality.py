"""Implicit against true rewards: calibration, ranks, length and best of n, held to hand-worked numbers and oracles."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr

from dpo_lab.course.statistics import margin_by_position, margin_parts, tokens_for_half
from dpo_lab.workbench.evaluation import (
    agreement,
    answer_rewards,
    best_of_n,
    calibration,
    coin_sides,
    evaluate,
    fit_temperature,
    length_matched,
    length_share,
    partial_rank_correlation,
    per_group,
    rank_correlation,
    sigmoid,
    token_rewards,
)
from tests.conftest import random_pairs, tiny_llama
from tests.tiny import tiny_tokenizer


def drawn(num: int, *, sharpness: float = 1.0, seed: int = 0):
    """Margins, and labels drawn from σ(sharpness · margin)."""
    generator = np.random.default_rng(seed)
    margins = generator.normal(0, 2, num)
    return margins, generator.random(num) < sigmoid(sharpness * margins)


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calibration_worked_by_hand():
    logit = lambda p: np.log(p / (1 - p))
    found = calibration([logit(0.2)] * 5 + [logit(0.7)] * 4, [1, 0, 0, 0, 0, 1, 1, 0, 1], bins=2)
    np.testing.assert_allclose(found.predicted, [0.2, 0.7])
    np.testing.assert_allclose(found.observed, [0.2, 0.75])
    assert found.counts.tolist() == [5, 4]
    assert found.error == pytest.approx(4 / 9 * 0.05)
    np.testing.assert_allclose(found.spread, [np.sqrt(0.2 * 0.8 / 5), np.sqrt(0.7 * 0.3 / 4)])


def test_labels_drawn_from_the_margins_are_calibrated_and_sharper_ones_are_not():
    margins, labels = drawn(4000)
    right = calibration(margins, labels)
    assert right.error < 2 * right.noise < 0.05
    assert (np.abs(right.observed - right.predicted) < 4 * right.spread).all()
    over = calibration(3 * margins, labels)
    assert over.error > 5 * over.noise
    assert calibration(3 * margins, labels, temperature=3).error == pytest.approx(right.error)


def test_the_noise_is_the_error_of_right_predictions():
    margins = np.random.default_rng(1).normal(0, 2, 300)
    errors = []
    for seed in range(100):
        labels = np.random.default_rng([2, seed]).random(300) < sigmoid(margins)
        errors.append(calibration(margins, labels, draws=0).error)
    assert calibration(margins, labels).noise == pytest.approx(np.mean(errors), rel=0.1)
    assert np.isnan(calibration(margins, labels, draws=0).noise)


def test_with_the_chosen_answer_first_a_constant_looks_calibrated():
    """Why a coin is needed: always sure, always right, and nothing was predicted."""
    assert calibration(np.full(100, 50.0), np.ones(100)).error == pytest.approx(0, abs=1e-12)
    sides = coin_sides(100)
    assert calibration(sides * 50.0, sides > 0).error == pytest.approx(0, abs=1e-12)  # the margins really are right
    assert calibration(np.full(100, 50.0), sides > 0).error > 0.4


def test_the_coin_is_fair_and_comes_from_the_seed():
    sides = coin_sides(10_000)
    assert set(sides) == {-1, 1}
    assert abs(sides.mean()) < 0.04
    assert (coin_sides(50, seed=3) == coin_sides(50, seed=3)).all()
    assert (coin_sides(50, seed=3) != coin_sides(50, seed=4)).any()


def test_certain_margins_fall_into_the_outer_bins_without_overflow():
    found = calibration([-1e9, 1e9, 1e9], [0, 1, 0], bins=10)
    assert found.counts.tolist() == [1, 2]
    assert found.observed.tolist() == [0, 0.5]


def test_the_temperature_is_found_again():
    for sharpness in (0.25, 1.0, 2.0):
        margins, labels = drawn(20_000, sharpness=sharpness)
        temperature = fit_temperature(margins, labels)
        assert temperature == pytest.approx(1 / sharpness, rel=0.06)
        loss = lambda t, m=margins, y=labels: np.logaddexp(0, -np.where(y, m, -m) / t).mean()
        assert loss(temperature) <= min(loss(temperature * 1.01), loss(temperature / 1.01))


def test_shares_of_people_count_as_labels():
    margins = np.random.default_rng(0).normal(0, 2, 500)
    assert calibration(margins, sigmoid(margins)).error == pytest.approx(0, abs=1e-12)
    assert fit_temperature(margins, sigmoid(margins / 2)) == pytest.approx(2, rel=1e-3)


# ── ranks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_rank_correlation_is_scipys(levels):
    generator = np.random.default_rng(0)
    first = generator.integers(0, levels, 60)
    second = first + generator.integers(0, levels, 60)
    found = rank_correlation(first, second, resamples=200)
    assert found.value == pytest.approx(spearmanr(first, second).statistic)
    assert found.low < found.value < found.high


def test_the_bootstrap_is_that_of_resampled_pairs():
    generator = np.random.default_rng(0)
    first = generator.normal(size=40)
    second = first + generator.normal(size=40)
    found = rank_correlation(first, second, resamples=100, seed=5)
    again = np.random.default_rng(5)
    values = []
    for _ in range(100):
        picked = again.integers(0, 40, 40)
        values.append(spearmanr(first[picked], second[picked]).statistic)
    np.testing.assert_allclose([found.low, found.high], np.quantile(values, [0.025, 0.975]))


def test_the_interval_covers_what_it_should():
    """Nineteen in twenty intervals hold the true correlation of a bivariate normal, ρ_s = 6/π·asin(ρ/2)."""
    truth, hits = 6 / np.pi * np.arcsin(0.35), 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        first = generator.normal(size=80)
        second = 0.7 * first + np.sqrt(1 - 0.7**2) * generator.normal(size=80)
        found = rank_correlation(first, second, resamples=100)
        hits += found.low <= truth <= found.high
    assert hits / 60 > 0.85  # three standard deviations below 0.95


def test_a_constant_ranks_nothing():
    found = rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert np.isnan(found.value)
    assert np.isnan(found.low)


def test_the_partial_correlation_is_that_of_residuals():
    generator = np.random.default_rng(0)
    length = generator.normal(size=300)
    first, second = length + generator.normal(size=300), length + generator.normal(size=300)
    ranks = [np.argsort(np.argsort(values)) for values in (first, second, length)]
    left = [rank - np.polyval(np.polyfit(ranks[2], rank, 1), ranks[2]) for rank in ranks[:2]]
    found = partial_rank_correlation(first, second, length)
    assert found == pytest.approx(np.corrcoef(*left)[0, 1])
    assert abs(found) < 0.15 < rank_correlation(first, second).value


def test_rows_per_group_end_with_all():
    margins, true = [1, -1, 2, 0, -3, 1], [1, 1, 3, 1, -2, 2]
    rows = per_group(list("aabbbb"), margins, true, [1, 1, 0, 1, 0, 1], resamples=10)
    assert [row["group"] for row in rows] == ["a", "b", "all"]
    assert [row["pairs"] for row in rows] == [2, 4, 6]
    assert [row["agrees with label"] for row in rows] == pytest.approx([0.5, 2.5 / 4, 3.5 / 6])
    assert [row["agrees with truth"] for row in rows] == pytest.approx([0.5, 3.5 / 4, 4.5 / 6])
    assert rows[1]["rank correlation"].value == pytest.approx(spearmanr(margins[2:], true[2:]).statistic)
    assert agreement([1, 2, 0], [1, -1, 1]) == 0.5


# ── length ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_length_explains():
    generator = np.random.default_rng(0)
    lengths = generator.integers(-20, 21, 400)
    only = length_share(0.3 * lengths, lengths, resamples=20)
    assert (only.r_squared, only.slope, only.rank.value) == pytest.approx((1, 0.3, 1))
    half = 0.3 * lengths + generator.normal(0, 0.3 * lengths.std(), 400)
    share = length_share(half, lengths, resamples=20)
    assert share.r_squared == pytest.approx(np.corrcoef(half, lengths)[0, 1] ** 2)
    assert share.slope == pytest.approx(np.polyfit(lengths, half, 1)[0])
    assert length_share([1.0, 2.0], [3, 3]).r_squared == 0.0
    assert length_share([1.0, 1.0], [3, 4]).r_squared == 0.0
    assert length_matched([0, 1, -1, 2, -5]).tolist() == [True, True, True, False, False]


# ── best of n ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_best_of_n_is_the_mean_over_all_ways_to_draw(tied):
    generator = np.random.default_rng(0)
    scores, worth = generator.normal(size=(3, 5)), generator.normal(size=(3, 5))
    if tied:
        scores = np.round(scores)
    for size in (1, 2, 3, 5):
        values = []
        for row, value in zip(scores, worth, strict=True):
            drawn = []
            for picked in itertools.combinations(range(5), size):
                best = row[list(picked)].max()
                drawn.append(np.mean([value[i] for i in picked if row[i] == best]))
            values.append(np.mean(drawn))
        mean, error = best_of_n(scores, worth, [size])[size]
        # Where scores are tied, chances are shared among all answers with that score, which is the same on average.
        assert mean == pytest.approx(np.mean(values))
        assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))


def test_the_true_reward_picks_best_and_one_answer_is_the_mean():
    generator = np.random.default_rng(0)
    worth = generator.normal(size=(30, 8))
    truth, noise = best_of_n(worth, worth), best_of_n(generator.normal(size=(30, 8)), worth)
    assert truth[1][0] == noise[1][0] == pytest.approx(worth.mean())
    assert truth[8][0] == pytest.approx(worth.max(1).mean())
    assert truth[2][0] < truth[4][0] < truth[8][0]
    with pytest.raises(ValueError, match="best of 9 needs at least 9 answers per prompt, got 8"):
        best_of_n(worth, worth, [9])
    with pytest.raises(ValueError, match=r"must both be \(prompts, answers\)"):
        best_of_n(worth[0], worth[0])


def test_rewards_of_answers_are_those_of_the_evaluation():
    model, reference, data = tiny_llama(), tiny_llama(seed=1), random_pairs(5)
    table = evaluate(model, None, data, reference=reference, beta=0.3).table
    rows = [data.row(i) for i in range(5)]
    found = answer_rewards(model, reference, [r.prompt for r in rows], [r.completions for r in rows], beta=0.3)
    np.testing.assert_allclose(found[:, 0], table["reward_chosen"], atol=1e-5)
    np.testing.assert_allclose(found[:, 1], table["reward_rejected"], atol=1e-5)
    with pytest.raises(ValueError, match="beta must be positive"):
        answer_rewards(model, reference, [[4]], [[[5]]], beta=-1.0)


# ── where the decision falls ─────────────────────────────────────────────────────────────────────────────────────────


def pair_of(chosen, rejected, num_shared=0):
    answer = lambda rewards: SimpleNamespace(rewards=np.array(rewards, float))
    return SimpleNamespace(chosen=answer(chosen), rejected=answer(rejected), num_shared=num_shared)


def test_the_parts_of_a_margin_worked_by_hand():
    parts = margin_parts([
        pair_of([0.5, 2.0, 0.25, 1.0], [0.5, -1.0, 0.5], 1),
        pair_of([0.1], [0.2, 0.3]),
        pair_of([0.5], [0.5, 4.0], 1),  # the chosen answer was cut where the other goes on
    ])  # fmt: skip
    np.testing.assert_allclose(parts["shared"], [0, 0, 0])
    np.testing.assert_allclose(parts["parting"], [3.0, -0.1, -4.0])
    np.testing.assert_allclose(parts["after"], [0.25, 0, 0])
    np.testing.assert_allclose(parts["end"], [0.5, -0.3, 0])


def test_parts_and_positions_add_up_to_the_margins():
    pairs = token_rewards(tiny_llama(), tiny_tokenizer(), random_pairs(12, vocab_size=31), reference=tiny_llama(seed=1))
    margins = np.array([pair.margin for pair in pairs])
    np.testing.assert_allclose(sum(margin_parts(pairs).values()), margins, atol=1e-9)
    assert np.abs(margin_parts(pairs)["shared"]).max() < 1e-5
    for bins in (1, 10):
        assert margin_by_position(pairs, bins).sum() == pytest.approx(margins.mean())
    with pytest.raises(ValueError, match="no pairs to look at"):
        margin_by_position([])


def test_positions_are_relative_to_each_answer():
    found = margin_by_position([pair_of([1, 2], [4, 5, 6, 7])], bins=2)
    np.testing.assert_allclose(found, [1 - 9, 2 - 13])


def test_the_tokens_that_carry_half():
    assert tokens_for_half([0.1, -5.0, 0.2]) == 1
    assert tokens_for_half([1, 1, 1, 1.001]) == 2
    assert tokens_for_half([1, 1, 1]) == 2


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: calibration([1.0], [2]), "labels must be True where the first answer is preferred"),
        (lambda: calibration([1.0, 2.0], [1]), "one value per pair, got shapes"),
        (lambda: calibration([], []), "empty"),
        (lambda: calibration([np.nan], [1]), "margins holds 1 values that are no finite numbers"),
        (lambda: calibration([1.0], [1], bins=0), "bins must be at least 1, got 0"),
        (lambda: calibration([1.0], [1], temperature=0), "temperature must be positive and finite, got 0"),
        (lambda: fit_temperature([1.0], [-0.5]), "labels must be True"),
        (lambda: rank_correlation([1, 2], [1, 2], level=95), "level must lie between 0 and 1, got 95"),
        (lambda: per_group(["a"], [1.0, 2.0], [1.0, 2.0], [1, 0]), "every pair needs its group, got 1"),
    ],
)  # fmt: skip
def test_mistakes_are_told(act, message):
    with pytest.raises(ValueError, match=message):
        act()
