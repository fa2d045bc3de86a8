"""Reward against KL for several methods with their spread over seeds, rewards at the same KL, and what each costs.

A row is one run: {"method": "dpo", "knob": 0.5, "seed": 0, "kl": 0.8, "reward": 2.4, …}; KL in nats per answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from dpo_lab.workbench.plots import style

Rows = Sequence[Mapping[str, Any]]
_COLORS = (style.BLUE, style.VERMILLION, style.ORANGE, style.GREEN, style.PURPLE, style.SKY, style.INK, style.GREY,
           "#7A4B00")  # by the method's place  # fmt: skip


def plot_methods(
    rows: Rows, methods: Mapping[str, str], *, base: str = "base", frontier: tuple[Any, Any] | None = None,
    matched: float | None = None, max_kl: float | None = None, title: str = "True reward against KL",
    ylabel: str = "true reward (points)", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """One line per method from the reference onwards, a point per setting: mean over seeds, whiskers one deviation.

    methods: name in the rows → name in the legend, in the order of colours. Rows of `base` are the reference, at KL 0;
    without any, lines begin at the first setting. frontier: KL and best reward (B,), the region above is out of reach.
    matched: a line at the KL where methods are compared. max_kl: what lies beyond is written on the right border. The
    axis of KL is stretched like its root, in which the best reward starts out straight.
    """
    ax = ax or style.new_axes(7.2, 4.6)
    start = [row["reward"] for row in rows if row["method"] == base]
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    if frontier is not None:
        best_kl, best = (np.asarray(values, np.float64) for values in frontier)
        order = np.argsort(best_kl)
        ax.plot(best_kl[order], best[order], ":", color=style.GREY, linewidth=1.6, label="best possible (exact)")
    beyond = []
    for i, (method, name) in enumerate(methods.items()):
        points = settings_of(rows, method)
        inside = [point for point in points if max_kl is None or point["kl"][0] <= max_kl]
        beyond += [(i, name, point) for point in points if point not in inside]
        color, marker = _COLORS[i % len(_COLORS)], style.marker(i)
        kl, rewards = (np.array([point[key] for point in inside]).reshape(-1, 2).T for key in ("kl", "reward"))
        ax.errorbar(kl[0], rewards[0], rewards[1], kl[1], color=color, fmt=marker, markersize=6, elinewidth=1,
                    capsize=2, label=style.plain(name), zorder=3)  # fmt: skip
        origin = [[0.0], [np.mean(start)]] if start else [[], []]
        joined = np.concatenate([origin, [kl[0], rewards[0]]], axis=1)
        ax.plot(*joined, style.line(i), color=color, linewidth=1.2, alpha=0.8)
    if start:
        ax.plot(0, np.mean(start), "*", color=style.INK, markersize=12, clip_on=False, zorder=5, label="the reference")
    if matched is not None:
        ax.axvline(matched, color=style.INK, linewidth=0.9, linestyle="--")
        ax.annotate(f"compared at {matched:.2g}", (matched, 1), (4, -10), xycoords=("data", "axes fraction"),
                    textcoords="offset points", **style.text())  # fmt: skip
    ax.set_xlim(0, max_kl)
    ax.xaxis.set_major_locator(FixedLocator(_ticks(ax.get_xlim()[1])))
    ax.xaxis.set_major_formatter("{x:g}")
    for place, (i, name, point) in enumerate(beyond):
        text = f"{name}: KL {point['kl'][0]:.3g}, reward {point['reward'][0]:.2f} ▸"
        ax.annotate(style.plain(text), (1, 0.02 + 0.05 * place), xycoords="axes fraction", ha="right",
                    **style.text(color=_COLORS[i % len(_COLORS)]))  # fmt: skip
    style.dress(ax, title, "KL(π‖π_ref) (nats per answer), axis stretched like √KL", ylabel)
    style.add_legend_beside(ax)
    return ax


def _ticks(limit: float) -> list[float]:
    """Places on an axis that is stretched like a root: round numbers, none too near the one before."""
    ticks = [0.0]
    for tick in (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0):
        if tick <= limit and np.sqrt(tick) - np.sqrt(ticks[-1]) > 0.06 * np.sqrt(limit):
            ticks.append(tick)
    return ticks


def settings_of(rows: Rows, method: str) -> list[dict[str, Any]]:
    """The settings of a method in the order of their KL: knob, and mean and deviation over seeds of KL and reward."""
    own = [row for row in rows if row["method"] == method]
    if not own:
        raise ValueError(f"no row is of the method {method!r}; leave it out of the picture, or run it")
    settings = []
    for knob in dict.fromkeys(row["knob"] for row in own):
        setting: dict[str, Any] = {"knob": knob}
        for key in ("kl", "reward"):
            values = np.array([row[key] for row in own if row["knob"] == knob], np.float64)
            setting[key] = (float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)
        settings.append(setting)
    return sorted(settings, key=lambda point: point["kl"][0])


def plot_matched(
    differences: Mapping[str, tuple[float, float, float]], *, baseline: str, at: Mapping[str, float] | float,
    title: str = "Reward at the same KL", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """How much more reward each method has than `baseline` at the same KL: mean and interval (mean, low, high).

    at: the KL of the comparison, for all or for each method. An interval that crosses the line at 0 decides nothing.
    """
    if not differences:
        raise ValueError("there is nothing to compare; give at least one method")
    ax = ax or style.new_axes(6.8, 1.2 + 0.42 * len(differences))
    names = []
    for y, (name, (mean, low, high)) in enumerate(differences.items()):
        color = style.GREEN if low > 0 else style.VERMILLION if high < 0 else style.GREY
        if np.isfinite([low, high]).all():
            ax.plot([low, high], [y, y], color=color, linewidth=2.2)
        ax.plot(mean, y, "o", color=color, markersize=7)
        text = f"{mean:+.2f}".replace("-", "−")
        ax.annotate(text, (mean, y), (0, 6), textcoords="offset points", ha="center", **style.text())
        place = at[name] if isinstance(at, Mapping) else at
        names.append(f"{name} (KL {place:.2g})")
    ax.axvline(0, color=style.INK, linewidth=1)
    style.dress(ax, title, f"reward − reward of {style.plain(baseline)} (points), 95 % interval over seeds", "")
    style.name_rows(ax, names)
    ax.set_ylim(len(names) - 0.5, -0.7)
    return ax


def plot_shortfall(
    shortfalls: Mapping[str, Sequence[float]],
    *,
    title: str = "Below the frontier, at its own KL",
    ax: Axes | None = None,
) -> Axes:
    """A line of points per method: how much reward each of its policies lacks of the best at its own KL.

    shortfalls: method → a value per policy, at least 0 but for rounding; 0 is the frontier.
    """
    if not shortfalls or any(not len(values) for values in shortfalls.values()):
        raise ValueError("every method needs at least one shortfall; leave out a method that was not run")
    ax = ax or style.new_axes(6.8, 1.2 + 0.42 * len(shortfalls))
    for y, values in enumerate(shortfalls.values()):
        ax.plot([0, max(values)], [y, y], color=style.GREY, linewidth=0.9)
        ax.plot(list(values), [y] * len(values), style.marker(y), color=style.color(y), markersize=8,
                markeredgecolor="white")  # fmt: skip
    ax.axvline(0, color=style.INK, linewidth=1)
    style.dress(ax, title, "best reward at the same KL less its own (points)", "")
    style.name_rows(ax, shortfalls)
    ax.set_ylim(len(shortfalls) - 0.5, -0.6)
    return ax


def costs_figure(
    costs: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], *, marked: str = "DPO", columns: int = 4
) -> style.Picture:
    """Small multiples: a panel per cost, a bar per method with its number at the end; `marked` stands out.

    costs: method → {cost: value}; a cost that a method lacks has no bar and a dash. labels: cost → title of its panel.
    """
    if not costs or not labels:
        raise ValueError("there are no costs to draw; give methods and the names of their costs")
    columns = min(columns, len(labels))
    num_rows = -(-len(labels) // columns)
    figure = style.new_figure(2.7 * columns + 1.0, num_rows * (0.7 + 0.27 * len(costs)) + 0.2)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True)
    for place, ax in enumerate(grid.flat):
        if place >= len(labels):
            ax.set_visible(False)
            continue
        key, label = list(labels.items())[place]
        values = [own.get(key) for own in costs.values()]
        largest = max((value for value in values if value is not None), default=0.0) or 1.0
        for y, (name, value) in enumerate(zip(costs, values, strict=True)):
            ax.barh(y, value or 0.0, color=style.BLUE if name == marked else style.GREY, height=0.65)
            ax.annotate("–" if value is None else short(value), (value or 0.0, y), (3, 0), textcoords="offset points",
                        va="center", **style.text())  # fmt: skip
        style.dress(ax, label, "", "")
        ax.title.set_fontsize(9)
        ax.set_xlim(0, 1.35 * largest)
        ax.set_xticks([])
        ax.set_yticks(range(len(costs)), [style.plain(name) for name in costs])
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
    grid.flat[0].invert_yaxis()
    return figure


def short(value: float) -> str:
    """A number in few letters: 3, 0.12, 45k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if value != round(value) else f"{value:.0f}"
