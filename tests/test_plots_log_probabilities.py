"""Figures of log-probs and of the cache: what they show is what was given, and what does not fit is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots.cache import describe_verdicts, plot_before_after, plot_drift, plot_verdicts
from dpo_lab.course.plots.log_probabilities import (
    describe_pair_anatomy,
    pair_anatomy,
    plot_shared_row,
    plot_sum_against_mean,
    plot_tokens,
    show_token,
)
from dpo_lab.workbench.plots import to_png

PROMPT, CHOSEN, REJECTED = ["<|a|>", "Why", " $", "\n"], ["Be", "cause", "<|e|>"], ["No", "<|e|>"]


def test_bars_stand_on_completion_tokens_and_are_minus_the_log_probs():
    ax = plot_tokens(PROMPT, CHOSEN, [-0.5, -2.0, -0.25])
    bars = [(round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height()) for bar in ax.containers[0]]
    assert bars == [(4, 0.5), (5, 2.0), (6, 0.25)]
    assert "−2.75 nats over 3 tokens" in ax.get_title(loc="left")
    assert [label.get_text() for label in ax.get_xticklabels()] == [show_token(t) for t in PROMPT + CHOSEN]


def test_a_token_is_made_visible():
    assert [show_token(token) for token in (" is", "\n", "$x")] == ["·is", "↵", r"\$x"]


def test_log_probs_of_other_tokens_are_refused():
    with pytest.raises(ValueError, match=r"shape \(4,\) for 3 tokens"):
        plot_tokens(PROMPT, CHOSEN, np.zeros(4))


def test_both_answers_stand_on_one_scale():
    figure = pair_anatomy(PROMPT, CHOSEN, REJECTED, [-1, -1, -1], [-20, -1])
    one, other = figure.axes
    assert one.get_ylim() == other.get_ylim()
    assert one.get_xlim() == other.get_xlim()
    assert to_png(figure, dpi=40).startswith(b"\x89PNG")
    assert "3 bars and the rejected one 2" in describe_pair_anatomy(PROMPT, CHOSEN, REJECTED)


def test_of_a_long_prompt_only_its_end_is_drawn():
    (one, _), long = pair_anatomy(PROMPT * 3, CHOSEN, REJECTED, [-1, -1, -1], [-20, -1]).axes, PROMPT * 3
    names = [label.get_text() for label in one.get_xticklabels()]
    assert names == ["…", *map(show_token, (*PROMPT, *CHOSEN))]
    assert [round(bar.get_x() + bar.get_width() / 2, 6) for bar in one.containers[0]] == [5, 6, 7]
    assert f"which has {len(long)} tokens" in describe_pair_anatomy(long, CHOSEN, REJECTED)


def test_the_shared_row_shows_the_mask_that_was_given():
    mask = np.tril(np.ones((6, 6), bool))
    mask[4:, 3:4] = False
    (image,) = plot_shared_row(list("abcdef"), 3, 1, mask).get_images()
    picture = np.asarray(image.get_array())
    assert ((picture > 0) == mask).all()
    assert picture[0, 0] == 1
    assert picture[3, 0] == 2
    assert picture[5, 5] == 3
    with pytest.raises(ValueError, match="6 × 6"):
        plot_shared_row(list("abcdef"), 3, 1, mask[:5])


def test_pairs_on_which_sum_and_mean_disagree_are_drawn_apart():
    ax = plot_sum_against_mean([1.0, 2.0, -3.0], [0.1, -0.2, -0.3])
    alike, apart = (np.asarray(points.get_offsets()).tolist() for points in ax.collections[:2])
    assert alike == [[1.0, 0.1], [-3.0, -0.3]]
    assert apart == [[2.0, -0.2]]
    with pytest.raises(ValueError, match="one gap per pair"):
        plot_sum_against_mean([1.0], [1.0, 2.0])


def test_drift_draws_each_run():
    ax = plot_drift({"one": ([0, 1], [0.0, 2.0]), "two": ([0, 1], [0.0, 0.5])})
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[0.0, 2.0], [0.0, 0.5]]
    assert ax.get_ylim()[0] == 0


def test_before_and_after_are_bars_of_what_was_measured():
    figure = plot_before_after({"live": 2.0, "stored": 1.5}, {"model": 400.0, "numbers": 0.0016})
    widths = [[bar.get_width() for bar in ax.patches] for ax in figure.axes]
    assert widths == [[2.0, 1.5], [400.0, 0.0016]]
    texts = [text.get_text().strip() for ax in figure.axes for text in ax.texts]
    assert texts == ["2.00 s", "1.50 s", "400 MB", "0.0016 MB"]
    with pytest.raises(ValueError, match="finite number"):
        plot_before_after({"live": float("nan")}, {"model": 1.0})


def test_verdicts_are_written_into_their_cells():
    verdicts = {"naive": ["found", "stale"], "keyed": ["found", "computed"]}
    ax = plot_verdicts(["nothing", "order"], verdicts)
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "found", (1, 0): "found", (0, 1): "stale", (1, 1): "computed"}
    assert "order → stale" in describe_verdicts(["nothing", "order"], verdicts)
    with pytest.raises(ValueError, match="rotten"):
        plot_verdicts(["nothing"], {"naive": ["rotten"]})
