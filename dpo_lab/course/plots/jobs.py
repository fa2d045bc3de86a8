"""The four jobs: shares with their intervals side by side, what one job's training does to another, two refusal rates.

A share is anything that begins with (share, low, high, n), as `evaluation.jobs` gives it; a change (value, low, high).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from dpo_lab.workbench.plots import style

Shares = Mapping[str, Mapping[str, Sequence[float]]]
_COLORS = (style.GREY, *style.PALETTE)  # grey is for what is not trained, which comes first


def plot_shares(
    shares: Shares, *, seeds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    title: str = "Success, job by job", xlabel: str = "share of answers, 95 % interval", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """For each name (downwards) the share of each policy with its interval, one colour and marker per policy.

    shares: policy → name → (share, low, high, n). seeds: policy → name → the shares of single seeds, drawn as small
    dots. A share of nothing (n = 0) is left out, and its name says so.
    """
    if not shares or not any(shares.values()):
        raise ValueError("there are no shares to draw; give at least one policy with one share")
    names = list(dict.fromkeys(name for own in shares.values() for name in own))
    apart = 0.8 / len(shares)
    ax = ax or style.new_axes(6.6, 1.2 + len(names) * (0.16 + 0.145 * len(shares)))
    for i, (policy, own) in enumerate(shares.items()):
        color, marker = _COLORS[i % len(_COLORS)], style.marker(i)
        ax.plot([], [], marker, color=color, markersize=6, label=style.plain(policy))
        for y, name in enumerate(names):
            if name not in own or not own[name][3]:
                continue
            share, low, high = own[name][:3]
            place = y + (i - (len(shares) - 1) / 2) * apart
            ax.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
            ax.plot([share], [place], marker, color=color, markersize=6, markeredgecolor="white", zorder=3)
            if seeds and name in seeds.get(policy, {}):
                dots = list(seeds[policy][name])
                ax.plot(dots, [place + 0.28 * apart] * len(dots), ".", color=color, markersize=3.5)
    style.dress(ax, style.plain(title), style.plain(xlabel), "")
    style.name_rows(ax, [_counted(name, shares) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.set_xlim(-0.02, 1.02)
    style.in_percent(ax.xaxis)
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color=style.GREY, linewidth=0.4)
    if len(shares) > 1:  # beside the axes: inside it would cover some interval
        style.add_legend_beside(ax)
    return ax


def _counted(name: str, shares: Shares) -> str:
    """The name, and how many answers its share is of: the range over policies where they differ."""
    counts = sorted({int(own[name][3]) for own in shares.values() if name in own})
    count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{name}  ({count})"


def plot_transfer(
    trained: Sequence[str], judged: Sequence[str], changes: Any, before: Sequence[float], *,
    title: str = "What training on one job does to another", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Rows: the job that was trained on; columns: the job that was judged; a cell: the change of success in points.

    changes: (rows, columns, 3), value, low and high, in shares; before: (columns,) the success without training. A cell
    is coloured by its value (purple up, orange down) and pale where its interval holds 0: nothing is decided there.
    """
    changes = np.asarray(changes, np.float64)
    if changes.shape != (len(trained), len(judged), 3) or len(before) != len(judged):
        raise ValueError(
            f"changes must be (trained, judged, 3) = ({len(trained)}, {len(judged)}, 3) with one success before per "
            f"column, got {changes.shape} and {len(before)}"
        )
    ax = ax or style.new_axes(max(5.0, 1.9 + 1.12 * len(judged)), 1.5 + 0.62 * len(trained))
    largest = max(float(np.nanmax(np.abs(changes[..., 0]))), 0.01)
    colours, norm = colormaps["PuOr"], Normalize(-largest, largest)  # colour-blind readers can tell them apart
    shown = np.ones((*changes.shape[:2], 4))
    for cell in np.ndindex(changes.shape[:2]):
        value, low, high = changes[cell]
        if not math.isfinite(value):
            continue
        is_decided = low > 0 or high < 0
        colour = np.array(colours(norm(value)))
        shown[cell] = colour if is_decided else 0.25 * colour + 0.75
        color = style.text_color(*shown[cell][:3])
        row, column = cell
        weight = "bold" if is_decided else "normal"
        ax.text(
            column, row - 0.06, _points(value), ha="center", va="bottom", fontweight=weight, **style.text(10, color)
        )
        ax.text(column, row + 0.1, f"{_points(low)} to {_points(high)}", ha="center", va="top", **style.text(7, color))
    ax.imshow(shown, aspect="auto")
    style.dress(ax, style.plain(title), "judged on (success before training)", "trained on")
    ax.set_xticks(range(len(judged)), [f"{style.plain(n)}\n({b:.0%})" for n, b in zip(judged, before, strict=True)])
    ax.set_yticks(range(len(trained)), [style.plain(name) for name in trained])
    ax.grid(visible=False)
    return ax


def _points(value: float) -> str:
    """A change in percentage points, with its sign."""
    rounded = round(100 * value)
    return f"{rounded:+d}".replace("-", "−") if rounded else "0"


def plot_refusals(rates: Mapping[str, Any], *, title: str = "Two numbers, not one", ax: Axes | None = None) -> Axes:
    """One point per policy with both intervals: over-refusals to the right, right refusals upwards. Best: upper left.

    rates: policy → (harmful, harmless), each (share, low, high, n), the shares that were declined.
    """
    if not rates:
        raise ValueError("there are no rates to draw; give at least one policy")
    ax = ax or style.new_axes(5.8, 4.3)
    for i, (policy, (harmful, harmless)) in enumerate(rates.items()):
        color, marker = _COLORS[i % len(_COLORS)], style.marker(i)
        ax.plot(harmless[1:3], [harmful[0]] * 2, color=color, linewidth=1.6, alpha=0.7)
        ax.plot([harmless[0]] * 2, harmful[1:3], color=color, linewidth=1.6, alpha=0.7)
        ax.plot([harmless[0]], [harmful[0]], marker, color=color, markersize=8, markeredgecolor="white", zorder=3,
                label=style.plain(policy))  # fmt: skip
    ax.plot([0], [1], "*", color=style.TRAINING, markersize=15, clip_on=False, zorder=2, label="as it should be")
    for x, side, words in ((0.99, "right", "refuses more of all →"), (0.01, "left", "↓ helps with more of all")):
        ax.annotate(words, (x, 0.03), ha=side, va="bottom", xycoords="axes fraction", **style.text())
    xlabel, ylabel = "harmless requests declined (should be 0)", "harmful requests declined (should be 1)"
    style.dress(ax, style.plain(title), xlabel, ylabel)
    right = max(0.3, *(harmless[2] for _, harmless in rates.values())) + 0.05
    bottom = min(0.6, *(harmful[1] for harmful, _ in rates.values())) - 0.08
    ax.set_xlim(-0.02 * right, min(right, 1.02))
    ax.set_ylim(max(bottom, -0.05), 1.02)
    style.in_percent(ax.xaxis, ax.yaxis)
    style.add_legend_beside(ax)
    return ax
