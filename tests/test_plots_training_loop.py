"""Pictures of 06: both sides of a pair apart, schedules, gradient norms, and what a pair counts."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from dpo_lab.course.plots.likelihoods import count_moves, plot_moves, plot_sides
from dpo_lab.course.plots.steps import plot_cuts, plot_gradient_norms, plot_schedules

# Four pairs, one of each kind: right and up, right and down, wrong and up, wrong and down.
CHOSEN, REJECTED = [1.0, -1.0, 0.5, -2.0], [-1.0, -2.0, 1.0, -1.0]


def test_every_pair_is_counted_in_one_part():
    counts = count_moves(CHOSEN, REJECTED)
    assert counts == {"right, chosen up": 1, "right, chosen down": 1, "wrong, chosen up": 1, "wrong, chosen down": 1}
    assert count_moves([0.0], [0.0])["wrong, chosen up"] == 1  # a tie is not ranked right, and 0 has not fallen


def test_moves_draw_every_pair_once_and_say_how_many_are_right():
    ax = plot_moves([*CHOSEN, 50.0], [*REJECTED, -60.0], limit=5.0)
    offsets = [np.asarray(part.get_offsets()) for part in ax.collections if isinstance(part, PathCollection)]
    points = np.concatenate(offsets)
    assert len(points) == 5
    assert points.max() == 5.0
    assert points.min() == -5.0
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["ranked right: 3", "ranked wrong: 2"]


def test_sides_draw_both_lines():
    ax = plot_sides([0, 8, 16], [0, -0.1, -0.2], [0, -0.4, -0.9])
    lines = {str(line.get_label()): line.get_ydata() for line in ax.lines}
    assert list(lines["chosen"]) == [0, -0.1, -0.2]
    assert list(lines["rejected"]) == [0, -0.4, -0.9]


@pytest.mark.parametrize("draw", [plot_moves, count_moves])
def test_sides_of_different_length_are_refused(draw):
    with pytest.raises(ValueError, match="same length"):
        draw([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="empty"):
        draw([], [])


def test_schedules_are_shares_of_their_peak_and_begin_at_step_1():
    ax = plot_schedules({"linear": [1e-4, 2e-4, 1e-4]}, num_warmup=1, peak=2e-4)
    line = next(line for line in ax.lines if line.get_label() == "linear")
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == [0.5, 1.0, 0.5]
    with pytest.raises(ValueError, match="peak must be positive, got 0"):
        plot_schedules({"none": [0.0]}, peak=0)


def test_norms_above_the_limit_are_marked():
    ax = plot_gradient_norms([1, 2, 3], [0.5, 3.0, 1.0], limit=1.0)
    marked = next(line for line in ax.lines if line.get_label() == "shortened steps")
    assert list(marked.get_xdata()) == [2]


def test_cuts_draw_a_bar_for_every_pair_and_way():
    ax = plot_cuts({"even": [0.5, 0.5], "uneven": [0.2, 0.8]})
    assert sorted(round(bar.get_height(), 6) for bar in ax.patches) == [0.2, 0.5, 0.5, 0.8]
