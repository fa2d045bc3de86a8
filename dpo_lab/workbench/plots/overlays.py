"""One metric of several runs over each other, and the sheet that a training is watched on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.curves import Rows, metric_label, series, smooth, smoothing_window

WATCHED = (
    "loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "true_reward",
)  # fmt: skip
"""What is looked at while a preference training goes on."""


def plot_runs(runs: Mapping[str, Rows], metric: str, *, ax: Axes | None = None) -> Axes:
    """One metric of several runs over each other; `runs` gives each its name.

    Training is a running mean drawn as a line, held-out values are markers; with "eval_" before the metric only
    these, joined. Runs without the metric are left out.
    """
    ax = ax or style.new_axes(5.8, 3.6)
    for i, (name, rows) in enumerate(runs.items()):
        color, line, marker = style.color(i), style.line(i), style.marker(i)
        base = metric.removeprefix("eval_")
        steps, values = series(rows, base) if base == metric else ([], np.array([]))
        held_out = series(rows, f"eval_{base}")
        label = style.plain(name)
        if len(values):
            few: dict[str, Any] = {"marker": marker, "markersize": 7, "fillstyle": "none"} if len(values) <= 2 else {}
            window = smoothing_window(len(values))
            ax.plot(steps, smooth(values, window), line, color=color, linewidth=1.7, label=label, **few)
        if len(held_out[0]):
            line, label = ("", "_") if len(values) else (line, label)  # beside a line, markers alone
            ax.plot(*held_out, color=color, linestyle=line, linewidth=1.7, label=label, marker=marker,
                    markersize=6.5, markeredgecolor="white", markeredgewidth=0.6)  # fmt: skip
    title, unit = metric_label(metric)
    style.dress(ax, title, "optimiser step", unit)
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def runs_figure(
    runs: Mapping[str, Rows], metrics: Sequence[str], *, title: str = "", num_columns: int = 2, width: float = 10.0
) -> style.Picture:
    """Several metrics of several runs on one sheet, with one legend."""
    num_rows = math.ceil(len(metrics) / num_columns)
    key = [
        Line2D([], [], marker=style.marker(i), markeredgecolor="white", **style.look(i, name))
        for i, name in enumerate(runs)
    ]
    figure = style.new_figure(width, 0.6 + 2.6 * num_rows + 0.2 * math.ceil(len(runs) / 3))
    for metric, ax in zip(metrics, style.grid_of(figure, len(metrics), num_columns), strict=True):
        plot_runs(runs, metric, ax=ax)
        if legend := ax.get_legend():
            legend.remove()
    note = "lines: running mean of the training steps; markers: held-out data"
    figure.legend(handles=key, loc="outside upper left", ncols=3, frameon=False, fontsize=9, title=note,
                  title_fontsize=9, alignment="left")  # fmt: skip
    style.add_title(figure, title)
    return figure


def watch_figure(runs: Mapping[str, Rows], *, title: str = "") -> style.Picture:
    """The curves that a preference training is watched by, of one run or of several over each other.

    Loss, margins, accuracy, the rewards of chosen and rejected answers, and true reward: six panels, those without
    a measurement say so. `runs` gives each run's rows of metrics.jsonl its name; without a run the panels are empty.
    """
    figure = runs_figure(runs, WATCHED, title=title, num_columns=3, width=11.0)
    for metric, ax in zip(WATCHED, figure.axes, strict=True):
        if not ax.lines:
            words = "no judge, or not measured yet" if metric == "true_reward" else "not measured yet"
            ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", **style.text(9, style.GREY))
            ax.set(xticks=[], yticks=[])
    return figure


def blank_figure(words: str) -> style.Picture:
    """A small picture that only says why there is nothing to draw."""
    figure = style.new_figure(6.4, 1.2)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.text(0.0, 0.5, style.plain(words), ha="left", va="center", **style.text(10, style.GREY))
    return figure


def describe_watch(runs: Mapping[str, Rows]) -> str:
    """What `watch_figure` shows, in words."""
    measured = {name.removeprefix("eval_") for rows in runs.values() for row in rows for name in row}
    sentences = [describe_runs(runs, metric if metric != "true_reward" else "eval_true_reward")
                 for metric in WATCHED if metric in measured]  # fmt: skip
    return " ".join(sentences) or "Six empty panels: nothing was measured yet."


def describe_runs(runs: Mapping[str, Rows], metric: str) -> str:
    """What `plot_runs` shows, in words."""
    title, unit = metric_label(metric)
    ends = [(name, *series(rows, metric)) for name, rows in runs.items()]
    parts = [f"{name} ends at {values[-1]:.4g} after step {steps[-1]}" for name, steps, values in ends if len(values)]
    num = "1 run" if len(parts) == 1 else f"{len(parts)} runs"
    return f"{title} ({unit}) of {num}: {'; '.join(parts) or 'nothing was measured'}."
