"""Pictures of a finite world show the numbers they were given, and words describe them."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots import finite_world as plots
from dpo_lab.workbench.plots import to_png

BETAS = np.array([0.1, 1.0, 10.0])
PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
REFERENCE = np.array([0.25, 0.75])
RESPONSES = ("yes", "no $2")


def by_label(ax) -> dict[str, object]:
    return {str(line.get_label()): line for line in ax.get_lines()}


def test_each_response_has_its_line_and_its_mark_at_the_reference():
    ax = plots.plot_optimum_path(BETAS, PROBS, REFERENCE, RESPONSES, marked=1.0)
    lines = by_label(ax)
    np.testing.assert_allclose(lines["yes"].get_ydata(), PROBS[:, 0])
    np.testing.assert_allclose(lines["no \\$2"].get_ydata(), PROBS[:, 1])
    marks = [float(line.get_ydata()[0]) for line in ax.get_lines() if line.get_marker() == "<"]
    assert marks == REFERENCE.tolist()
    np.testing.assert_allclose(ax.get_lines()[-1].get_ydata(), PROBS[1])
    assert ax.get_xscale() == "log"
    assert to_png(ax.figure)[:4] == b"\x89PNG"
    words = plots.describe_optimum_path(BETAS, PROBS, REFERENCE, RESPONSES)
    assert "“yes” 90% at β = 0.1, 30% at β = 10 (reference 25%)" in words


def test_bars_stand_in_the_order_given_and_carry_their_numbers():
    policies = {"π_ref": REFERENCE, "π*": PROBS[0]}
    ax = plots.plot_policies(policies, RESPONSES)
    assert [round(bar.get_width(), 3) for bar in ax.patches] == [0.25, 0.75, 0.9, 0.1]
    assert [text.get_text() for text in ax.texts] == ["25.0", "75.0", "90.0", "10.0"]
    assert ax.yaxis_inverted()  # the first response on top
    assert "“yes” π_ref 25.0%, π* 90.0%" in plots.describe_policies(policies, RESPONSES)


def test_the_frontier_rises_from_left_to_right_and_shades_what_is_out_of_reach():
    kl, rewards = [2.0, 0.0, 1.0], [3.0, 1.0, 2.5]
    ax = plots.plot_frontier(
        kl, rewards, labels={"β = 1": (1.0, 2.5)}, points={"other": (0.5, 1.2)}, path=([0, 1], [1, 2])
    )
    lines = by_label(ax)
    np.testing.assert_allclose(lines["π* at every β"].get_xdata(), [0, 1, 2])
    np.testing.assert_allclose(lines["π* at every β"].get_ydata(), [1, 2.5, 3])
    assert {"other", "DPO in training"} <= set(lines)
    (shade,) = ax.collections
    assert shade.get_paths()[0].get_extents().y1 >= 3.0
    assert "from reward 1.00 at 0.00 nats to 3.00 at 2.00 nats" in plots.describe_frontier(kl, rewards)


def test_the_line_of_shortfalls_has_slope_minus_beta():
    ax = plots.plot_shortfall([1.0, 2.0], [0.5, 0.0], beta=0.5, best=1.0)
    line = ax.get_lines()[0]
    (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(-0.5)
    assert y0 == 1.0


def test_step_zero_has_a_place_on_the_logarithmic_axis():
    distances = {"β = 1": [0.5, 0.1, 0.01], "short": [0.5, 0.2]}
    ax = plots.plot_convergence([0, 1, 2], distances, target=1e-4)
    lines = by_label(ax)
    np.testing.assert_allclose(lines["β = 1"].get_xdata(), [0.5, 1, 2])
    np.testing.assert_allclose(lines["short"].get_ydata(), [0.5, 0.2])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_one_figure_holds_both_and_marks_the_same_beta():
    figure = plots.optimum_figure(BETAS, PROBS, REFERENCE, RESPONSES, kl=[2, 1, 0.5], rewards=[3, 2, 1], at=1)
    left, right = figure.axes
    np.testing.assert_allclose(left.get_lines()[-1].get_ydata(), PROBS[1])
    assert (right.get_lines()[-1].get_xdata()[0], right.get_lines()[-1].get_ydata()[0]) == (1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.plot_optimum_path(BETAS[::-1], PROBS, REFERENCE, RESPONSES), "rising positive numbers"),
        (lambda: plots.plot_optimum_path(BETAS, PROBS[:2], REFERENCE, RESPONSES), r"got \(2, 2\) and \(2,\)"),
        (lambda: plots.plot_policies({"π": [1.0]}, RESPONSES), r"2 probabilities each, .* got \[\(1,\)\]"),
        (lambda: plots.plot_frontier([1.0, np.inf], [1.0, 2.0]), "kl, rewards must be finite numbers"),
        (
            lambda: plots.plot_shortfall([1.0], [1.0, 2.0], beta=1, best=2),
            "divergence, objective must be lists of the same length",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
