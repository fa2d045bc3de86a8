"""The outcome of a sweep: the course of its trials, the value against each knob, which knob mattered.

A row is one trial, as `StoredStudy.rows` gives it: {"trial": 3, "state": "complete", "value": 0.81, "beta": 0.2, …}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, NullLocator

from dpo_lab.workbench.plots import style

Rows = Sequence[Mapping[str, Any]]


def plot_history(rows: Rows, objective: str, *, is_larger_better: bool, ax: Axes | None = None) -> Axes:
    """Each trial's value in the order of the trials, and the best so far as a line; pruned ones where they stood."""
    ax = ax or style.new_axes(5.2, 3.2)
    done = [row for row in rows if row["state"] == "complete"]
    if done:
        numbers, values = zip(*((row["trial"], row["value"]) for row in done), strict=True)
        best = (np.maximum if is_larger_better else np.minimum).accumulate(values)
        ax.step(numbers, best, where="post", color=style.INK, linewidth=1.6, label="best so far")
        ax.plot(numbers, values, "o", color=style.TRAINING, markersize=6, markeredgecolor="white", label="complete")
    pruned = [
        (row["trial"], last) for row in rows if row["state"] == "pruned" and (last := _last_look(row)) is not None
    ]
    if pruned:
        ax.plot(*zip(*pruned, strict=True), "x", color=style.VERMILLION, markersize=6, label="pruned, at its last look")
    style.dress(ax, "Trials in their order", "trial", style.plain(objective))
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def plot_slice(rows: Rows, knob: str, objective: str, *, is_log: bool = False, ax: Axes | None = None) -> Axes:
    """The value of each complete trial against one knob, whatever the others were; later trials are darker."""
    ax = ax or style.new_axes(3.6, 3.2)
    done = [row for row in rows if row["state"] == "complete" and (row[knob] is not None or not is_log)]
    values = [row["value"] for row in done]
    is_number = bool(done) and all(isinstance(row[knob], int | float) for row in done)
    names = list(dict.fromkeys(str(row[knob]) for row in done))
    places = [row[knob] if is_number else names.index(str(row[knob])) for row in done]
    if done:
        age = np.linspace(0.25, 1.0, len(done))
        colors = [(*to_rgb(style.BLUE), a) for a in age]
        ax.scatter(places, values, s=42, c=colors, edgecolors=style.INK, linewidths=0.6)
    style.dress(ax, style.plain(knob), "", style.plain(objective))
    if is_log and is_number:
        ax.set_xscale("log")
        _few_log_ticks(ax, places)
    elif is_number:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    elif names:
        ax.set_xticks(range(len(names)), [style.plain(name) for name in names])
        ax.set_xlim(-0.5, len(names) - 0.5)
    return ax


def plot_importance(importance: Mapping[str, float], *, ax: Axes | None = None) -> Axes:
    """A bar for each knob: its share in what separates good trials from all."""
    ax = ax or style.new_axes(4.2, 3.2)
    names = sorted(importance, key=lambda name: importance[name])
    shares = [importance[name] for name in names]
    ax.barh(range(len(names)), shares, color=style.TRAINING, height=0.6)
    for place, share in enumerate(shares):
        ax.text(share + 0.02, place, f"{share:.0%}", va="center", fontsize=8, color=style.INK)
    if not names:
        text = "known after\n4 complete trials that\ndiffer, of 2 knobs"
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color=style.GREY, transform=ax.transAxes)
    style.dress(ax, "What mattered", "share of importance", "")
    style.name_rows(ax, names)
    ax.set_xlim(0, 1.15)
    return ax


def sweep_figure(
    rows: Rows, knobs: Mapping[str, bool], objective: str, *, is_larger_better: bool = True, importance: Mapping[str,
    float] | None = None, title: str = "",
) -> style.Picture:  # fmt: skip
    """History, importance, and one slice per knob. `knobs` maps each knob to whether its axis is logarithmic."""
    is_row = len(knobs) <= 2  # all side by side, so that a screen has room for the panel's fields too
    columns = 2 + len(knobs) if is_row else min(4, len(knobs))
    num_rows = 1 if is_row else 1 + math.ceil(len(knobs) / columns)
    figure = style.new_figure((2.4 if is_row else 2.9) * columns, 0.3 + 2.8 * num_rows)
    grid = figure.add_gridspec(num_rows, columns)
    last = 1 if is_row else columns - 1  # column of the first row's second panel
    history, mattered = figure.add_subplot(grid[0, :last]), figure.add_subplot(grid[0, last])
    plot_history(rows, objective, is_larger_better=is_larger_better, ax=history)
    plot_importance(importance or {}, ax=mattered)
    for place, (knob, is_log) in enumerate(knobs.items()):
        ax = figure.add_subplot(grid[0, 2 + place] if is_row else grid[1 + place // columns, place % columns])
        plot_slice(rows, knob, objective, is_log=is_log, ax=ax)
    style.add_title(figure, title)
    return figure


def describe_sweep(rows: Rows, knobs: Sequence[str], objective: str, *, is_larger_better: bool = True) -> str:
    """What `sweep_figure` shows, in words."""
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "pruned", "failed")}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none has ended"
    done = [row for row in rows if row["state"] == "complete"]
    if not done:
        return f"{len(rows)} trials, {states}. Nothing to compare yet."
    best = (max if is_larger_better else min)(done, key=lambda row: row["value"])
    values = [row["value"] for row in done]
    ties = ", ".join(str(row["trial"]) for row in done if row["value"] == best["value"] and row is not best)
    at = ", ".join(f"{knob} {_short(best[knob])}" for knob in knobs)
    return (
        f"{len(rows)} trials, {states}. {objective}: from {min(values):.3g} to {max(values):.3g}; the best, "
        f"{best['value']:.3g}, is trial {best['trial']} with {at}{f'; as good: {ties}' if ties else ''}."
    )


def _last_look(row: Mapping[str, Any]) -> float | None:
    return next(reversed(row.get("looks", {}).values()), None)


def _few_log_ticks(ax: Axes, places: Sequence[float]) -> None:
    """Three round numbers in the range, written out: decades alone may leave an axis with one label."""
    low, high = min(places), max(places)
    if low == high:
        return
    round_numbers = [m * 10.0**e for e in range(-9, 7) for m in (1, 2, 5)]
    inside = [value for value in round_numbers if low * 0.999 <= value <= high * 1.001]
    ticks = inside[:: max(1, math.ceil(len(inside) / 4))] or [low, high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
