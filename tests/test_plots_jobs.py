"""Pictures of the four jobs: they draw the numbers that they were given, and refuse what they can't."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots.jobs import (
    plot_refusals,
    plot_shares,
    plot_transfer,
)
from dpo_lab.workbench.plots import to_png

SHARES = {
    "base": {"safety": (0.5, 0.4, 0.6, 100), "$tools$": (0.4, 0.3, 0.5, 90)},
    "DPO": {"safety": (0.9, 0.8, 0.95, 100), "$tools$": (0.8, 0.7, 0.9, 95), "none": (float("nan"), 0.0, 1.0, 0)},
}
JOBS = ["safety", "tools"]
CHANGES = np.array([[[0.4, 0.3, 0.5], [-0.1, -0.2, -0.05]], [[0.004, -0.1, 0.1], [0.35, 0.2, 0.45]]])


def drawn(ax, marker):
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines
            if line.get_marker() == marker and len(line.get_xdata())]  # fmt: skip


def test_every_share_is_a_marker_and_a_line_from_low_to_high():
    ax = plot_shares(SHARES, seeds={"DPO": {"safety": [0.88, 0.9, 0.92]}})
    assert [x for x, _ in drawn(ax, "o")] == [0.5, 0.4]
    assert [x for x, _ in drawn(ax, "s")] == [0.9, 0.8]  # of no answers there is nothing to draw
    ends = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert ends == [(0.4, 0.6), (0.3, 0.5), (0.8, 0.95), (0.7, 0.9)]
    assert [tuple(line.get_xdata()) for line in ax.lines if line.get_marker() == "."] == [(0.88, 0.9, 0.92)]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "safety  (100)", r"\$tools\$  (90–95)", "none  (0)"
    ]  # fmt: skip
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["base", "DPO"]
    to_png(ax.figure)


def test_one_policy_needs_no_legend_and_none_is_refused():
    assert plot_shares({"base": SHARES["base"]}).get_legend() is None
    with pytest.raises(ValueError, match="no shares to draw"):
        plot_shares({"base": {}})


def test_a_cell_tells_its_change_and_is_pale_where_it_says_nothing():
    ax = plot_transfer(JOBS, JOBS, CHANGES, [0.5, 0.4])
    texts = [text.get_text() for text in ax.texts]
    assert texts[:4] == ["+40", "+30 to +50", "−10", "−20 to −5"]
    assert texts[4:6] == ["0", "−10 to +10"]
    pixels = np.asarray(ax.images[0].get_array())
    assert pixels[0, 0, 2] > pixels[0, 0, 0]  # up: more blue than red
    assert pixels[0, 1, 0] > pixels[0, 1, 2]  # down: more red
    assert pixels[1, 0, :3].min() > 0.9
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["safety\n(50%)", "tools\n(40%)"]
    to_png(ax.figure)


def test_a_transfer_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 3\).*got \(2, 2\) and 2"):
        plot_transfer(JOBS, JOBS, CHANGES[..., 0], [0.5, 0.4])


def test_refusals_have_over_refusals_to_the_right():
    rates = {"base": ((0.6, 0.5, 0.7, 50), (0.2, 0.1, 0.3, 50)), "DPO": ((0.95, 0.9, 1.0, 50), (0.0, 0.0, 0.1, 50))}
    ax = plot_refusals(rates)
    assert drawn(ax, "o") == [(0.2, 0.6)]
    assert drawn(ax, "s") == [(0.0, 0.95)]
    to_png(ax.figure)
    with pytest.raises(ValueError, match="no rates"):
        plot_refusals({})
