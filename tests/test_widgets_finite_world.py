"""The slider for β: the picture and the words are those of the plain function, and of the closed form."""

from __future__ import annotations

import pytest

from dpo_lab.course.sliders import HIGHEST, LOWEST, describe_optimum, draw_optimum, optimum_widget
from dpo_lab.workbench.plots import to_png
from dpo_lab.worlds.tabular import kitchen_world, kl, log_partition, optimal_logps


def lines_of(picture):
    left, right = picture.axes
    return left.get_lines(), right.get_lines()


@pytest.mark.parametrize("x", [0, 1])
def test_the_marked_points_are_those_of_the_closed_form(x):
    world, beta = kitchen_world(), 0.7
    logps = optimal_logps(world, beta)
    left, right = lines_of(draw_optimum(beta, world.prompts[x]))
    marks = left[-1]  # the black dots on the vertical line
    assert marks.get_xdata() == pytest.approx([beta] * 4)
    assert marks.get_ydata() == pytest.approx(logps[x].exp().tolist(), abs=1e-9)
    point = right[-1]
    expected = float(kl(logps, world.reference_logps)[x]), float(logps[x].exp() @ world.rewards[x])
    assert (point.get_xdata()[0], point.get_ydata()[0]) == pytest.approx(expected)


def test_the_words_tell_the_same_numbers():
    world, beta = kitchen_world(), 2.0
    words = describe_optimum(beta, world.prompts[1])
    logps = optimal_logps(world, beta)
    assert f"KL from the reference {float(kl(logps, world.reference_logps)[1]):.3f} nats" in words
    assert f"log Z = {float(log_partition(world, beta)[1]):.3f}" in words
    for response, p in zip(world.responses[1], logps[1].exp().tolist(), strict=True):
        assert f"“{response}” {p:.1%}" in words


def test_moving_the_slider_redraws_and_tells():
    widget = optimum_widget()
    first, before = widget.image.value, widget.words.value
    assert first == to_png(draw_optimum(0.5))
    widget.controls["beta"].value = 5.0
    assert widget.image.value != first
    assert "β = 5" in widget.words.value
    assert "β = 5" not in before
    widget.controls["prompt"].value = kitchen_world().prompts[1]
    assert "mushroom" in widget.words.value
    widget.controls["prompt"].value = kitchen_world().prompts[0]
    widget.controls["beta"].value = 0.5
    assert widget.image.value == first


def test_the_whole_range_of_the_slider_can_be_drawn():
    widget = optimum_widget()
    beta = widget.controls["beta"]
    assert 10**beta.min == pytest.approx(LOWEST)
    assert 10**beta.max == pytest.approx(HIGHEST)
    # The ends as the browser computes them.
    for value in (10**beta.min, 10**beta.max):
        beta.value = value
        assert f"β = {value:.3g}" in widget.words.value


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"beta must lie in \[0.05, 20\], the range of the picture, got 0.0"):
        draw_optimum(0.0)
    with pytest.raises(ValueError, match=r"prompt must be one of .*boil an egg.*, got 'tea'; None takes the first"):
        draw_optimum(1.0, "tea")
