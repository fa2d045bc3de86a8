"""Chosen and rejected log-probs apart: where they go during training, and where each held-out pair went.

Changes are log π − log π_ref in nats, so 0 is the reference: a for the chosen answer, b for the rejected one, and the
gap h = a − b is what DPO pays for. S evaluations, N pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.course.plots.inputs import same_length
from dpo_lab.workbench.plots import style


def plot_sides(
    steps: Any, chosen: Any, rejected: Any, *, title: str = "Change of the mean log-prob", ax: Axes | None = None
) -> Axes:
    """The mean change of chosen and rejected log-probs against optimiser steps; the gap between them is shaded.

    All three have shape (S,). Both lines start at 0 where policy = reference, and both may fall.
    """
    steps, chosen, rejected = same_length(steps=steps, chosen=chosen, rejected=rejected)
    ax = ax or style.new_axes(5.8, 3.6)
    ax.fill_between(steps, rejected, chosen, color=style.TRAINING, alpha=0.15, linewidth=0, label="gap h")
    looks = (("chosen", chosen, style.CHOSEN, "-", "o"), ("rejected", rejected, style.REJECTED, "--", "s"))
    for label, values, color, line, marker in looks:
        ax.plot(steps, values, line, color=color, linewidth=1.8, marker=marker, markersize=5, markeredgecolor="white",
                markeredgewidth=0.6, label=label)  # fmt: skip
    ax.axhline(0, color=style.GREY, linewidth=0.9, zorder=0.5)
    style.dress(ax, title, "optimiser step", "log π − log π_ref (nats)")
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def plot_moves(
    chosen: Any, rejected: Any, *, title: str = "Where each pair went", limit: float | None = None, ax: Axes | None =
    None,
) -> Axes:  # fmt: skip
    """One point per pair: the change of the chosen log-prob to the right, of the rejected one upwards, in nats.

    Below the diagonal the gap is positive and the pair is ranked right. Left of the upright line the chosen answer has
    become less likely. The axes end at ±`limit` (None: where nine pairs in ten lie); points beyond are drawn at the
    border as hollow triangles. Arrays have shape (N,).
    """
    chosen, rejected = same_length(chosen=chosen, rejected=rejected)
    ax = ax or style.new_axes(4.8, 4.6)
    if limit is None:
        limit = max(float(np.quantile(np.abs(np.concatenate([chosen, rejected])), 0.9)) * 1.2, 1e-3)
    x, y = np.clip(chosen, -limit, limit), np.clip(rejected, -limit, limit)
    is_inside = (x == chosen) & (y == rejected)
    edge = np.array([-1.06 * limit, 1.06 * limit])
    ax.fill_between(edge, edge[0], edge, color=style.TRAINING, alpha=0.1, linewidth=0)
    ax.plot(edge, edge, color=style.GREY, linewidth=0.9, linestyle="--")
    for side in (ax.axhline, ax.axvline):
        side(0, color=style.GREY, linewidth=0.9, zorder=0.5)
    is_right = chosen > rejected
    looks = ((is_right, style.CHOSEN, "o", "ranked right"), (~is_right, style.REJECTED, "s", "ranked wrong"))
    for which, color, marker, label in looks:
        inside, outside = which & is_inside, which & ~is_inside
        dots: dict[str, Any] = {"s": 20, "marker": marker, "alpha": 0.75, "linewidths": 0}
        ax.scatter(x[inside], y[inside], color=color, label=f"{label}: {which.sum()}", **dots)
        ax.scatter(x[outside], y[outside], s=26, marker="^", facecolors="none", edgecolors=color, linewidths=1)
    ax.set_xlim(*edge)
    ax.set_ylim(*edge)
    ax.set_aspect("equal")
    box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for x_text, side, words in ((0.03, "left", "both less likely"), (0.97, "right", "chosen up, rejected down")):
        ax.text(x_text, 0.05, words, transform=ax.transAxes, ha=side, va="bottom", bbox=box, **style.text())
    style.dress(ax, title, "chosen: log π − log π_ref (nats)", "rejected: log π − log π_ref (nats)")
    style.add_legend(ax, loc="upper left")
    return ax


def count_moves(chosen: Any, rejected: Any) -> dict[str, int]:
    """How many pairs lie in each part of `plot_moves`: ranked right or wrong, with the chosen answer risen or fallen.

    A change of exactly 0 counts as risen, a tie as ranked wrong.
    """
    chosen, rejected = same_length(chosen=chosen, rejected=rejected)
    is_right, has_fallen = chosen > rejected, chosen < 0
    return {
        "right, chosen up": int((is_right & ~has_fallen).sum()),
        "right, chosen down": int((is_right & has_fallen).sum()),
        "wrong, chosen up": int((~is_right & ~has_fallen).sum()),
        "wrong, chosen down": int((~is_right & has_fallen).sum()),
    }
