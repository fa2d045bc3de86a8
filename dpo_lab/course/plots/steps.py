"""What one optimiser step is made of: the learning rate that it gets, its gradient's norm, how a batch is cut.

S steps. Learning rates are drawn as a share of their peak, norms before clipping.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.workbench.plots import style

_COLORS = (style.BLUE, style.VERMILLION, style.GREEN)


def plot_schedules(
    schedules: Mapping[str, Any], *, num_warmup: int | None = None, peak: float = 1.0, ax: Axes | None = None
) -> Axes:
    """Learning rates of the steps 1, 2, … as shares of `peak`; `schedules` gives each array (S,) its name.

    The warm-up's `num_warmup` steps are shaded. The first step has a rate above 0, and so has the last.
    """
    if peak <= 0:
        raise ValueError(f"peak must be positive, got {peak}; give the learning rate that the schedules reach")
    ax = ax or style.new_axes(5.8, 3.4)
    if num_warmup:
        ax.axvspan(0.5, num_warmup + 0.5, color=style.PALETTE[1], alpha=0.13, linewidth=0, label="warm-up")
    for i, (name, rates) in enumerate(schedules.items()):
        shares = np.asarray(rates, np.float64) / peak
        look = style.look(i, name, color=_COLORS[i % 3])
        ax.plot(np.arange(1, len(shares) + 1), shares, linewidth=1.6, marker=style.marker(i), markersize=4,
                markeredgecolor="white", markeredgewidth=0.4, **look)  # fmt: skip
    ax.set_ylim(0, 1.08)
    ax.set_xlim(left=0)
    style.dress(ax, "Learning rate", "optimiser step", "share of the peak")
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def plot_gradient_norms(steps: Any, norms: Any, *, limit: float | None = None, ax: Axes | None = None) -> Axes:
    """The gradient's norm at each step, before clipping; steps above `limit` are marked: those were shortened."""
    steps, norms = np.asarray(steps, np.int64), np.asarray(norms, np.float64)
    ax = ax or style.new_axes(5.8, 3.4)
    ax.plot(steps, norms, color=style.TRAINING, linewidth=1.4, marker="D", markersize=4, markeredgecolor="white",
            markeredgewidth=0.4, label="norm")  # fmt: skip
    if limit is not None:
        is_clipped = norms > limit
        ax.axhline(limit, color=style.GREY, linewidth=1.1, linestyle="--", label=f"clipped to {limit:g}")
        ax.plot(steps[is_clipped], norms[is_clipped], "o", color=style.REJECTED, markersize=8, fillstyle="none",
                label="shortened steps")  # fmt: skip
    ax.set_ylim(0, max(1.12 * float(norms.max(initial=0.0)), 1.12 * (limit or 0.0)))
    style.dress(ax, "Gradient norm", "optimiser step", "norm before clipping")
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def plot_cuts(weights: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """What each pair of a batch counts under several ways of averaging; `weights` gives each array (B,) its name.

    The mean over the batch gives every pair 1/B, the dashed line. A way that leaves the line favours some pairs.
    """
    ax = ax or style.new_axes(6.2, 3.2)
    arrays = {name: np.asarray(values, np.float64) for name, values in weights.items()}
    num_pairs = len(next(iter(arrays.values())))
    width = 0.8 / len(arrays)
    for i, (name, values) in enumerate(arrays.items()):
        at = np.arange(1, num_pairs + 1) + (i - (len(arrays) - 1) / 2) * width
        ax.bar(at, values, 0.92 * width, color=_COLORS[i % 3], hatch=("", "//", "..")[i % 3],
               edgecolor="white", linewidth=0.5, label=style.plain(name))  # fmt: skip
    ax.axhline(1 / num_pairs, color=style.INK, linewidth=1, linestyle="--")
    ax.set_xlim(0.4, num_pairs + 1.0)
    ax.text(num_pairs + 0.52, 1 / num_pairs, f"1/{num_pairs}", ha="left", va="bottom", **style.text())
    highest = max(float(values.max()) for values in arrays.values())
    ax.set_ylim(0, 1.35 * highest)
    style.dress(ax, "What each pair counts", "pair of the batch", "weight in the loss")
    ax.set_xticks(np.arange(1, num_pairs + 1))
    style.add_legend(ax, loc="upper left", ncols=len(arrays))
    return ax
