"""One metric of several runs over each other, and the sheet that a training is watched on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.curves import Rows, metric_label, series, smooth, smoothing_window

WATCHED = {
    "loss": "loss, mean per pair", "rewards/accuracies": "pairs ranked right", "rewards/margins": "margin, β × nats",
    "kl": "KL, nats per answer", "true_reward": "true reward, mean", "well_formed": "well-formed answers, share",
    "answer_length": "answer length, tokens", "grad_norm": "gradient norm", "rewards/chosen":
    "reward of chosen, β × nats",
}  # fmt: skip
"""What is looked at while a preference training goes on, with the short titles of small panels."""


def plot_runs(runs: Mapping[str, Rows], metric: str, *, ax: Axes | None = None) -> Axes:
    """One metric of several runs over each other; `runs` gives each its name.

    Training is a running mean drawn as a line, held-out values are markers; with "eval_" before the metric only
    these, joined. Runs without the metric are left out. A band lies between the least and the most of seeds, where the
    rows are of `over_seeds`.
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
        at = base if len(values) else f"eval_{base}"
        ends = [series(rows, f"{end}/{at}") for end in ("low", "high")]
        if len(ends[0][0]) > 1:
            low, high = (smooth(edge, smoothing_window(len(values) or 1)) for _, edge in ends)
            ax.fill_between(ends[0][0], low, high, color=color, alpha=0.18, linewidth=0)
    title, unit = metric_label(metric)
    style.dress(ax, title, "optimiser step", unit)
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def over_seeds(runs: Sequence[Rows]) -> list[dict[str, Any]]:
    """The rows of runs that differ by their seed as those of one: the mean of each metric over the runs that have come
    to that step, and beside it, as low/METRIC and high/METRIC, the least and the most."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    values: dict[tuple[int, str, str], list[float]] = {}
    for row in (row for own in runs for row in own):
        for name in row.keys() - {"kind", "step"}:
            values.setdefault((row["step"], row["kind"], name), []).append(row[name])
    for (step, kind, name), found in values.items():
        row = rows.setdefault((step, kind), {"kind": kind, "step": step})
        row |= {name: float(np.mean(found)), f"low/{name}": min(found), f"high/{name}": max(found)}
    return [rows[at] for at in sorted(rows)]


def runs_figure(
    runs: Mapping[str, Rows], metrics: Sequence[str], *, title: str = "", num_columns: int = 2, width: float = 10.0,
    height: float = 2.6, legend_columns: int = 3,
) -> style.Picture:  # fmt: skip
    """Several metrics of several runs on one sheet, with one legend; a row of panels is `height` inches high."""
    num_rows = math.ceil(len(metrics) / num_columns)
    key = [
        Line2D([], [], marker=style.marker(i), markeredgecolor="white", **style.look(i, name))
        for i, name in enumerate(runs)
    ]
    figure = style.new_figure(width, 0.6 + height * num_rows + 0.2 * math.ceil(len(runs) / legend_columns))
    for metric, ax in zip(metrics, style.grid_of(figure, len(metrics), num_columns), strict=True):
        plot_runs(runs, metric, ax=ax)
        if legend := ax.get_legend():
            legend.remove()
    note = "lines: running mean of the training steps; markers: held-out data"
    figure.legend(handles=key, loc="outside upper left", ncols=legend_columns, frameon=False, fontsize=9, title=note,
                  title_fontsize=9, alignment="left")  # fmt: skip
    style.add_title(figure, title)
    return figure


def watch_figure(runs: Mapping[str, Rows], *, title: str = "") -> style.Picture:
    """The curves that a preference training is watched by, of one run or of several over each other.

    Small panels, so that a screen has room for the controls and an answer beside them; those without a measurement
    say so. `runs` gives each run's rows of metrics.jsonl its name; without a run the panels are empty.
    """
    figure = runs_figure(runs, tuple(WATCHED), title=title, num_columns=3, width=7.4, height=1.25, legend_columns=4)
    inches = figure.get_figheight()
    for place, (ax, short) in enumerate(zip(figure.axes, WATCHED.values(), strict=True)):
        # Placed by hand: laying nine panels out would take as long as drawing them, at every redraw.
        ax.set_position((0.055 + 0.33 * (place % 3), (0.42 + 1.25 * (2 - place // 3)) / inches, 0.275, 0.82 / inches))
        ax.set_title(short, loc="left", **style.text(8.5))
        ax.set(xlabel="" if place < len(WATCHED) - 3 else "optimiser step", ylabel="")
        ax.xaxis.label.set_fontsize(8)
        ax.tick_params(labelsize=7.5)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        low, high = ax.get_ylim()
        missing = max(0.02 * abs(low + high) / 2, 0.05) - (high - low)
        if missing > 0:  # the numbers of a narrower range would be too long for their place
            ax.set_ylim(low - missing / 2, high + missing / 2)
        for line in ax.lines:
            line.set(linewidth=min(1.4, line.get_linewidth()), markersize=min(4, line.get_markersize()))
        if not ax.lines:
            words = "no judge, or not yet" if short.startswith(("true", "well")) else "not measured yet"
            ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", **style.text(8, style.GREY))
            ax.set(xticks=[], yticks=[])
    return figure


def describe_watch(runs: Mapping[str, Rows]) -> str:
    """What `watch_figure` shows, in words."""
    measured = {name for rows in runs.values() for row in rows for name in row}
    names = (metric if metric in measured else f"eval_{metric}" for metric in WATCHED)
    sentences = [describe_runs(runs, name) for name in names if name in measured]
    return " ".join(sentences) or "Empty panels: nothing was measured yet."


def describe_runs(runs: Mapping[str, Rows], metric: str) -> str:
    """What `plot_runs` shows, in words."""
    title, unit = metric_label(metric)
    ends = [(name, *series(rows, metric)) for name, rows in runs.items()]
    parts = [f"{name} ends at {values[-1]:.4g} after step {steps[-1]}" for name, steps, values in ends if len(values)]
    num = "1 run" if len(parts) == 1 else f"{len(parts)} runs"
    return f"{title} ({unit}) of {num}: {'; '.join(parts) or 'nothing was measured'}."
