"""Pictures of preferences: the Bradley–Terry curve, rewards fitted to comparisons, and how their error shrinks.

Rewards have no unit of their own: a gap of 1 makes the better answer win 73% of the time. Shares and probabilities
lie in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from dpo_lab.workbench.plots import style

_WIDEST_GAP = 6.0


def win_probability(gap: Any, temperature: float = 1.0, flip: float = 0.0) -> np.ndarray:
    """P(A ≻ B) for reward gaps r_A − r_B: σ(gap/temperature), then flipped with probability `flip`."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; near 0 people never err")
    if not 0 <= flip <= 0.5:
        raise ValueError(f"flip must lie in [0, 0.5], got {flip}; at one half the labels say nothing")
    # tanh, because exp overflows for large gaps.
    probs = (1 + np.tanh(np.asarray(gap, np.float64) / (2 * temperature))) / 2
    return (1 - flip) * probs + flip * (1 - probs)


def plot_bradley_terry(gap: float, *, temperature: float = 1.0, flip: float = 0.0, ax: Axes | None = None) -> Axes:
    """P(A ≻ B) against the reward gap, with one gap marked. The plain curve stays in grey where noise bends it."""
    ax = ax or style.new_axes(5.8, 3.8)
    at = np.linspace(-_WIDEST_GAP, _WIDEST_GAP, 241)
    if (temperature, flip) != (1.0, 0.0):
        ax.plot(at, win_probability(at), "--", color=style.GREY, linewidth=1.5, label="without noise: σ(gap)")
    ax.plot(at, win_probability(at, temperature, flip), color=style.CHOSEN, linewidth=2.4, label="P(A ≻ B)")
    share = float(win_probability(gap, temperature, flip))
    ax.plot([gap, gap, -_WIDEST_GAP], [0, share, share], ":", color=style.INK, linewidth=1.2)
    ax.plot([gap], [share], "o", color=style.ORANGE, markersize=10, markeredgecolor=style.INK, zorder=3,
            label=f"gap {gap:+.2f}: {share:.0%}")  # fmt: skip
    ax.set(xlim=(-_WIDEST_GAP, _WIDEST_GAP), ylim=(0, 1.02))
    style.dress(ax, "Who wins a comparison", "reward gap r(A) − r(B)", "how often A is preferred")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    style.add_legend(ax, loc="lower right")
    return ax


def bradley_terry_figure(gap: float, temperature: float = 1.0, flip: float = 0.0) -> style.Picture:
    """The curve with one gap marked, and beside it what a hundred people say."""
    figure = style.new_figure(8.6, 3.8)
    curve, crowd = figure.subplots(1, 2, width_ratios=[2.2, 1])
    plot_bradley_terry(gap, temperature=temperature, flip=flip, ax=curve)
    share = float(win_probability(gap, temperature, flip))
    # A hundred people as a field of dots, filled from below.
    rows, columns = np.divmod(np.arange(100), 10)
    for_a = np.arange(100) < round(100 * share)
    crowd.scatter(columns[for_a], rows[for_a], 60, color=style.CHOSEN, marker="o", label=f"{for_a.sum()} say A")
    crowd.scatter(columns[~for_a], rows[~for_a], 60, facecolors="none", edgecolors=style.REJECTED, marker="s",
                  label=f"{(~for_a).sum()} say B")  # fmt: skip
    style.dress(crowd, "A hundred people", "", "")
    crowd.set(xlim=(-0.8, 9.8), ylim=(-0.8, 12.4), xticks=[], yticks=[])
    crowd.grid(visible=False)
    crowd.spines[:].set_visible(False)
    style.add_legend(crowd, loc="upper center", ncols=2)
    return figure


def describe_bradley_terry(gap: float, temperature: float = 1.0, flip: float = 0.0) -> str:
    """What `bradley_terry_figure` shows, in words."""
    share = float(win_probability(gap, temperature, flip))
    is_plain = (temperature, flip) == (1.0, 0.0)
    noise = "" if is_plain else f" at temperature {temperature:.2g} and {flip:.0%} flipped labels"
    return (
        f"An S-shaped curve rises through 50% at a reward gap of 0. At a gap of {gap:+.2f}{noise}, A is preferred by "
        f"{share:.1%}: {round(100 * share)} of a hundred people say A, {100 - round(100 * share)} say B."
    )


def plot_fitted_rewards(
    true: Any, fitted: Any, errors: Any, answers: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """True rewards of one prompt's answers as bars' ends, fitted ones beside them with ±2 standard errors. Each (Y,)"""
    true, fitted, errors = (np.asarray(values, np.float64) for values in (true, fitted, errors))
    if not true.shape == fitted.shape == errors.shape == (len(answers),):
        raise ValueError(f"true, fitted and errors need one value for each of {len(answers)} answers, got shapes "
                         f"{true.shape}, {fitted.shape}, {errors.shape}; draw one prompt at a time")  # fmt: skip
    ax = ax or style.new_axes(6.4, 3.2)
    at = np.arange(len(answers))[::-1]
    ax.plot(true, at + 0.12, "|", color=style.INK, markersize=18, markeredgewidth=2.5, label="true reward")
    ax.errorbar(fitted, at - 0.12, xerr=2 * errors, fmt="o", color=style.CHOSEN, capsize=4, markersize=7,
                label="fitted, ±2 standard errors")  # fmt: skip
    ax.axvline(0, color=style.GREY, linewidth=0.9)
    style.dress(ax, title or "Rewards read back from comparisons", "reward (mean 0 over the answers)", "")
    ax.set_yticks(at, [style.plain(answer) for answer in answers], fontfamily=style.FONT, fontsize=8)
    ax.set_ylim(-0.5, len(answers) + 0.3)
    style.add_legend(ax, loc="upper center", ncols=2)
    return ax


def plot_error_by_count(counts: Any, errors: Mapping[str, Any], predicted: Any, *, ax: Axes | None = None) -> Axes:
    """Errors of fitted rewards against the number of comparisons, both axes logarithmic: 1/√n is a line of slope −½.

    `errors` gives each measured series a name, (N,) each; `predicted` (N,) is what theory says.
    """
    ax = ax or style.new_axes(5.8, 3.8)
    counts = np.asarray(counts, np.float64)
    ax.plot(counts, np.asarray(predicted), color=style.GREY, linewidth=2, label="predicted: Fisher information, ∝ 1/√n")
    for i, (name, values) in enumerate(errors.items()):
        look = style.look(i, name, linestyle=style.line(1 + i % 3), marker=style.marker(i))
        ax.plot(counts, np.asarray(values), markersize=7, markeredgecolor="white", **look)
    ax.set(xscale="log", yscale="log")
    style.dress(ax, "A hundred times the comparisons, a tenth of the error", "comparisons n", "root mean square error")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    style.add_legend(ax, loc="lower left")
    return ax


def plot_shares(
    names: Sequence[str], shares: Mapping[str, Any], *, title: str, level: float | None = 0.5, ax: Axes | None = None
) -> Axes:
    """Groups of bars: for each name of a comparison, one share per series. Each series (len(names),)."""
    ax = ax or style.new_axes(6.4, 3.4)
    width, hatches = 0.8 / len(shares), ("", "//", "..", "xx")
    for i, (label, values) in enumerate(shares.items()):
        at = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * width
        bars = ax.bar(at, np.asarray(values, np.float64), 0.92 * width, color=style.color(i), hatch=hatches[i % 4],
                      edgecolor="white", linewidth=0, label=style.plain(label))  # fmt: skip
        ax.bar_label(bars, fmt=lambda share: f"{share:.0%}", padding=2, **style.text(9))
    if level is not None:
        ax.axhline(level, color=style.GREY, linewidth=0.9, zorder=0.5)
    style.dress(ax, title, "", "share of people")
    ax.set_xticks(range(len(names)), [style.plain(name) for name in names], fontfamily=style.FONT, fontsize=9)
    ax.set_ylim(0, 1.25)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    style.add_legend(ax, loc="upper center", ncols=len(shares))
    return ax
