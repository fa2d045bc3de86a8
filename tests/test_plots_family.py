"""Pictures of the family draw what they were given, and refuse what does not belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab.course.loss_curves import loss_curve
from dpo_lab.course.plots.family import (
    describe_member,
    family_figure,
    fields_figure,
    member_figure,
    paths_figure,
    plot_members,
    pulls_figure,
    results_figure,
)
from dpo_lab.losses import LOSSES
from dpo_lab.workbench.plots import to_png

GAPS = torch.linspace(-20, 20, 81)
CURVES = {name: loss_curve(LOSSES[name].bind(), GAPS) for name in ("dpo", "cdpo", "hinge", "nca_pair", "rpo", "ipo",
                                                                     "apo_down")}  # fmt: skip


def test_each_member_has_a_panel_with_its_curve_and_its_rest():
    figure = family_figure(CURVES, {"hinge": 10.0, "dpo": float("inf")})
    used = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in used] == list(CURVES)
    for ax, curve in zip(used, CURVES.values(), strict=True):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), curve.values)
    marked = {ax.get_title(loc="left"): [line for line in ax.lines if line.get_marker() == "o"] for ax in used}
    assert [name for name, lines in marked.items() if lines] == ["hinge"]
    assert marked["hinge"][0].get_xdata()[0] == 10.0
    to_png(figure)


def test_pulls_are_drawn_up_for_chosen_and_down_for_rejected():
    figure = pulls_figure(CURVES)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["chosen, upwards"].get_ydata(), CURVES["dpo"].chosen_pull)
    np.testing.assert_allclose(lines["rejected, downwards"].get_ydata(), -CURVES["dpo"].rejected_pull)
    to_png(figure)


def test_members_over_one_axis():
    ax = plot_members([0, 1, 2], {"$a$": [0, 1, 4], "b": [0, -1, -2]}, title="Two", ylabel="loss", limits=(-3, 5))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [r"\$a\$", "b"]
    assert ax.get_ylim() == (-3, 5)
    to_png(ax.figure)


def test_the_tangent_of_a_member_has_the_slope_of_its_pulls():
    figure = member_figure("dpo", CURVES["dpo"], 0.0)
    tangent = figure.axes[0].lines[1]
    (x0, x1), (y0, y1) = tangent.get_xdata(), tangent.get_ydata()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(-0.25)  # β/2 for β = 0.5
    assert "0.693 at h = 0.0" in describe_member("dpo", CURVES["dpo"], 0.0)
    to_png(figure)


def test_fields_point_where_they_are_told():
    a, b = np.meshgrid([-1.0, 1.0], [-1.0, 1.0], indexing="ij")
    figure = fields_figure({"up": (a, b, np.ones_like(a), np.zeros_like(a))}, {"up": (0.5, -0.5)})
    (arrows,) = figure.axes[0].collections
    assert (arrows.U > 0).all()
    assert np.allclose(arrows.V, 0)
    to_png(figure)


def test_paths_and_results():
    paths = {"clean": {"dpo": ([0, 1], [1, 2])}, "noisy": {"dpo": ([0, 2], [1, 3])}}
    figure = paths_figure(paths, ([0, 1, 2], [1, 2, 2.5]))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["clean", "noisy"]
    assert figure.axes[0].get_xlim()[1] == pytest.approx(2.08)
    to_png(figure)
    results = {"clean": {"dpo": (1.0, 0.5, 1.5), "ipo": (2.0, 1.5, 2.5)},
               "noisy": {"dpo": (0.5, 0.0, 1.0), "ipo": (0.2, 0.1, 0.3)}}  # fmt: skip
    figure = results_figure(results, "true reward", baseline="dpo", levels={"base": 0.3})
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["dpo", "ipo"]
    assert figure.axes[1].lines[0].get_xdata()[0] == 0.5
    to_png(figure)
    with pytest.raises(ValueError, match="same members"):
        results_figure({"clean": {"dpo": (0, 0, 0)}, "noisy": {"ipo": (0, 0, 0)}}, "x")
