"""Pictures of labels: a question of the panel, win rates with their intervals, two labellers side by side, kappa."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.token_text import drawable


def question_figure(prompt: str, left: str, right: str, *, progress: str = "") -> style.Picture:
    """A question as the labelling panel shows it: the prompt, two answers, and no word on where they came from."""
    boxes = [("Prompt", _wrapped(prompt, 104), 0.0, 1.0), ("Left", _wrapped(left, 48), 0.0, 0.49),
             ("Right", _wrapped(right, 48), 0.51, 0.49)]  # fmt: skip
    line = 0.19  # inches
    heights = [line * (len(lines) + 2) for _, lines, _, _ in boxes]
    total = heights[0] + max(heights[1:]) + 0.75
    figure = style.new_figure(8.6, total)
    figure.set_layout_engine("none")  # the boxes are placed by hand
    ax = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    ax.set(xlim=(0, 1), ylim=(total, 0))
    ax.set_axis_off()
    for (title, lines, x, width), height in zip(boxes, [heights[0], *[max(heights[1:])] * 2], strict=True):
        top = 0.08 if title == "Prompt" else heights[0] + 0.2
        ax.text(x, top + 0.08, title, va="center", fontweight="bold", parse_math=False, **style.text(9))
        corner = (x + 0.002, top + 0.2)
        ax.add_patch(Rectangle(corner, width - 0.004, height - 1.3 * line, facecolor="white", edgecolor=style.GREY))
        for i, text in enumerate(lines):
            ax.text(x + 0.012, top + 0.32 + line * i, text, va="center", parse_math=False, **style.text(9))
    keys = "a  left        b  right        t  tie        s  skip        u  undo"
    ax.text(0.0, total - 0.2, keys, va="center", parse_math=False, **style.text(9))
    ax.text(1.0, total - 0.2, progress, va="center", ha="right", parse_math=False, **style.text(9))
    return figure


def plot_win_rates(
    rates: Mapping[str, tuple[float, float, float]], *, title: str = "Win rate, 95% interval", ax: Axes | None = None
) -> Axes:
    """Shares as dots with their intervals: (share, low, high) by name; the line is one half, which decides nothing."""
    if not rates:
        raise ValueError("there is no rate to draw; give shares by name, such as {'after': (0.6, 0.5, 0.7)}")
    ax = ax or style.new_axes(6.4, 1.2 + 0.45 * len(rates))
    at = np.arange(len(rates))[::-1]
    for y, (name, (share, low, high)) in zip(at, rates.items(), strict=True):
        if not 0 <= low <= share <= high <= 1:
            raise ValueError(f"{name!r} must have 0 <= low <= share <= high <= 1, got {(share, low, high)}")
        reach = [[share - low], [high - share]]
        ax.errorbar([share], [y], xerr=reach, fmt="o", color=style.BLUE, markersize=8, capsize=5)
        ax.text(share, y + 0.2, f"{share:.0%}", ha="center", va="bottom", **style.text())
    ax.axvline(0.5, color=style.GREY, linewidth=1)
    style.dress(ax, title, "share of comparisons won (a tie counts as half)", "")
    ax.set_yticks(at, [style.plain(name) for name in rates], fontfamily=style.FONT, fontsize=9)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(rates) - 0.3))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    return ax


def plot_agreement(
    table: Sequence[Sequence[float]], names: Sequence[str], who: tuple[str, str], *, ax: Axes | None = None
) -> Axes:
    """Two labellers' choices as a table of counts; they agree on the diagonal, which is framed."""
    counts = np.asarray(table, np.float64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"the table must be {len(names)} by {len(names)}, one row and column per name, got "
                         f"{counts.shape}")  # fmt: skip
    ax = ax or style.new_axes(4.8, 3.6)
    ax.imshow(counts, cmap="Blues", vmin=0, vmax=max(1.0, 1.25 * float(counts.max())), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        is_dark = count > 0.83 * counts.max()
        ax.text(column, row, f"{count:g}", ha="center", va="center", fontweight="bold" if row == column else "normal",
                **style.text(11, "white" if is_dark else style.INK))  # fmt: skip
        if row == column:
            corner = (column - 0.47, row - 0.47)
            ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=style.INK, linewidth=1.6))
    style.dress(ax, "How often each said what", f"{style.plain(who[1])} prefers", f"{style.plain(who[0])} prefers")
    ax.grid(visible=False)
    ax.set_xticks(range(len(names)), [style.plain(name) for name in names])
    ax.set_yticks(range(len(names)), [style.plain(name) for name in names])
    return ax


def plot_kappa(
    error_rates: Any,
    measured: Mapping[str, tuple[Any, Any]],
    predicted: Callable[[np.ndarray], np.ndarray],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Kappa against the share of labels that are wrong: the prediction as a line, measured values with their errors.

    measured: by name, (values, standard errors), each (N,) at `error_rates` (N,). predicted: error rates → kappas.
    """
    ax = ax or style.new_axes(5.8, 3.6)
    at = np.asarray(error_rates, np.float64)
    line = np.linspace(0, at.max(), 101)
    ax.plot(line, predicted(line), color=style.GREY, linewidth=2, label="predicted")
    for i, (name, (values, errors)) in enumerate(measured.items()):
        ax.errorbar(at, np.asarray(values), yerr=2 * np.asarray(errors), fmt=style.marker(i), color=style.color(i),
                    capsize=4, markersize=7, label=f"{style.plain(name)}, ±2 standard errors")  # fmt: skip
    ax.axhline(0, color=style.INK, linewidth=0.8)
    xlabel = "share of each labeller's choices that are wrong"
    style.dress(ax, "Agreement beyond chance falls fast", xlabel, "Cohen's kappa")
    style.in_percent(ax.xaxis)
    ax.set_ylim(-0.2, 1.08)
    style.add_legend(ax, loc="upper right")
    return ax


def plot_labels_needed(
    counts: Any, series: Mapping[str, tuple[Any, Any]], *, title: str, ylabel: str, start: float, ax: Axes | None = None
) -> Axes:
    """What training on the first n labels gives, n on the horizontal axis; `start` is the model before training.

    series: by name, (values, standard errors), each (N,) at `counts` (N,).
    """
    ax = ax or style.new_axes(5.8, 3.6)
    at = np.asarray(counts, np.float64)
    ax.axhline(start, color=style.GREY, linewidth=1.6, label="before training")
    for i, (name, (values, errors)) in enumerate(series.items()):
        ax.errorbar(at, np.asarray(values), yerr=np.asarray(errors), fmt=style.line(i) + style.marker(i), capsize=4,
                    color=style.color(i), markersize=7, label=f"{style.plain(name)}, ±1 standard error")  # fmt: skip
    style.dress(ax, title, "labels trained on", ylabel)
    ax.set_xticks(at, [f"{count:g}" for count in at])
    ax.set_xlim(0, 1.08 * float(at.max()))
    style.add_legend(ax, loc="upper left")
    return ax


def _wrapped(text: str, width: int, most: int = 12) -> list[str]:
    """Lines of at most `width` letters that the font can draw; of a long text the first ones, and how many follow."""
    lines = [
        "".join(drawable(letter, style.FONT) for letter in part)
        for line in text.split("\n")
        for part in textwrap.wrap(line, width) or [""]
    ]
    return lines if len(lines) <= most else [*lines[: most - 1], f"… and {len(lines) - most + 1} more lines"]
