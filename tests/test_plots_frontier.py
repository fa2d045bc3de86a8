"""Pictures of the frontier: they draw every setting once, with its spread over seeds, and refuse what they can't."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots.frontier import (
    costs_figure,
    plot_matched,
    plot_methods,
    plot_shortfall,
    settings_of,
    short,
)
from dpo_lab.workbench.plots import to_png


def row(method, knob, seed, kl, reward):
    return {"method": method, "knob": knob, "seed": seed, "kl": kl, "reward": reward}


ROWS = [
    row("base", 0, 0, 0.0, 1.0), row("base", 0, 1, 0.0, 1.2),
    row("dpo", 0.1, 0, 2.0, 3.0), row("dpo", 0.1, 1, 4.0, 4.0),
    row("dpo", 2.0, 0, 0.25, 2.0), row("dpo", 2.0, 1, 0.25, 2.5),
    row("far", 1.0, 0, 90.0, -1.0),
]  # fmt: skip
METHODS = {"dpo": "DPO", "far": "$far$"}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_setting_is_the_mean_and_the_deviation_over_seeds():
    near, far = settings_of(ROWS, "dpo")
    assert (near["knob"], far["knob"]) == (2.0, 0.1)  # in the order of KL
    assert far["kl"] == pytest.approx((3.0, np.sqrt(2)))
    assert far["reward"] == pytest.approx((3.5, np.sqrt(0.5)))
    assert settings_of(ROWS, "far")[0]["kl"] == (90.0, 0.0)
    with pytest.raises(ValueError, match="no row is of the method 'ppo'"):
        settings_of(ROWS, "ppo")


def test_every_road_begins_at_the_reference():
    ax = plot_methods(ROWS, METHODS, frontier=([1.0, 0.1], [5.0, 2.0]), matched=0.5, max_kl=10)
    lines = [line.get_xydata() for line in ax.lines]
    assert any(np.allclose(line, [[0, 1.1], [0.25, 2.25], [3.0, 3.5]]) for line in lines if len(line) == 3)
    assert any(np.allclose(line, [[0.1, 2.0], [1.0, 5.0]]) for line in lines if len(line) == 2)  # sorted
    assert sorted(labels(ax)) == sorted(["best possible (exact)", "DPO", r"\$far\$", "the reference"])
    assert any("KL 90" in text for text in texts(ax))  # what lies beyond is told, not dropped
    assert any("compared at 0.5" in text for text in texts(ax))
    to_png(ax.figure)


def test_without_a_reference_or_a_limit_it_draws_too():
    ax = plot_methods([r for r in ROWS if r["method"] != "base"], {"dpo": "DPO"})
    assert "the reference" not in labels(ax)
    to_png(ax.figure)


def test_differences_have_their_interval_and_their_kl():
    ax = plot_matched({"RLOO": (0.2, 0.1, 0.3), "SFT": (-0.4, -0.9, 0.1), "one": (0.1, np.nan, np.nan)},
                      baseline="DPO", at={"RLOO": 0.5, "SFT": 0.25, "one": 1.0})  # fmt: skip
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["RLOO (KL 0.5)", "SFT (KL 0.25)", "one (KL 1)"]
    assert texts(ax) == ["+0.20", "−0.40", "+0.10"]
    to_png(ax.figure)
    with pytest.raises(ValueError, match="nothing to compare"):
        plot_matched({}, baseline="DPO", at=1.0)


def test_a_cost_that_is_not_known_is_a_dash():
    figure = costs_figure({"DPO": {"a": 0.0, "b": 2.0}, "PPO": {"a": 1_200_000.0}}, {"a": "tokens", "b": "models"})
    first, second = figure.axes
    assert texts(first) == ["0", "1.2M"]
    assert texts(second) == ["2", "–"]
    assert [bar.get_width() for bar in first.patches] == [0.0, 1_200_000.0]
    to_png(figure)
    assert len(costs_figure({"DPO": {"a": 1.0}}, dict.fromkeys("abcde", "x")).axes) == 8
    with pytest.raises(ValueError, match="no costs to draw"):
        costs_figure({}, {})


@pytest.mark.parametrize("limit", [0.3, 2.5, 60.0])
def test_ticks_do_not_crowd(limit):
    ax = plot_methods(ROWS, {"dpo": "DPO"}, max_kl=limit)
    ticks = np.array(ax.get_xticks())
    assert ticks[0] == 0
    assert len(ticks) >= 3
    assert ticks[-1] <= limit
    assert (np.diff(np.sqrt(ticks)) > 0.06 * np.sqrt(limit)).all()


@pytest.mark.parametrize(("value", "told"), [(3.0, "3"), (0.123, "0.123"), (45_300, "45.3k"), (2.5e9, "2.5G")])
def test_numbers_in_few_letters(value, told):
    assert short(value) == told


def test_shortfalls_are_drawn_one_row_a_method():
    ax = plot_shortfall({"DPO": [0.1, 0.3], "$far$": [0.5]})
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["DPO", r"\$far\$"]
    drawn = [list(line.get_xdata()) for line in ax.lines]
    assert [0.1, 0.3] in drawn
    assert [0.5] in drawn
    to_png(ax.figure)
    with pytest.raises(ValueError, match="at least one shortfall"):
        plot_shortfall({"DPO": []})
