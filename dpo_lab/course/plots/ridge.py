"""How the margins of held-out pairs spread out over training: one density per evaluation, one above the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.workbench.plots import style

_TALL = 1.7  # a ridge may reach this many lines up, so neighbours overlap a little


def plot_ridge(
    steps: Sequence[int], margins: Sequence[Any], *, title: str = "Margins of held-out pairs over training", limit:
    float | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """A density of the margins at each step, the first at the top; left of 0 pairs are ranked the wrong way round.

    steps: S numbers in order; margins: S arrays of one margin per pair. All ridges have the same area. Where no pair
    has moved yet, as before the first step, a density would be a needle without end: there stands an upright line. The
    axis ends at ±`limit` (None: where 99 pairs in 100 of all steps lie). The share ranked wrong is written beside each.
    """
    values = [np.asarray(one, np.float64) for one in margins]
    if len(values) != len(steps) or not len(values):
        raise ValueError(f"every step needs its margins, got {len(steps)} steps and {len(values)} lists of margins")
    for step, one in zip(steps, values, strict=True):
        if one.ndim != 1 or not len(one) or not np.isfinite(one).all():
            raise ValueError(f"the margins of step {step} must be one finite number per pair, got shape {one.shape}")
    ax = ax or style.new_axes(6.0, 1.3 + 0.42 * len(values))
    if limit is None:
        limit = max(float(np.quantile(np.abs(np.concatenate(values)), 0.99)), 1e-3)
    grid = np.linspace(-limit, limit, 401)
    densities = [density(one, grid, floor=limit / 40) for one in values]
    still = [float(np.abs(one).max()) < limit / 1000 for one in values]
    tallest = max((one.max() for one, is_still in zip(densities, still, strict=True) if not is_still), default=1.0)
    for i, (one, curve) in enumerate(zip(values, densities, strict=True)):
        base, height = -i, np.zeros_like(grid) if still[i] else curve / tallest * _TALL
        order = 2 * i
        if still[i]:
            ax.vlines(0, base, base + 0.8, color=style.INK, linewidth=2.5, zorder=order + 1)
        ax.fill_between(grid, base, base + height, color="white", linewidth=0, zorder=order)
        for which, color in ((grid >= 0, style.TRAINING), (grid <= 0, style.REJECTED)):
            ax.fill_between(grid[which], base, base + height[which], color=color, alpha=0.65, linewidth=0, zorder=order)
        ax.plot(grid, base + height, color=style.INK, linewidth=0.8, zorder=order + 1)
        share = ((one < 0).mean() + (one == 0).mean() / 2) * 100  # a tie counts as half wrong
        ax.text(limit * 1.02, base + 0.12, f"{share:.0f} % wrong", ha="left", **style.text(7.5))
    ax.axvline(0, color=style.GREY, linewidth=0.9, zorder=2 * len(values) + 1)
    ax.set_xlim(-limit, limit * 1.22)
    ax.set_ylim(-len(values) + 0.85, _TALL + 0.1)
    style.dress(ax, title, "implicit reward, chosen − rejected (β × nats)", "optimiser step")
    ax.set_yticks([-i for i in range(len(values))], [str(step) for step in steps])
    ax.grid(visible=False, axis="y")
    return ax


def density(values: np.ndarray, grid: np.ndarray, *, floor: float = 0.0) -> np.ndarray:
    """A Gaussian kernel density on `grid`; width by Silverman's rule (1986, Eq. 3.31), at least `floor`."""
    low, high = np.quantile(values, [0.25, 0.75])
    spread = min(values.std(), (high - low) / 1.34) or values.std()
    width = max(0.9 * spread * len(values) ** -0.2, floor) or 1e-3
    kernels = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2)
    return kernels.mean(1) / (width * np.sqrt(2 * np.pi))
