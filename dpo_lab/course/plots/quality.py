"""How good answers are before and after training, job by job, judged by the true reward."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.workbench.plots import style


def plot_before_after_quality(
    before: Mapping[str, float], after: Mapping[str, float], counts: Mapping[str, int], *, ax: Axes | None = None
) -> Axes:
    """Bars of success for each job, before and after; whiskers are one standard error, √(p(1−p)/n).

    before, after: shares between 0 and 1 by the name of the job; counts: answers judged, by the same names.
    """
    if set(before) != set(after) or set(before) != set(counts):
        raise ValueError(f"before, after and counts must name the same jobs, got {set(before) ^ set(after) or counts}")
    ax = ax or style.new_axes(6.4, 3.4)
    place = np.arange(len(before))
    for shift, shares, label, color in ((-0.2, before, "before", style.GREY), (0.2, after, "after", style.TRAINING)):
        values = np.array([shares[name] for name in before])
        errors = np.sqrt(values * (1 - values) / np.array([counts[name] for name in before]))
        ax.bar(place + shift, values, 0.36, color=color, label=label, yerr=errors, ecolor=style.INK, capsize=3)
        for x, value, error in zip(place + shift, values, errors, strict=True):
            ax.text(x, value + error + 0.02, f"{value:.0%}", ha="center", va="bottom", fontsize=8, color=style.INK)
    style.dress(ax, "Answers that do all that was asked", "", "share of answers")
    ax.set_xticks(place, [f"{name}\n({counts[name]} answers)" for name in before])
    ax.set_ylim(0, 1.2)
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.grid(visible=False, axis="x")
    style.add_legend(ax, ncols=2, loc="upper right")
    return ax
