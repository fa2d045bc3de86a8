"""Pictures of how good an implicit reward is: they draw what they were given, once, and refuse what they can't."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from dpo_lab.course.plots.reward_quality import (
    plot_best_of_n,
    plot_calibration,
    plot_decision,
    plot_groups,
    plot_length,
    plot_rewards,
)
from dpo_lab.course.plots.ridge import density, plot_ridge
from dpo_lab.workbench.evaluation import best_of_n, calibration, per_group, sigmoid
from dpo_lab.workbench.plots import to_png

RNG = np.random.default_rng(0)
MARGINS = RNG.normal(0, 2, 60)
TRUE = MARGINS + RNG.normal(0, 1, 60)
LABELS = RNG.random(60) < sigmoid(MARGINS)
JOBS = ["safety", "$x^2$", "_hidden", "<b>tools</b>"] * 15


def points(ax):
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)])


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_every_pair_is_one_point_with_true_to_the_right():
    ax = plot_rewards(MARGINS, TRUE, JOBS)
    found = points(ax)
    assert {tuple(point) for point in found} == set(zip(TRUE, MARGINS, strict=True))
    assert len(found) == 60
    assert labels(ax) == ["safety: 15", r"\$x^2\$: 15", " _hidden: 15", "<b>tools</b>: 15"]
    to_png(ax.figure)
    assert plot_rewards([1.0], [2.0]).get_legend() is None


def test_the_calibration_is_drawn_bin_by_bin():
    curve = calibration(MARGINS, LABELS)
    ax = plot_calibration({"as trained": curve, "$T$": calibration(MARGINS, LABELS, temperature=2)})
    found = points(ax)[: len(curve.counts)]
    np.testing.assert_allclose(found, np.column_stack([curve.predicted, curve.observed]))
    assert f"as trained: error {curve.error:.3f}" in labels(ax)
    to_png(ax.figure)


def test_whiskers_stay_between_0_and_1():
    sure = calibration([9.0, 9.0, -9.0, -9.0], [1, 1, 0, 1])
    ax = plot_calibration({"sure": sure})
    ends = np.concatenate([np.asarray(s) for c in ax.collections if hasattr(c, "get_segments")
                           for s in c.get_segments()])  # fmt: skip
    assert ends.min() >= -1e-9
    assert ends[:, 1].max() <= 1 + 1e-9


def test_length_draws_its_line_and_its_matched_pairs():
    lengths = np.tile([-5, -1, 0, 1, 5, 9], 10)
    ax = plot_length(lengths, 0.5 * lengths + 1, within=1)
    line = next(line for line in ax.lines if "R²" in str(line.get_label()))
    np.testing.assert_allclose(line.get_ydata(), [-1.5, 5.5])
    assert "line: R² 1.00" in labels(ax)
    assert "at most 1 apart: 30" in labels(ax)
    assert not [line for line in plot_length([2, 2], [1, 3]).lines if "R²" in str(line.get_label())]


def test_groups_draw_their_intervals():
    rows = per_group(JOBS, MARGINS, TRUE, LABELS, resamples=50)
    ax = plot_groups(rows)
    drawn = [line.get_xdata() for line in ax.lines]
    assert len(drawn) == 2 * 5
    np.testing.assert_allclose(drawn[0], rows[0]["rank correlation"][1:])
    np.testing.assert_allclose(drawn[-1], [rows[-1]["rank correlation"].value])
    to_png(ax.figure)


def test_best_of_n_draws_each_way_of_picking():
    worth = RNG.normal(size=(10, 8))
    curves = {"judge": best_of_n(worth, worth), "$chance$": best_of_n(RNG.normal(size=(10, 8)), worth)}
    ax = plot_best_of_n(curves, level=("policy", 0.7))
    line = next(line for line in ax.lines if line.get_label() == "judge")
    assert list(line.get_xdata()) == [1, 2, 4, 8]
    np.testing.assert_allclose(line.get_ydata(), [mean for mean, _ in curves["judge"].values()])
    assert labels(ax) == ["judge", r"\$chance\$", "policy"]
    to_png(ax.figure)


def test_the_decision_is_a_bar_per_part():
    ax = plot_decision([0.1, -0.2, 0.5])
    assert [bar.get_height() for bar in ax.patches] == [0.1, -0.2, 0.5]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()


# ── ridges ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_density_adds_up_to_one_and_is_where_the_values_are():
    grid = np.linspace(-10, 10, 2001)
    values = RNG.normal(1, 1, 500)
    curve = density(values, grid)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert grid[curve.argmax()] == pytest.approx(1, abs=0.5)
    assert np.isfinite(density(np.zeros(5), grid)).all()


def test_ridges_say_how_many_pairs_are_wrong():
    margins = [np.zeros(8), np.array([-1.0, 1, 1, 1]), np.array([2.0, 3, 4, -1, 5])]
    ax = plot_ridge([0, 10, 20], margins)
    assert [text.get_text() for text in ax.texts] == ["50 % wrong", "25 % wrong", "20 % wrong"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0", "10", "20"]
    to_png(ax.figure)


def test_no_ridge_is_cut_and_no_density_is_drawn_where_no_pair_has_moved():
    ax = plot_ridge([0, 10, 20], [np.zeros(8), RNG.normal(0.3, 0.1, 40), RNG.normal(1, 1, 40)])
    heights = [np.ptp(line.get_ydata()) for line in ax.lines[:3]]
    assert heights[0] == 0
    assert (ax.lines[1].get_ydata() == ax.lines[1].get_ydata().max()).sum() == 1
    assert heights[1] > heights[2] > 0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: plot_rewards([1.0], [1.0, 2.0]), "same length"),
        (lambda: plot_rewards([], []), "nothing to draw"),
        (lambda: plot_rewards([np.nan], [1.0]), "must be finite"),
        (lambda: plot_rewards([1.0], [1.0], ["a", "b"]), "every pair needs its group, got 2 groups and 1 pairs"),
        (lambda: plot_calibration({}), "no calibration to draw"),
        (lambda: plot_groups([]), "no groups to draw"),
        (lambda: plot_best_of_n({}), "no curve to draw"),
        (lambda: plot_ridge([1], []), "every step needs its margins, got 1 steps and 0"),
        (lambda: plot_ridge([1], [[np.nan]]), "margins of step 1 must be one finite number per pair"),
    ],
)
def test_mistakes_are_told(act, message):
    with pytest.raises(ValueError, match=message):
        act()
