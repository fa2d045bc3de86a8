"""Pictures of failures: they draw what they were given, once, and refuse what they can't."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots.failures import (
    conditions_figure,
    plot_levels,
    plot_mass,
    recorded_grid,
    runs_grid,
    turn_figure,
)
from dpo_lab.workbench.plots import to_png


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_mass_is_stacked_to_the_top():
    shares = {"chosen": [0.2, 0.1, 0.0], "rejected": [0.3, 0.1, 0.0], "$else$": [0.5, 0.8, 1.0]}
    ax = plot_mass([0, 10, 20], shares)
    areas = [np.asarray(area.get_paths()[0].vertices) for area in ax.collections]
    assert len(areas) == 3
    assert areas[0][:, 1].min() == 0
    assert areas[-1][:, 1].max() == pytest.approx(1)
    assert areas[1][:, 1].max() == pytest.approx(0.5)
    assert labels(ax) == ["chosen", "rejected", r"\$else\$"]
    to_png(ax.figure)


def test_the_turn_is_marked_where_the_reward_is_highest_and_each_loss_lowest():
    steps, rewards = np.arange(5) * 10, [0.0, 1.0, 2.0, 1.5, 1.0]
    figure = turn_figure(steps, rewards, {"training": [0.7, 0.6, 0.5, 0.4, 0.3], "held out": [0.7, 0.6, 0.65, 0.8, 1]},
                         level=("start", 0.0), title="A run")  # fmt: skip
    top, bottom = figure.axes
    marks = lambda ax: [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines
                        if len(line.get_xdata()) == 1]  # fmt: skip
    assert marks(top) == [(20, 2.0)]
    assert marks(bottom) == [(40, 0.3), (10, 0.6)]
    assert labels(bottom) == ["training", "held out"]
    to_png(figure)


def test_levels_draw_means_and_deviations():
    curves = {"dpo": {0.0: [1.0, 3.0], 0.2: [0.0, 0.0]}, "robust": {0.2: [1.5]}}
    ax = plot_levels(curves, "share of labels flipped", "reward", level=("base", 0.5), is_share=True)
    lines = {container.get_label(): container.lines[0] for container in ax.containers}
    np.testing.assert_allclose(lines["dpo"].get_ydata(), [2.0, 0.0])
    np.testing.assert_allclose(lines["dpo"].get_xdata(), [0.0, 0.2], atol=0.03)
    bars = ax.containers[0].lines[2][0].get_segments()
    assert bars[0][1][1] - bars[0][0][1] == pytest.approx(2 * np.sqrt(2))
    assert set(labels(ax)) == {"dpo", "robust", "base"}
    to_png(ax.figure)


def test_conditions_draw_a_panel_per_measure_and_a_line_per_condition():
    conditions = {"sound": {"reward": [1.0, 2.0], "words": [5.0, 6.0]}, "broken": {"reward": [0.0], "words": [9.0]}}
    figure = conditions_figure(conditions, {"reward": "true reward", "words": "words"}, highlight=["broken"], title="T")
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["sound", "broken"]
    means = [container.lines[0].get_xdata()[0] for container in left.containers]
    assert means == [1.5, 0.0]
    assert right.get_xlabel() == "words"
    to_png(figure)


def test_a_grid_draws_both_sides_of_every_run():
    run = {"loss": [0.7, 0.5], "held-out loss": [0.7, 0.6], "accuracy": [0.5, 0.8], "held-out accuracy": [0.5, 0.7]}
    figure = runs_grid({"A": run, "B": run})
    assert len(figure.axes) == 4
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["A", "B"]
    drawn = [line.get_ydata() for line in figure.axes[2].lines]
    assert any(list(values) == [0.5, 0.8] for values in drawn)
    to_png(figure)


def test_a_recorded_run_is_drawn_with_what_was_seen_on_the_way():
    run = {"losses": [0.7, 0.6, 0.4, 0.5], "accuracies": [0.5, 0.6, 0.9, 0.8], "steps": [0, 2, 4],
           "heldout_loss": [0.69, 0.6, 0.62], "heldout_accuracy": [0.5, 0.7, 0.7], "kl": [0.0, 1.0, 50.0]}  # fmt: skip
    figure = recorded_grid({"A": run, "B": run}, {"kl": "KL (nats)"})
    assert len(figure.axes) == 6
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["A", "B"]
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [0.7, 0.6, 0.4, 0.5] in drawn
    assert [0.69, 0.6, 0.62] in drawn
    assert list(figure.axes[4].lines[0].get_ydata()) == [0.0, 1.0, 50.0]
    to_png(figure)


def test_four_measures_stand_in_two_rows():
    row = {name: [1.0, 2.0] for name in "abcd"}
    figure = conditions_figure({"one": row, "two": row}, {name: name for name in "abcd"})
    width, height = figure.get_size_inches()
    assert width < 3 * height  # no strip


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: plot_mass([0, 1], {"a": [0.5, 0.5]}), "sum to 1"),
        (lambda: plot_mass([0, 1], {str(i): [1 / 8, 1 / 8] for i in range(8)}), "told apart"),
        (lambda: plot_mass([0], {"a": [1.0]}), "at least two"),
        (lambda: turn_figure([0, 1], [0.0, np.nan], {"a": [1, 1]}), "finite"),
        (lambda: turn_figure([0, 1], [0.0, 1.0], {"a": [1, 1, 1]}), "as many"),
        (lambda: plot_levels({"dpo": {0.1: []}}, "x", "y"), "at least one value"),
        (lambda: conditions_figure({"a": {"reward": []}}, {"reward": "r"}), "every condition needs"),
        (lambda: conditions_figure({}, {"reward": "r"}), "every condition needs"),
        (lambda: runs_grid({"A": {"loss": [1.0]}}), "needs loss"),
        (lambda: recorded_grid({"A": {"losses": [1.0]}}, {"kl": "KL"}), "missing .*'heldout_loss'.*'kl'"),
    ],
)
def test_mistakes_are_told(act, message):
    with pytest.raises(ValueError, match=message):
        act()
