"""How the implicit-reward margins of held-out pairs are spread, before and after training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dpo_lab.workbench.plots import style


def plot_margins(after: Any, before: Any = None, *, ax: Axes | None = None) -> Axes:
    """A histogram of implicit-reward margins of held-out pairs, after and (if given) before training.

    Pairs below 0 are ranked the wrong way round; their share is written beside the bars. Where policy and reference
    were the same, every margin before is 0 and is drawn as a line.
    """
    after = _finite(after, "after")
    before = None if before is None else _finite(before, "before")
    ax = ax or style.new_axes(5.8, 3.4)
    edges = edges_through_zero(after if before is None else np.concatenate([after, before]))
    ax.hist(after, edges, color=style.TRAINING, alpha=0.75, edgecolor="white", linewidth=0.5,
            label=f"after: {_share_below(after)}")  # fmt: skip
    if before is not None and np.ptp(before) == 0:
        ax.axvline(before[0], color=style.INK, linestyle="--", linewidth=1.6, label=f"before: all {before[0]:.3g}")
    elif before is not None:
        ax.hist(before, edges, histtype="step", color=style.INK, linestyle="--", linewidth=1.6,
                label=f"before: {_share_below(before)}")  # fmt: skip
    ax.axvline(0, color=style.GREY, linewidth=0.9)
    if edges[0] < 0:
        ax.axvspan(edges[0], 0, color=style.REJECTED, alpha=0.08, zorder=0)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_ylim(0, ax.get_ylim()[1] * 1.25)  # room for the legend above the bars
    style.dress(ax, "Margins of held-out pairs", "implicit reward, chosen − rejected (β × nats)", "pairs")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    style.add_legend(ax, ncols=2, loc="upper left")
    return ax


def describe_margins(after: Any, before: Any = None) -> str:
    """What `plot_margins` shows, in words."""

    def one(when: str, margins: np.ndarray) -> str:
        low, middle, high = np.quantile(margins, [0.05, 0.5, 0.95])
        spread = f"the median is {middle:.3g}, nine in ten lie from {low:.3g} to {high:.3g}"
        return f"{when} training {spread}, {_share_below(margins)}"

    after = _finite(after, "after")
    sentences = [] if before is None else [one("before", _finite(before, "before"))]
    return f"Histogram of the margins of {len(after)} held-out pairs: {'; '.join([*sentences, one('after', after)])}."


def _finite(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be one finite margin per pair, got shape {array.shape} with "
            f"{int((~np.isfinite(array)).sum())} values that are no numbers; look at the pairs that scored so"
        )
    return array


def edges_through_zero(values: np.ndarray, num_bins: int = 36) -> list[float]:
    """Bin edges of equal width, one of them exactly 0, so that no bar mixes right with wrong."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    width = (high - low) / num_bins or 0.1
    # One bin more on the right: numpy counts a value on an edge to the right bin, and a maximum may lie on one.
    edges = [width * i for i in range(math.floor(low / width), math.floor(high / width) + 2)]
    return [min(edges[0], low), *edges[1:-1], max(edges[-1], high)]  # rounding must not push a value out


def _share_below(margins: np.ndarray) -> str:
    ties = f", {100 * (margins == 0).mean():.3g} % at 0" if (margins == 0).any() else ""
    return f"{100 * (margins < 0).mean():.3g} % below 0{ties}"
