"""How good an implicit reward is: against the true one, calibration, length, best of n, where the margin arises.

Margins are differences of two answers' rewards in units of reward (β included), true margins in the judge's points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dpo_lab.course.plots.inputs import same_length
from dpo_lab.workbench.plots import style

_IMPLICIT = "implicit reward, difference (β × nats)"


def plot_rewards(
    implicit: Any, true: Any, groups: Sequence[Any] | None = None, *, title: str = "Implicit against true reward",
    xlabel: str = "true reward, difference (points)", ylabel: str = _IMPLICIT, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """One point per pair, (N,): true margin to the right, implicit margin upwards; a colour and marker per group.

    In the shaded quarters both have the same sign: there the policy ranks the pair as the truth does.
    """
    implicit, true = same_length(implicit=implicit, true=true)
    ax = ax or style.new_axes(5.6, 4.2)
    names = np.array(["pairs"] * len(true) if groups is None else [str(group) for group in groups])
    if len(names) != len(true):
        raise ValueError(f"every pair needs its group, got {len(names)} groups and {len(true)} pairs")
    for i, name in enumerate(dict.fromkeys(names.tolist())):
        own = names == name
        label = None if groups is None else style.plain(f"{name}: {own.sum()}")
        ax.scatter(true[own], implicit[own], s=16, color=style.color(i), marker=style.marker(i),
                   alpha=0.7, linewidths=0, label=label)  # fmt: skip
    right, top = (1.08 * max(np.abs(values).max(), 1e-6) for values in (true, implicit))
    for sign in (-1, 1):
        ax.fill_between([0, sign * right], 0, sign * top, color=style.TRAINING, alpha=0.07, linewidth=0, zorder=0)
    ax.axhline(0, color=style.GREY, linewidth=0.9)
    ax.axvline(0, color=style.GREY, linewidth=0.9)
    ax.set_xlim(-right, right)
    ax.set_ylim(-top, top)
    style.dress(ax, title, xlabel, ylabel)
    style.add_legend(ax, loc="upper left")
    return ax


def plot_calibration(curves: Mapping[str, Any], *, title: str = "Calibration", ax: Axes | None = None) -> Axes:
    """σ(margin) to the right, the share of labels that prefer the first answer upwards; on the diagonal they agree.

    curves: name → anything with `predicted`, `observed`, `counts`, `spread` (M,) and `error`, as
    `evaluation.calibration` gives them. A whisker is two standard deviations that chance alone would make; an area
    stands for the pairs in the bin.
    """
    if not curves:
        raise ValueError("there is no calibration to draw; give at least one")
    ax = ax or style.new_axes(4.8, 4.4)
    ax.plot([0, 1], [0, 1], color=style.GREY, linewidth=1, linestyle=":", label="perfect")
    largest = max(np.max(curve.counts) for curve in curves.values())
    for i, (name, curve) in enumerate(curves.items()):
        color = (style.TRAINING, style.ORANGE, style.CHOSEN)[i % 3]
        look: dict[str, Any] = {"color": color, "linestyle": style.line(i)}
        x, y, counts = (np.asarray(values) for values in (curve.predicted, curve.observed, curve.counts))
        whiskers = np.clip([np.minimum(2 * curve.spread, y), np.minimum(2 * curve.spread, 1 - y)], 0, None)
        ax.errorbar(x, y, whiskers, linewidth=1.4, elinewidth=0.9, capsize=2, **look)
        ax.scatter(x, y, s=12 + 160 * counts / largest, color=color, marker=style.marker(i), alpha=0.75,
                   linewidths=0, zorder=3)  # fmt: skip
        label = style.plain(f"{name}: error {curve.error:.3f}")
        ax.plot([], [], marker=style.marker(i), label=label, **look)
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal")
    style.dress(ax, title, "predicted: σ(margin)", "observed: share of labels for the first answer")
    style.add_legend(ax, loc="lower right")
    return ax


def plot_length(
    length_differences: Any, margins: Any, *, within: int = 1, title: str = "Length against reward",
    ylabel: str = _IMPLICIT, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """One point per pair: how many tokens longer the first answer is, and its margin, with the least-squares line.

    Pairs of (nearly) the same length are dark: among them length can decide nothing.
    """
    lengths, margins = same_length(length_differences=length_differences, margins=margins)
    ax = ax or style.new_axes(5.6, 3.8)
    is_matched = np.abs(lengths) <= within
    for which, color, marker, label in (
        (~is_matched, style.GREY, "o", f"other lengths: {(~is_matched).sum()}"),
        (is_matched, style.CHOSEN, "D", f"at most {within} apart: {is_matched.sum()}"),
    ):
        ax.scatter(lengths[which], margins[which], s=16, color=color, marker=marker, alpha=0.65, linewidths=0,
                   label=label)  # fmt: skip
    if np.ptp(lengths):
        slope, start = np.polyfit(lengths, margins, 1)
        share = np.corrcoef(lengths, margins)[0, 1] ** 2 if np.ptp(margins) else 0.0
        ends = np.array([lengths.min(), lengths.max()])
        label = f"line: R² {share:.2f}"
        ax.plot(ends, start + slope * ends, "--", color=style.REJECTED, linewidth=1.8, label=label)
    ax.axhline(0, color=style.GREY, linewidth=0.9)
    ax.axvline(0, color=style.GREY, linewidth=0.9)
    style.dress(ax, title, "length of the first answer − second (tokens)", ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.add_legend(ax)
    return ax


def plot_groups(rows: Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> Axes:
    """Rank correlation of implicit and true margins with its interval, one row per group; rows of `per_group`."""
    if not rows:
        raise ValueError("there are no groups to draw; per_group gives one row for each")
    ax = ax or style.new_axes(5.8, 0.9 + 0.42 * len(rows))
    for y, row in enumerate(rows):
        value, low, high = row["rank correlation"]
        color, marker = (style.INK, "D") if row["group"] == "all" else (style.CHOSEN, "o")
        ax.plot([low, high], [y, y], color=color, linewidth=2)
        ax.plot([value], [y], marker=marker, color=color, markersize=7)
        ax.annotate(f"{value:.2f}", (value, y), xytext=(0, 6), textcoords="offset points", ha="center", **style.text())
    style.dress(ax, "How implicit margins rank the true ones", "Spearman's rank correlation, 95 % interval", "")
    style.name_rows(ax, (f"{row['group']} ({row['pairs']} pairs)" for row in rows))
    ax.set_ylim(len(rows) - 0.5, -0.7)
    lowest = min((row["rank correlation"][1] for row in rows if np.isfinite(row["rank correlation"][1])), default=0)
    ax.set_xlim(min(0.0, lowest - 0.05), 1.02)
    return ax


def plot_best_of_n(
    curves: Mapping[str, Mapping[int, tuple[float, float]]], *, level: tuple[str, float] | None = None,
    title: str = "Best of n", ylabel: str = "true reward of the answer picked (points)", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Lines over the number of sampled answers, one per way of picking: name → {n: (mean, standard error)}.

    level: a name and a true reward to compare with, such as that of a single answer of the trained policy.
    """
    if not curves:
        raise ValueError("there is no curve to draw; best_of_n gives one per way of picking")
    ax = ax or style.new_axes(5.6, 3.8)
    colors = (style.TRAINING, style.CHOSEN, style.ORANGE, style.REJECTED, style.GREY)
    for i, (name, curve) in enumerate(curves.items()):
        sizes = np.array(list(curve))
        means, errors = np.array(list(curve.values())).T
        look = style.look(i, name, color=colors[i % len(colors)])
        ax.plot(sizes, means, linewidth=1.8, marker=style.marker(i), markersize=5, **look)
        if np.isfinite(errors).all():
            ax.fill_between(sizes, means - errors, means + errors, color=look["color"], alpha=0.13, linewidth=0)
    if level is not None:
        ax.axhline(level[1], color=style.INK, linewidth=1.2, linestyle=":", label=style.plain(level[0]))
    ax.set_xscale("log", base=2)
    every = sorted({size for curve in curves.values() for size in curve})
    ax.set_xticks(every, [str(size) for size in every])
    ax.minorticks_off()
    style.dress(ax, title, "n, answers sampled per prompt", ylabel)
    style.add_legend(ax)
    return ax


def plot_decision(shares: Any, *, title: str = "Where in the answer the margin arises", ax: Axes | None = None) -> Axes:
    """Bars over the answer from its first to its last tenth: what each brings to the mean margin, (bins,)."""
    (shares,) = same_length(shares=shares)
    ax = ax or style.new_axes(5.6, 3.2)
    edges = np.linspace(0, 100, len(shares) + 1)
    colors = [style.CHOSEN if share >= 0 else style.REJECTED for share in shares]
    ax.bar(edges[:-1], shares, np.diff(edges) * 0.9, align="edge", color=colors)
    ax.axhline(0, color=style.GREY, linewidth=0.9)
    style.dress(ax, title, "place in the answer (% of its tokens)", "part of the mean margin (β × nats)")
    ax.grid(visible=False, axis="x")
    return ax
