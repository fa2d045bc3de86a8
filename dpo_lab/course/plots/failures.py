"""Pictures of training that goes wrong: where probability went, the turn of the true reward, and conditions side by
side with the spread of their seeds.

S steps. Probabilities and shares lie in [0, 1], KL in nats. A bar is one standard deviation over seeds; where there is
one seed, there is no bar.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dpo_lab.workbench.plots import style

_COLORS = (style.BLUE, style.REJECTED, style.SKY, style.ORANGE, style.GREY, style.PALE)
_HATCHES = ("", "//", "..", "\\\\", "xx", "")


def plot_mass(steps: Any, shares: Mapping[str, Any], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Shares of all probability against training steps, stacked from the bottom in the order given; they fill 100 %.

    `steps` (S,), and (S,) per name. Colours repeat after six names, so give fewer, and collect the others in one.
    """
    steps = np.asarray(steps, np.float64)
    table = _columns(steps, shares)
    if (table < -1e-9).any() or not np.allclose(table.sum(0), 1, atol=1e-6):
        raise ValueError(
            f"shares must be >= 0 and sum to 1 at each step, got sums from {table.sum(0).min():.4g} to "
            f"{table.sum(0).max():.4g}; put what is left over under a name of its own"
        )
    if len(table) > len(_COLORS):
        raise ValueError(f"at most {len(_COLORS)} shares can be told apart, got {len(table)}; add some of them up")
    ax = ax or style.new_axes(5.6, 3.6)
    tops = np.vstack([np.zeros(len(steps)), np.cumsum(table, 0)])
    for i, name in enumerate(shares):
        ax.fill_between(steps, tops[i], tops[i + 1], facecolor=_COLORS[i], edgecolor="white", hatch=_HATCHES[i],
                        linewidth=0.6, label=style.plain(name))  # fmt: skip
    ax.set_ylim(0, 1)
    ax.set_xlim(steps[0], steps[-1])
    style.dress(ax, title or "Where the probability is", "optimiser step", "share of all probability")
    style.in_percent(ax.yaxis)
    ax.grid(visible=False)
    style.add_legend_below(ax, pad=4.4)
    return ax


def turn_figure(
    steps: Any, rewards: Any, losses: Mapping[str, Any], *, level: tuple[str, float] | None = None, title: str = ""
) -> style.Picture:
    """Above, the true reward against steps with its highest point; below, losses, each marked at its lowest point.

    `steps`, `rewards` and each of `losses` have shape (S,). `level` names a reward to compare with: the start's.
    """
    steps = np.asarray(steps, np.float64)
    rewards = _columns(steps, {"rewards": rewards})[0]
    table = _columns(steps, losses)
    figure = style.new_figure(6.0, 5.0)
    style.add_title(figure, title)
    top, bottom = figure.subplots(2, 1, sharex=True)
    at = int(rewards.argmax())
    top.plot(steps, rewards, color=style.TRAINING, linewidth=2, label="true reward")
    top.plot(steps[at], rewards[at], "*", color=style.INK, markersize=12, zorder=5)
    if level is not None:
        top.axhline(level[1], color=style.GREY, linewidth=1, linestyle=":", label=style.plain(level[0]))
    style.dress(top, "The true reward turns", "", "expected true reward")
    style.add_legend(top)
    looks = ((style.BLUE, "-", "o"), (style.REJECTED, "--", "s"), (style.ORANGE, "-.", "^"))
    for i, (name, values) in enumerate(zip(losses, table, strict=True)):
        color, line, marker = looks[i % len(looks)]
        low = int(values.argmin())
        bottom.plot(steps, values, line, color=color, linewidth=1.8, label=style.plain(name))
        bottom.plot(steps[low], values[low], marker, color=color, markersize=7, markeredgecolor="white", zorder=5)
    for ax in (top, bottom):
        ax.axvline(steps[at], color=style.INK, linewidth=0.8, linestyle=":", zorder=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.dress(bottom, "Loss, marked at its lowest", "optimiser step", "mean loss per pair")
    style.add_legend(bottom)
    return figure


def plot_levels(
    curves: Mapping[str, Mapping[float, Sequence[float]]], xlabel: str, ylabel: str, *, level: tuple[str, float] | None
    = None, is_share: bool = False, title: str = "", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """One measure against the strength of a disturbance, a line per method: name → {strength: values over seeds}.

    Points are means, bars one standard deviation over seeds. `level` draws a line to compare with; `is_share` labels
    the strength in percent.
    """
    if not curves or any(not len(values) for curve in curves.values() for values in curve.values()):
        raise ValueError("every method and strength needs at least one value; leave out what was not run")
    ax = ax or style.new_axes(5.8, 3.6)
    places = sorted({x for curve in curves.values() for x in curve})
    gap = min(np.diff(places), default=1.0)
    for i, (name, curve) in enumerate(curves.items()):
        x = np.array(sorted(curve))
        means = np.array([float(np.mean(curve[place])) for place in x.tolist()])
        spread = np.array([_deviation(curve[place]) for place in x.tolist()])
        shift = (i - (len(curves) - 1) / 2) * 0.05 * gap  # bars of different methods side by side, not on each other
        ax.errorbar(x + shift, means, np.nan_to_num(spread), marker=style.marker(i), markersize=6, linewidth=1.8,
                    markeredgecolor="white", capsize=3, elinewidth=1.1, **style.look(i, name))  # fmt: skip
    if level is not None:
        ax.axhline(level[1], color=style.GREY, linewidth=1, linestyle=":", label=style.plain(level[0]))
    style.dress(ax, title, xlabel, ylabel)
    ax.set_xticks(places)
    if is_share:
        style.in_percent(ax.xaxis)
    style.add_legend(ax)
    return ax


def conditions_figure(
    conditions: Mapping[str, Mapping[str, Sequence[float]]],
    measures: Mapping[str, str],
    *,
    highlight: Sequence[str] = (),
    title: str = "",
) -> style.Picture:
    """Conditions one under the other, a panel per measure, two or three in a row: name → {measure: values over seeds}.

    `measures` names the panels: measure → axis label. Seeds are small points, means large ones with a bar of one
    standard deviation; a dotted line stands at the first condition, the one to compare with. Names in `highlight` are
    drawn in orange.
    """
    missing = [(name, m) for name, row in conditions.items() for m in measures if not len(row.get(m, ()))]
    if not conditions or not measures or missing:
        raise ValueError(f"every condition needs a value of every measure, missing {missing[:3]}; leave such rows out")
    columns = 2 if len(measures) == 4 else min(len(measures), 3)
    num_rows = -(-len(measures) // columns)
    height = num_rows * (0.9 + 0.34 * len(conditions)) + (0.3 if title else 0)
    figure = style.new_figure(1.6 + 2.55 * columns, height)
    style.add_title(figure, title)
    axes = style.grid_of(figure, len(measures), columns, sharey=True)
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        for place, (name, row) in enumerate(conditions.items()):
            values = np.asarray(row[measure], np.float64)
            color, marker = (style.ORANGE, "s") if name in highlight else (style.BLUE, "o")
            ax.plot(values, np.full(len(values), place + 0.2), ".", color=color, alpha=0.55, markersize=6)
            ax.errorbar(values.mean(), place, xerr=np.nan_to_num(_deviation(values)), fmt=marker, color=color,
                        markersize=6.5, markeredgecolor="white", capsize=3, elinewidth=1.2)  # fmt: skip
        first = float(np.mean(next(iter(conditions.values()))[measure]))
        ax.axvline(first, color=style.GREY, linewidth=1, linestyle=":", zorder=0.5)
        style.dress(ax, "", label, "")
        style.name_rows(ax, conditions)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.margins(x=0.12)
    axes[0].set_ylim(len(conditions) - 0.45, -0.6)
    return figure


def runs_grid(runs: Mapping[str, Mapping[str, Any]]) -> style.Picture:
    """A column per run: its loss above, its accuracy below, training pairs as a line, held-out pairs dashed.

    Each run maps loss, accuracy, "held-out loss" and "held-out accuracy" to (S,), one value per step from 0 on.
    """
    names = ("loss", "held-out loss", "accuracy", "held-out accuracy")
    if not runs or any(name not in run for run in runs.values() for name in names):
        raise ValueError(f"every run needs {', '.join(names)}, got {[sorted(run) for run in runs.values()][:2]}")
    figure = style.new_figure(2.15 * len(runs) + 0.6, 4.4)
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (title, run) in enumerate(runs.items()):
        for ax, measure in zip(axes[:, column], ("loss", "accuracy"), strict=True):
            ax.axhline(math.log(2) if measure == "loss" else 0.5, color=style.GREY, linewidth=0.9, linestyle=":")
            for name, color, line in ((measure, style.BLUE, "-"), (f"held-out {measure}", style.REJECTED, "--")):
                values = np.asarray(run[name], np.float64)
                label = "training pairs" if name == measure else "held-out pairs"
                ax.plot(np.arange(len(values)), values, line, color=color, linewidth=1.8, label=label)
            heading, xlabel = (style.plain(title), "") if measure == "loss" else ("", "optimiser step")
            style.dress(ax, heading, xlabel, measure if column == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def recorded_grid(runs: Mapping[str, Mapping[str, Any]], measures: Mapping[str, str]) -> style.Picture:
    """A column per run: training loss and accuracy step by step with the held-out ones, and a row per measure.

    Each run maps losses and accuracies to (T,), one value per training step, and steps, heldout_loss,
    heldout_accuracy and each of `measures` to (E,), what was measured on the way. `measures`: measure → axis label.
    """
    names = ("steps", "losses", "accuracies", "heldout_loss", "heldout_accuracy", *measures)
    missing = {title: [name for name in names if name not in run] for title, run in runs.items()}
    if not runs or any(missing.values()):
        raise ValueError(f"every run needs {', '.join(names)}, missing {missing}")
    figure = style.new_figure(2.15 * len(runs) + 0.6, 1.5 * (2 + len(measures)) + 0.6)
    axes = figure.subplots(2 + len(measures), len(runs), sharex=True, sharey="row", squeeze=False)
    for column, (title, run) in enumerate(runs.items()):
        for ax, of_steps, on_held, level, label in (
            (axes[0, column], "losses", "heldout_loss", math.log(2), "loss"),
            (axes[1, column], "accuracies", "heldout_accuracy", 0.5, "ranked right"),
        ):
            values = np.asarray(run[of_steps], np.float64)
            ax.axhline(level, color=style.GREY, linewidth=0.9, linestyle=":")
            ax.plot(np.arange(1, len(values) + 1), values, color=style.BLUE, linewidth=0.9, label="training pairs")
            ax.plot(run["steps"], run[on_held], "--s", color=style.REJECTED, linewidth=1.5, markersize=4,
                    label="held-out pairs")  # fmt: skip
            style.dress(ax, style.plain(title) if label == "loss" else "", "", label if column == 0 else "")
        for ax, (measure, label) in zip(axes[2:, column], measures.items(), strict=True):
            ax.plot(run["steps"], run[measure], "-o", color=style.INK, linewidth=1.5, markersize=4)
            style.dress(ax, "", "", style.plain(label) if column == 0 else "")
            if measure == "kl":  # one run may have a hundred times the KL of another
                ax.set_yscale("symlog", linthresh=1)
        axes[-1, column].set_xlabel("optimiser step", **style.text())
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def _deviation(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _columns(steps: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    table = [np.asarray(column, np.float64) for column in values.values()]
    if steps.ndim != 1 or len(steps) < 2 or not table or any(column.shape != steps.shape for column in table):
        raise ValueError(
            f"steps must be at least two numbers and {', '.join(values) or 'the values'} as many, got shapes "
            f"{steps.shape} and {[column.shape for column in table]}"
        )
    stacked = np.stack(table)
    if not np.isfinite(stacked).all():
        raise ValueError(f"{', '.join(values)} must be finite to be drawn; stop the run where they are not")
    return stacked
