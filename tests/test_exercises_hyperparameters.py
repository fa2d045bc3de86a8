"""The checks of the exercises on hyperparameters: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_lab.course.exercises import NotYet, check_honest_choice, check_log_uniform, check_seeds_needed


def test_an_honest_choice(capsys):
    def choose(validation, test):
        best = validation.mean(1).argmax()
        return best, test[best].mean()

    check_honest_choice(choose)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda v, t: (t.mean(1).argmax(), t.mean(1).max()), "planted bug"),
        (lambda v, t: (v.max(1).argmax(), v.max()), "one lucky seed"),
        (lambda v, t: (v.mean(1).argmax(), v.mean(1).max()), "the choice was made by"),
        (lambda v, t: (v.mean(1).argmax(), v.max()), "luckiest seed"),
        (lambda v, t: (v.mean(1).argmax(), t[v.mean(1).argmax()].max()), "a seed is not a knob"),
        (lambda v, t: (v.mean(1).argmax(), t.max()), "did not choose"),
        (lambda v, t: (v.mean(1).argmax(), 0.5), "had no part"),
        (lambda v, t: (v.mean(1).argsort()[-2], 0.5), "best mean"),
        (lambda v, t: (7, 0.5), "row number"),
        (lambda v, t: v.mean(), "return two things"),
        (lambda v, t: None, "returned nothing"),
    ],
)
def test_a_dishonest_choice_is_told(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_honest_choice(wrong)


def test_a_log_uniform_sample(capsys):
    check_log_uniform(lambda num, low, high, rng: np.exp(rng.uniform(np.log(low), np.log(high), num)))
    check_log_uniform(lambda num, low, high, rng: low * (high / low) ** rng.random(num))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda n, low, high, rng: rng.uniform(low, high, n), "planted bug"),
        (lambda n, low, high, rng: np.exp(rng.uniform(low, high, n)), "take their logarithms first"),
        (lambda n, low, high, rng: rng.uniform(np.log(low), np.log(high), n), "logarithms still"),
        (lambda n, low, high, rng: 10 ** rng.uniform(np.log(low), np.log(high), n), "same"),
        (lambda n, low, high, rng: np.full(n, math.sqrt(low * high)), "only 1 differ"),
        (lambda n, low, high, rng: low * (high / low) ** rng.random(n) ** 2, "log scale half"),
        (lambda n, low, high, rng: low * (high / low) ** rng.beta(3, 3, n), "bent"),
        (lambda n, low, high, rng: rng.uniform(low, high), "shape"),
    ],
)
def test_other_samples_are_told(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_log_uniform(wrong)


def test_enough_seeds(capsys):
    check_seeds_needed(lambda spread, effect: math.ceil(8 * (spread / effect) ** 2))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda s, e: math.ceil(4 * (s / e) ** 2), "variances of a difference add up"),
        (lambda s, e: math.ceil(2 * (s / e) ** 2), "as large as one standard error"),
        (lambda s, e: math.ceil(2 * math.sqrt(2) * s / e), "solve for n"),
        (lambda s, e: math.ceil(16 * (s / e) ** 2), "together"),
        (lambda s, e: 8 * (s / e) ** 2, "which way must you round"),
        (lambda s, e: 100, "difference of two means"),
    ],
)
def test_too_few_seeds_are_told(wrong, told):
    with pytest.raises(NotYet, match=told):
        check_seeds_needed(wrong)


def test_the_right_number_of_seeds_does_what_is_asked():
    """Twice the standard error of the difference, by simulation: the effect is found in about half of the draws at
    1.96 standard errors, whatever the spread."""
    rng = np.random.default_rng(0)
    for spread, effect in ((0.02, 0.01), (0.03, 0.02)):
        num = math.ceil(8 * (spread / effect) ** 2)
        means = rng.normal(0, spread, (2, 20_000, num)).mean(2)
        assert 2 * (means[0] - means[1]).std() == pytest.approx(effect, rel=0.06)
