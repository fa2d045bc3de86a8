"""β × learning rate: what came of each cell, as a table of colours and numbers; and what seeds do to it.

A row is one cell: {"beta": 0.2, "learning_rate": 4e-4, "reward": 2.6, "kl": 0.8, …}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from dpo_lab.workbench.plots import style

Rows = Sequence[Mapping[str, Any]]


class Measure(NamedTuple):
    """How one number of a cell is shown."""

    title: str
    format: str  # empty: as many digits as the size asks for
    is_log: bool = False
    limits: tuple[float, float] | None = None  # of the colours; None takes what there is

    def written(self, value: float) -> str:
        """The value as its cell shows it."""
        if self.format:
            return self.format.format(value)
        return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 10 else f"{value:.0f}"


MEASURES: dict[str, Measure] = {
    "reward": Measure("True reward (mean per answer)", "{:.2f}"),
    "success": Measure("Answers that do all that was asked", "{:.0%}", limits=(0, 1)),
    "well_formed": Measure("Well-formed answers", "{:.0%}", limits=(0, 1)),
    "kl": Measure("KL from the reference (nats per answer)", "", is_log=True),
    "accuracy": Measure("Held-out pairs ranked right", "{:.0%}", limits=(0.5, 1)),
}


def table_of(rows: Rows, measure: str) -> tuple[list[float], list[float], np.ndarray]:
    """β (rising), learning rates (rising) and the values (β, learning rate); nan where a cell was not computed."""
    betas = sorted({row["beta"] for row in rows})
    rates = sorted({row["learning_rate"] for row in rows})
    values = np.full((len(betas), len(rates)), np.nan)
    for row in rows:
        value = row.get(measure)
        values[betas.index(row["beta"]), rates.index(row["learning_rate"])] = math.nan if value is None else value
    return betas, rates, values


def plot_map(rows: Rows, measure: str, *, outlined: Mapping[str, Any] | None = None, ax: Axes | None = None) -> Axes:
    """One measure over β and learning rate; the number stands in its cell, dark on light or light on dark.

    `outlined`: a row whose cell gets a frame.
    """
    if not rows:
        raise ValueError("there is no cell to draw: the rows are empty; compute some")
    spec = MEASURES[measure]
    betas, rates, values = table_of(rows, measure)
    ax = ax or style.new_axes(0.9 + 0.75 * len(rates), 1.0 + 0.42 * len(betas))
    known = values[np.isfinite(values)]
    low, high = spec.limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    if spec.is_log:
        low = max(low, 1e-3)
        norm: Normalize = LogNorm(low, max(high, low * 1.01))
        shown = np.maximum(values, low)
    else:
        norm, shown = Normalize(low, high if high > low else low + 1e-9), values
    colours = colormaps["cividis"].with_extremes(bad="white")  # made for readers with and without colour vision
    ax.imshow(np.ma.masked_invalid(shown), origin="lower", aspect="auto", cmap=colours, norm=norm)
    for i, j in np.ndindex(values.shape):
        if math.isnan(values[i, j]):
            continue
        color = style.text_color(*colours(norm(shown[i, j]))[:3])
        ax.text(j, i, spec.written(float(values[i, j])), ha="center", va="center", **style.text(8.5, color))
    if outlined is not None:
        corner = (rates.index(outlined["learning_rate"]) - 0.5, betas.index(outlined["beta"]) - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=2.5, clip_on=False))
    style.dress(ax, spec.title, "learning rate", "β")
    ax.set_xticks(range(len(rates)), [f"{rate:.0e}".replace("e-0", "e-") for rate in rates])
    ax.set_yticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    ax.grid(visible=False)
    return ax


def map_figure(
    rows: Rows, measures: Sequence[str], *, outlined: Mapping[str, Any] | None = None, title: str = ""
) -> style.Picture:
    """Several measures of the same cells side by side, in rows of two; the cell of the row `outlined` gets a frame."""
    betas, rates, _ = table_of(rows, measures[0])
    columns = min(2, len(measures))
    num_rows = math.ceil(len(measures) / columns)
    wide = max(4.4, 1.0 + 0.62 * len(rates))  # room for the titles
    figure = style.new_figure(columns * wide, (0.4 if title else 0.1) + num_rows * (1.05 + 0.36 * len(betas)))
    for measure, ax in zip(measures, style.grid_of(figure, len(measures), columns), strict=True):
        plot_map(rows, measure, outlined=outlined, ax=ax)
    style.add_title(figure, title)
    return figure


def plot_spread(
    groups: Mapping[str, Sequence[float]],
    ylabel: str,
    *,
    pooled: float | None = None,
    title: str = "Seeds against knobs",
    ax: Axes | None = None,
) -> Axes:
    """Each setting's seeds as points, beside them their mean with one standard deviation: is the difference real?

    `pooled`: one deviation for all settings, where each has too few seeds for its own.
    """
    if not groups or any(len(values) == 0 for values in groups.values()):
        raise ValueError(f"every setting needs at least one value, got {dict(groups)}; run it with a seed or more")
    ax = ax or style.new_axes(max(4.2, 1.2 + 1.15 * len(groups)), 3.4)
    for place, values in enumerate(groups.values()):
        array = np.asarray(values, float)
        ax.plot(np.full(len(array), place - 0.12), array, style.marker(place), color=style.color(place), markersize=6,
                markeredgecolor="white")  # fmt: skip
        if len(array) > 1 or pooled is not None:
            bar = {"fmt": "_", "color": style.INK, "capsize": 4, "markersize": 14}
            ax.errorbar(place + 0.12, array.mean(), pooled or array.std(ddof=1), **bar)
    style.dress(ax, style.plain(title), "", style.plain(ylabel))
    ax.set_xticks(range(len(groups)), [style.plain(name) for name in groups])
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.grid(visible=False, axis="x")
    return ax


def describe_spread(groups: Mapping[str, Sequence[float]]) -> str:
    """What `plot_spread` shows, in words."""
    parts = []
    for name, values in groups.items():
        array = np.asarray(values, float)
        spread = f" ± {array.std(ddof=1):.2g}" if len(array) > 1 else ""
        parts.append(f"{name} {array.mean():.3g}{spread}")
    return f"Mean and standard deviation over seeds: {'; '.join(parts)}."


def plot_accuracy_against_form(rows: Rows, labels: Sequence[str], *, ax: Axes | None = None) -> Axes:
    """Two curves over a knob, `labels`: pairs ranked right, and answers that are well-formed. What one hides of the
    other."""
    ax = ax or style.new_axes(5.6, 3.4)
    places = np.arange(len(rows))
    for name, title, colour, marker, line in (
        ("accuracy", "held-out pairs ranked right", style.BLUE, "o", "-"),
        ("well_formed", "well-formed answers", style.PALETTE[3], "s", "--"),
        ("success", "answers that do all that was asked", style.PALETTE[2], "^", "-."),
    ):
        if all(name in row for row in rows):
            ax.plot(places, [row[name] for row in rows], line, marker=marker, color=colour, markersize=6, label=title)
    ax.axhline(0.5, color=style.GREY, linewidth=0.8, linestyle=":")
    style.dress(ax, "What accuracy does not see", "learning rate", "share")
    ax.set_xticks(places, [style.plain(label) for label in labels])
    ax.set_ylim(0, 1.03)
    ax.legend(fontsize=8, loc="lower left", frameon=False)
    return ax
