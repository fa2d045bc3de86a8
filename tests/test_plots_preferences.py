"""Pictures of preferences and of the loss: their values are the model's and the package's, and words describe them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dpo_lab.course.plots import loss as of_loss
from dpo_lab.course.plots import preferences as of_preferences
from dpo_lab.losses import PairScores, dpo
from dpo_lab.workbench.plots import to_png
from dpo_lab.worlds.comparisons import preference_probs


def labelled(ax, start: str):
    (found,) = [one for one in ax.get_lines() if str(one.get_label()).startswith(start)]
    return found


def texts(figure) -> str:
    legends = [text.get_text() for ax in figure.axes if ax.get_legend() for text in ax.get_legend().get_texts()]
    return " | ".join([*legends, *(text.get_text() for ax in figure.axes for text in ax.texts)])


# ── preferences ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("temperature", "flip"), [(1.0, 0.0), (2.5, 0.0), (1.0, 0.1), (0.3, 0.4)])
def test_win_probabilities_are_those_of_the_finite_world(temperature, flip):
    gaps = torch.linspace(-8, 8, 33).double()
    rewards = torch.stack([gaps, torch.zeros_like(gaps)], -1)
    expected = preference_probs(rewards, temperature=temperature, flip=flip)[:, 0, 1]
    found = of_preferences.win_probability(gaps.numpy(), temperature, flip)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-14)


def test_win_probabilities_survive_any_gap_and_refuse_what_is_none():
    np.testing.assert_allclose(of_preferences.win_probability([-1e5, 0, 1e5]), [0, 0.5, 1])
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        of_preferences.win_probability(1.0, 0.0)
    with pytest.raises(ValueError, match=r"flip must lie in \[0, 0.5\], got 0.7"):
        of_preferences.win_probability(1.0, 1.0, 0.7)


def test_the_curve_marks_the_gap_and_the_crowd_counts_a_hundred():
    figure = of_preferences.bradley_terry_figure(1.0)
    ax = figure.axes[0]
    assert labelled(ax, "gap").get_xydata().tolist() == [[1.0, pytest.approx(1 / (1 + math.exp(-1)))]]
    assert "73 say A" in texts(figure)
    assert "27 say B" in texts(figure)
    assert "without noise" not in texts(figure)
    assert "without noise" in texts(of_preferences.bradley_terry_figure(1.0, 2.0))
    words = of_preferences.describe_bradley_terry(1.0)
    assert "73.1%" in words
    assert "10% flipped" in of_preferences.describe_bradley_terry(1.0, 1.0, 0.1)


@pytest.mark.parametrize("gap", [-6.0, 0.0, 6.0])
def test_one_sided_crowds_can_be_drawn(gap):
    assert to_png(of_preferences.bradley_terry_figure(gap))


def test_fitted_rewards_stand_beside_the_true_ones():
    ax = of_preferences.plot_fitted_rewards([1, 0, -1], [1.2, 0.1, -1.3], [0.1, 0.1, 0.2], ["a", "b$", "c"])
    np.testing.assert_allclose(labelled(ax, "true").get_xdata(), [1, 0, -1])
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose([segment[:, 0] for segment in bars], [[1.0, 1.4], [-0.1, 0.3], [-1.7, -0.9]])
    assert to_png(ax.get_figure())
    with pytest.raises(ValueError, match="one value for each of 2 answers"):
        of_preferences.plot_fitted_rewards([1, 0, -1], [1, 0, -1], [1, 1, 1], ["a", "b"])


def test_errors_stand_on_logarithmic_axes():
    counts = np.array([100, 10_000])
    ax = of_preferences.plot_error_by_count(counts, {"measured": [0.2, 0.021]}, 2 / np.sqrt(counts))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    np.testing.assert_allclose(labelled(ax, "measured").get_ydata(), [0.2, 0.021])
    assert to_png(ax.get_figure())


def test_shares_stand_side_by_side():
    ax = of_preferences.plot_shares(["a", "b"], {"said": [0.67, 0.5], "model": [0.5, 0.25]}, title="shares")
    heights = [bar.get_height() for bars in ax.containers for bar in bars]
    assert heights == [0.67, 0.5, 0.5, 0.25]
    assert [text.get_text() for text in ax.texts] == ["67%", "50%", "50%", "25%"]


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_loss_and_weight_are_the_packages_and_its_gradients(beta):
    h = torch.linspace(-40, 40, 81).double().requires_grad_()
    zero = torch.zeros(81).double()
    losses = dpo(PairScores(h, zero, zero, zero, zero + 1, zero + 1), beta=beta)
    (slope,) = torch.autograd.grad(losses.sum(), h)
    np.testing.assert_allclose(of_loss.loss_at(h.detach().numpy(), beta), losses.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(of_loss.weight_at(h.detach().numpy(), beta), -slope.numpy(), atol=1e-12)


def test_the_tangent_touches_and_has_the_weights_slope():
    ax = of_loss.plot_loss(-8.0, 0.1)
    (x0, y0), (x1, y1) = labelled(ax, "tangent").get_xydata()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(-of_loss.weight_at(-8.0, 0.1))
    assert (y0 + y1) / 2 == pytest.approx(of_loss.loss_at(-8.0, 0.1))


def test_the_loss_is_told_in_words_and_a_senseless_beta_refused():
    words = of_loss.describe_loss(0.0, 0.1)
    assert "the loss is 0.693 and the weight 0.050" in words
    assert to_png(of_loss.loss_figure(-30.0, 0.01))
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="beta must be positive"):
            of_loss.loss_figure(0.0, beta)


def test_courses_carry_their_levels_and_colours():
    ax = of_loss.plot_courses([1, 2, 4], {"a": [0, 1, 2], "b": [2, 1, 0]}, title="t", ylabel="y",
                              levels={"end": 2.0}, is_log=True, colors=("#111111", "#222222"))  # fmt: skip
    assert ax.get_xscale() == "log"
    assert [labelled(ax, name).get_color() for name in "ab"] == ["#111111", "#222222"]
    assert "end" in texts(ax.get_figure())
    assert to_png(ax.get_figure())
