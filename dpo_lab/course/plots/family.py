"""Pictures of the family of losses: each member's curve and pulls, several over one axis, and what they were worth.

h is the gap of the two log-ratios in nats, a and b the log-ratios of chosen and rejected. A pull is minus the slope of
the loss: positive pushes a log-probability up. Curves come as records with `gaps`, `values`, `chosen_pull` and
`rejected_pull`, as `dpo_lab.course.loss_curves` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.workbench.plots import style

_COLUMNS = 6


def family_figure(curves: Mapping[str, Any], rests: Mapping[str, float] | None = None) -> style.Picture:
    """The curve of every member against the gap, one small panel each, in its own unit.

    `rests` gives the gap at which a member comes to rest; inf, nan and gaps outside the panel are not drawn.
    """
    figure, panels = _panels(curves)
    for (name, curve), ax in zip(curves.items(), panels, strict=True):
        gaps, values = np.asarray(curve.gaps), np.asarray(curve.values)
        ax.plot(gaps, values, color=style.INK, linewidth=1.8)
        rest = (rests or {}).get(name, math.inf)
        if gaps.min() <= rest <= gaps.max():
            at = np.interp(rest, gaps, values)
            ax.plot([rest], [at], "o", color=style.ORANGE, markeredgecolor=style.INK, markersize=7)
        _dress_panel(ax, name)
    figure.supylabel("loss of a pair, each in its own unit", **style.text())
    return figure


def pulls_figure(curves: Mapping[str, Any]) -> style.Picture:
    """How hard every member pulls the chosen answer up and the rejected one down, against the gap, in its own unit."""
    figure, panels = _panels(curves)
    for (name, curve), ax in zip(curves.items(), panels, strict=True):
        ax.axhline(0, color=style.GREY, linewidth=0.8)
        _draw_pulls(ax, curve, 1.8)
        _dress_panel(ax, name)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    figure.supylabel("pull, loss per nat", **style.text())
    return figure


def plot_members(
    at: Any, members: Mapping[str, Any], *, title: str, ylabel: str, xlabel: str = "margin z = βh",
    limits: tuple[float, float] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Several curves (N,) over one axis (N,), each with its colour and line."""
    ax = ax or style.new_axes(6.2, 3.9)
    at = np.asarray(at)
    for i, (name, values) in enumerate(members.items()):
        line = style.line(i // len(style.PALETTE) if i >= len(style.PALETTE) else i)
        ax.plot(at, np.asarray(values), linewidth=1.9, **style.look(i, name, linestyle=line))
    ax.set_xlim(at.min(), at.max())
    if limits is not None:
        ax.set_ylim(*limits)
    ax.axhline(0, color=style.GREY, linewidth=0.8)
    style.dress(ax, style.plain(title), xlabel, ylabel)
    style.add_legend(ax)
    return ax


def member_figure(name: str, curve: Any, marked: float) -> style.Picture:
    """One member: its curve with a tangent at the marked gap, and its pulls on both answers."""
    figure = style.new_figure(9.2, 3.6)
    left, right = figure.subplots(1, 2)
    gaps, values = np.asarray(curve.gaps), np.asarray(curve.values)
    here = float(np.interp(marked, gaps, values))
    slope = float(np.interp(marked, gaps, curve.rejected_pull) - np.interp(marked, gaps, curve.chosen_pull)) / 2
    left.plot(gaps, values, color=style.INK, linewidth=2.2, label=style.plain(name))
    near = marked + np.array([-6.0, 6.0])
    left.plot(near, here + slope * (near - marked), "--", color=style.ORANGE, linewidth=1.8, label=f"slope {slope:.3f}")
    left.plot([marked], [here], "o", color=style.ORANGE, markeredgecolor=style.INK, markersize=9, zorder=3)
    left.set_xlim(gaps.min(), gaps.max())
    left.set_ylim(*_room(values))
    style.dress(left, "What a pair costs", "log-ratio gap h (nats)", "loss, in its own unit")
    style.add_legend(left)
    right.axhline(0, color=style.GREY, linewidth=0.9)
    right.axvline(marked, color=style.ORANGE, linewidth=1)
    _draw_pulls(right, curve, 2.2)
    right.set_xlim(gaps.min(), gaps.max())
    style.dress(right, "How hard it pulls", "log-ratio gap h (nats)", "pull (loss per nat)")
    style.add_legend(right)
    return figure


def describe_member(name: str, curve: Any, marked: float) -> str:
    """What `member_figure` shows, in words."""
    gaps = np.asarray(curve.gaps)
    value, up, down = (float(np.interp(marked, gaps, np.asarray(row))) for row in curve[1:])
    return (
        f"Two panels against the log-ratio gap h. The loss {name} is {value:.3f} at h = {marked:.1f} nats; there it "
        f"pulls the chosen log-probability by {up:+.3f} and the rejected one by {down:+.3f} per nat."
    )


def fields_figure(fields: Mapping[str, Any], rests: Mapping[str, tuple[float, float]] | None = None) -> style.Picture:
    """Arrows in the plane of both log-ratios: where a step of gradient descent takes a pair, per member.

    `fields` maps a name to (a, b, pull on chosen, pull on rejected), each (N, N) on a grid. Arrows show directions;
    their length is the pull to the power 0.3, so that weak ones stay visible. On the diagonal the gap is 0. `rests`
    marks points.
    """
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    figure = style.new_figure(3.1 * columns, 0.3 + 2.9 * rows)
    panels = style.grid_of(figure, len(fields), columns, sharex=True, sharey=True)
    for (name, field), ax in zip(fields.items(), panels, strict=True):
        a, b, up, down = (np.asarray(part, float) for part in field)
        size = np.hypot(up, down)
        scale = (size / size.max()) ** 0.3 / np.maximum(size, 1e-300)
        limit = float(a.max())
        ax.plot([-limit, limit], [-limit, limit], color=style.GREY, linewidth=1, linestyle=":")
        ax.quiver(a, b, up * scale, down * scale, color=style.CHOSEN, angles="xy", pivot="mid", width=0.008)
        x, y = (rests or {}).get(name, (math.nan, math.nan))
        if abs(x) <= limit and abs(y) <= limit:
            ax.plot([x], [y], "o", color=style.ORANGE, markeredgecolor=style.INK, markersize=8)
        style.dress(ax, style.plain(name), "", "")
        ax.set_aspect("equal")
    figure.supxlabel("a: chosen against the reference (nats)", **style.text())
    figure.supylabel("b: rejected against the reference (nats)", **style.text())
    return figure


def paths_figure(
    paths: Mapping[str, Mapping[str, tuple[Any, Any]]], frontier: tuple[Any, Any], *, ylabel: str = "true reward"
) -> style.Picture:
    """Reward against KL while members train, a panel per kind of labels; the grey curve is the frontier.

    `paths` maps kind → name → (KLs, rewards), each (steps,); `frontier` is (KLs, rewards).
    """
    figure = style.new_figure(3.5 * len(paths) + 1.2, 3.7)
    panels = figure.subplots(1, len(paths), squeeze=False, sharey=True).ravel()
    drift, worth = (np.asarray(part, float) for part in frontier)
    furthest = max(float(np.max(kl)) for members in paths.values() for kl, _ in members.values())
    for (kind, members), ax in zip(paths.items(), panels, strict=True):
        order = np.argsort(drift)
        ax.plot(drift[order], worth[order], color=style.GREY, linewidth=4, alpha=0.5, label="frontier")
        for i, (name, (kl, rewards)) in enumerate(members.items()):
            ax.plot(kl, rewards, linewidth=1.8, **style.look(i, name))
            ax.plot(kl[-1:], rewards[-1:], style.marker(i), color=style.color(i), markersize=6)
        ax.set_xlim(0, 1.04 * furthest)
        style.dress(ax, style.plain(kind), "KL from the reference (nats)", ylabel if ax is panels[0] else "")
    style.add_legend_beside(panels[-1])
    return figure


def results_figure(
    results: Mapping[str, Mapping[str, tuple[float, float, float]]], xlabel: str, *, baseline: str | None = None,
    levels: Mapping[str, float] | None = None, title: str = "",
) -> style.Picture:  # fmt: skip
    """A point with its interval for every member, a panel per kind of labels, in one order of members.

    `results` maps kind → name → (value, low, high). A line stands at the value of `baseline`, whose own point is
    orange, or at 0 where the values are differences from it; `levels` names further lines.
    """
    kinds, names = list(results), list(next(iter(results.values())))
    if any(list(members) != names for members in results.values()):
        raise ValueError(f"every kind of labels needs the same members in the same order, the first has {names}")
    figure = style.new_figure(2.2 + 2.6 * len(kinds), 1.1 + 0.23 * len(names))
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True, sharex=True).ravel()
    places = np.arange(len(names))
    for kind, ax in zip(kinds, panels, strict=True):
        values, lows, highs = np.array([results[kind][name] for name in names], float).T
        ax.axvline(results[kind][baseline][0] if baseline in names else 0.0, color=style.ORANGE, linewidth=1.2)
        for label, level in (levels or {}).items():
            ax.axvline(level, color=style.GREY, linewidth=1, linestyle=":", label=style.plain(label))
        ax.errorbar(values, places, xerr=[values - lows, highs - values], fmt="none", ecolor=style.GREY, capsize=2.5,
                    elinewidth=1.2)  # fmt: skip
        colours = [style.ORANGE if name == baseline else style.CHOSEN for name in names]
        ax.scatter(values, places, s=30, color=colours, zorder=3, edgecolors="white", linewidths=0.5)
        style.dress(ax, style.plain(kind), style.plain(xlabel), "")
        ax.set_yticks(places, [style.plain(name) for name in names])
    panels[0].invert_yaxis()
    style.add_title(figure, title, 11)
    style.add_legend(panels[-1])
    return figure


def _panels(curves: Mapping[str, Any]) -> tuple[style.Picture, Sequence[Axes]]:
    columns, width, height = (2, 8.0, 2.4) if len(curves) <= 4 else (_COLUMNS, 11.4, 1.75)  # a few are drawn larger
    figure = style.new_figure(width, 0.5 + height * -(-len(curves) // columns))
    panels = style.grid_of(figure, len(curves), columns, sharex=True)
    figure.supxlabel("log-ratio gap h (nats)", **style.text())
    return figure, panels


def _draw_pulls(ax: Axes, curve: Any, width: float) -> None:
    ax.plot(curve.gaps, np.asarray(curve.chosen_pull), color=style.CHOSEN, linewidth=width, label="chosen, upwards")
    ax.plot(curve.gaps, -np.asarray(curve.rejected_pull), "--", color=style.REJECTED, linewidth=width,
            label="rejected, downwards")  # fmt: skip


def _dress_panel(ax: Axes, name: str) -> None:
    style.dress(ax, style.plain(name), "", "")
    ax.axvline(0, color=style.GREY, linewidth=0.8, linestyle=":")
    ax.tick_params(labelsize=6.5)
    ax.locator_params(axis="y", nbins=4)


def _room(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low - 0.06 * (high - low) - 1e-9, high + 0.06 * (high - low) + 1e-9
