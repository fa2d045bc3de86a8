"""Differences between methods that shared their seeds: numbers worked by hand, known quantiles, and chance itself."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from dpo_lab.course.statistics import differences_from, student_quantile


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    # From printed tables of Student's t.
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 30, 2.042), (0.95, 10, 1.812), (0.995, 5, 4.032), (0.5, 7, 0.0)],
)
def test_quantiles_of_student_are_those_of_printed_tables(probability, degrees, expected):
    assert student_quantile(probability, degrees) == pytest.approx(expected, abs=6e-4)


def test_with_many_degrees_of_freedom_it_is_the_normal_one():
    assert student_quantile(0.999, 20_000) == pytest.approx(NormalDist().inv_cdf(0.999), abs=1e-3)


def test_a_table_worked_by_hand():
    # Means 2, 4, 3; seeds' means 2, 3, 4; all 3. What is left: a (0, 0, 0) − …
    # a = (1, 2, 3) − 2 − (−1, 0, 1) = (0, 0, 0); b = (2, 5, 5) − 4 − (−1, 0, 1) = (−1, 1, 0);
    # c = (3, 2, 4) − 3 − (−1, 0, 1) = (1, −1, 0). Sum of squares 4, degrees 4, so the variance is 1.
    found = differences_from({"a": [1, 2, 3], "b": [2, 5, 5], "c": [3, 2, 4]}, "a")
    assert list(found) == ["b", "c"]
    assert found["b"].value == pytest.approx(2)
    assert found["c"].value == pytest.approx(1)
    error = np.sqrt(2 / 3)
    assert found["b"].half_width == pytest.approx(2.776 * error, abs=1e-3)  # t(0.975, 4)
    assert found["b"].wide_half_width == pytest.approx(3.495 * error, abs=2e-3)  # t(0.9875, 4)
    assert not found["b"].is_clear


def test_what_a_seed_does_to_all_methods_alike_falls_out():
    rng = np.random.default_rng(0)
    table = {name: rng.normal(0, 1, 4) for name in "abcde"}
    luck = np.array([100.0, -50.0, 3.0, 0.0])
    plain, shifted = (
        differences_from(values, "a") for values in (table, {name: row + luck for name, row in table.items()})
    )
    for name in "bcde":
        np.testing.assert_allclose(shifted[name], plain[name], atol=1e-9)


def test_of_equal_methods_one_interval_in_twenty_misses_and_hardly_a_wide_one():
    rng = np.random.default_rng(1)
    missed, clear = [], []
    for _ in range(400):
        found = differences_from(dict(zip("abcdefg", rng.normal(0, 1, (7, 3)), strict=True)), "a")
        missed += [abs(one.value) > one.half_width for one in found.values()]
        clear.append(any(one.is_clear for one in found.values()))
    assert 0.03 < np.mean(missed) < 0.07
    assert np.mean(clear) < 0.07


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"b": [1, 2]}, "baseline 'a'"),
        ({"a": [1, 2]}, "at least one method"),
        ({"a": [1, 2], "b": [1]}, "same seeds"),
        ({"a": [1], "b": [1]}, "at least 2"),
        ({"a": [1, 2], "b": [1, float("nan")]}, "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(values, told):
    with pytest.raises(ValueError, match=told):
        differences_from(values, "a")


def test_a_quantile_of_a_certain_event_is_refused():
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\)"):
        student_quantile(1.0, 5)
    assert student_quantile(0.1, 5) == pytest.approx(-student_quantile(0.9, 5))
