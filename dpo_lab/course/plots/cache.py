"""Pictures of the reference: how far training drifts without it, and what its numbers cost once they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch

from dpo_lab.workbench.plots import style

VERDICTS = {"found": "found, right", "computed": "computed, right", "stale": "stale: wrong, and silent"}
"""What a cache can do for a pair: the keys are what `plot_verdicts` takes."""


def plot_drift(curves: Mapping[str, tuple[Any, Any]], *, ax: Axes | None = None) -> Axes:
    """KL(π_θ‖π_ref) against the optimiser step, one line per run: `curves[name] = (steps, kl)`."""
    ax = ax or style.new_axes(6.4, 3.8)
    for i, (name, (steps, kl)) in enumerate(curves.items()):
        ax.plot(np.asarray(steps), np.asarray(kl, np.float64), linewidth=1.9, **style.look(i, name))
    style.dress(ax, "How far the policy has gone from the reference", "optimiser step",
          r"KL($\pi_\theta \,\Vert\, \pi_{\rm ref}$) (nats)")  # fmt: skip
    ax.set_ylim(0, 1.3 * ax.get_ylim()[1])  # room for the legend above the lines
    style.add_legend(ax, ncols=2, loc="upper left")
    return ax


def plot_before_after(seconds: Mapping[str, float], megabytes: Mapping[str, float]) -> style.Picture:
    """Two panels of bars: the CPU time of some training steps, and the memory that the reference holds."""
    figure = style.new_figure(9.4, 2.6)
    panels = (("Time of the same steps", "CPU seconds", seconds), ("Held for the reference", "MB", megabytes))
    for ax, (title, unit, bars) in zip(figure.subplots(1, 2), panels, strict=True):
        values = np.array(list(bars.values()), np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{title}: every bar must be a finite number >= 0, got {dict(bars)}")
        colors = [style.VERMILLION, style.BLUE, style.GREEN, style.ORANGE][: len(values)]
        ax.barh(range(len(values)), values, color=colors, height=0.62)
        for i, value in enumerate(values):
            text = f"  {_amount(value)} {'MB' if unit == 'MB' else 's'}"
            ax.text(value, i, text, va="center", fontsize=9, color=style.INK)
        style.dress(ax, title, unit, "")
        style.name_rows(ax, bars)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.32 * max(float(values.max()), 1e-12))
    return figure


def plot_verdicts(changes: Sequence[str], verdicts: Mapping[str, Sequence[str]], *, ax: Axes | None = None) -> Axes:
    """A table of colours: what each cache does after each change. Verdicts are the keys of `VERDICTS`."""
    known = list(VERDICTS)
    for name, column in verdicts.items():
        unknown = [verdict for verdict in column if verdict not in known]
        if unknown or len(column) != len(changes):
            raise ValueError(
                f"{name} must have one of {', '.join(known)} for each of {len(changes)} changes, got {list(column)}"
            )
    table = np.array([[known.index(column[i]) for column in verdicts.values()] for i in range(len(changes))])
    ax = ax or style.new_axes(7.6, 1.5 + 0.42 * len(changes))
    colors = (style.GREEN, style.BLUE, style.VERMILLION)
    ax.imshow(table, cmap=ListedColormap([to_rgb(color) for color in colors]), vmin=0, vmax=2, aspect="auto",
              alpha=0.85)  # fmt: skip
    for i, row in enumerate(table):
        for j, which in enumerate(row):
            ax.text(j, i, known[which], ha="center", va="center", fontsize=9, color="white", fontweight="bold")
    style.dress(ax, "After a change, what does the cache give?", "", "")
    ax.grid(visible=False)
    ax.set_xticks(range(len(verdicts)), [style.plain(name) for name in verdicts])
    ax.set_yticks(range(len(changes)), [style.plain(change) for change in changes])
    ax.spines[:].set_visible(False)
    for border in np.arange(0.5, len(changes) - 1):
        ax.axhline(border, color="white", linewidth=2)
    for border in np.arange(0.5, len(verdicts) - 1):
        ax.axvline(border, color="white", linewidth=2)
    keys = [Patch(color=color, label=text) for color, text in zip(colors, VERDICTS.values(), strict=True)]
    ax.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.42, -0.1), ncols=3, fontsize=8, frameon=False,
              labelcolor=style.GREY)  # fmt: skip
    return ax


def describe_verdicts(changes: Sequence[str], verdicts: Mapping[str, Sequence[str]]) -> str:
    """What `plot_verdicts` shows, in words."""
    parts = [
        f"{name}: " + ", ".join(f"{change} → {verdict}" for change, verdict in zip(changes, column, strict=True))
        for name, column in verdicts.items()
    ]
    return f"A table of {len(changes)} changes and {len(verdicts)} caches. {'. '.join(parts)}."


def _amount(value: float) -> str:
    """A number to three figures, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"
