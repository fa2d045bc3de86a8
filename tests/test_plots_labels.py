"""Pictures of labels: what stands in them, and that texts from outside stay texts."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.text import Text

from dpo_lab.course.plots.labels import (
    plot_agreement,
    plot_kappa,
    plot_labels_needed,
    plot_win_rates,
    question_figure,
)
from dpo_lab.workbench.plots import to_png


def words(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_question_shows_both_answers_and_no_source():
    told = words(question_figure("Why?", "So.", "$x^2$ <b>\x00", progress="3 of 9 done"))
    assert {"Prompt", "Why?", "Left", "So.", "Right", "$x^2$ <b>[U+0000]", "3 of 9 done"} <= set(told)


def test_long_and_empty_texts_can_be_drawn():
    figure = question_figure("x " * 5000, "", "y" * 10_000 + "\n\n日本")
    assert any("more lines" in text for text in words(figure))
    assert figure.get_figheight() < 8
    assert to_png(figure, dpi=40)


def test_win_rates_stand_at_their_shares():
    ax = plot_win_rates({"after": (0.6, 0.5, 0.7), "before": (0.4, 0.3, 0.5)})
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["after", "before"]
    assert {"60%", "40%"} <= set(words(ax.figure))
    with pytest.raises(ValueError, match="low <= share"):
        plot_win_rates({"after": (0.6, 0.7, 0.8)})
    with pytest.raises(ValueError, match="no rate"):
        plot_win_rates({})


def test_agreement_writes_every_count():
    ax = plot_agreement([[5, 1], [2, 7]], ["left", "right"], ("ann", "ben"))
    assert [text.get_text() for text in ax.texts] == ["5", "1", "2", "7"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("ben prefers", "ann prefers")
    with pytest.raises(ValueError, match="3 by 3"):
        plot_agreement([[5, 1], [2, 7]], ["a", "b", "tie"], ("ann", "ben"))


def test_kappa_and_labels_needed_draw_what_they_are_given():
    rates = np.array([0.0, 0.1, 0.3])
    ax = plot_kappa(rates, {"books": ([1.0, 0.6, 0.2], [0, 0.1, 0.1])}, lambda e: (1 - 2 * e) ** 2)
    assert ax.lines[0].get_ydata()[[0, -1]] == pytest.approx([1, 0.16])
    ax = plot_labels_needed([10, 20], {"ann": ([1, 2], [0.1, 0.1])}, title="t", ylabel="reward", start=0.5)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "20"]
    assert to_png(ax.figure, dpi=40)
