"""Pictures of a run on several devices: what each must hold, how a batch is cut, whether two curves are one.

Memory in bytes, drawn in MB or GB of 10⁶ and 10⁹ bytes. A batch's cut is a table: processes by passes, pairs in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from dpo_lab.workbench.plots import style

PARTS = {"weights": style.BLUE, "gradients": style.ORANGE, "Adam's moments": style.GREEN}
HATCHES = ("", "///", "...")
MOST_CELLS = 16
"""Processes or passes that a cut can draw one by one; of a larger one the first are drawn, and the label says so."""


def plot_device_memory(
    ways: Mapping[str, Mapping[str, float]],
    *,
    live_references: Mapping[str, float] | None = None,
    device: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """A stacked bar per way of training: bytes on each device for weights, gradients and Adam's moments.

    live_references: bytes of a second model for each way, drawn as an outline behind its bar and not counted: what
        stored log-probs spare.
    device: bytes of a device, drawn as a line; 0 draws none.
    """
    ax = ax or style.new_axes(6.4, 3.4)
    spared = {way: (live_references or {}).get(way, 0.0) for way in ways}
    longest = max(sum(parts.values()) + spared[way] for way, parts in ways.items())
    unit, name = (1e9, "GB") if longest >= 1e9 else (1e6, "MB")
    is_named = False
    for i, (way, parts) in enumerate(ways.items()):
        left = 0.0
        for (part, size), hatch in zip(parts.items(), HATCHES, strict=True):
            ax.barh(i, size / unit, left=left / unit, height=0.6, color=PARTS[part], hatch=hatch, edgecolor="white",
                    linewidth=0.4, label=part if i == 0 else None)  # fmt: skip
            left += size
        total = f"  {amount(left)}"
        if spared[way]:
            ax.barh(i, spared[way] / unit, left=left / unit, height=0.6, facecolor="none", edgecolor=style.GREY,
                    linestyle=":", linewidth=1.1, label=None if is_named else "a live reference, spared")  # fmt: skip
            total, is_named = f"{total} + {amount(spared[way])}", True
        ax.text((left + spared[way]) / unit, i, total, va="center", **style.text(8.5))
    if 0 < device <= 1.25 * longest:
        label = f"a device of {amount(device)}"
        ax.axvline(device / unit, color=style.VERMILLION, linewidth=1.4, linestyle="--", label=label)
    style.dress(ax, "Each device holds (activations come on top)", name, "")
    style.name_rows(ax, ways)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.4 * longest / unit)
    ax.set_ylim(len(ways) - 0.5, -0.5 - 0.42 * len(ways))  # room for the legend above the bars
    style.add_legend(ax, loc="upper right", ncols=2)
    return ax


def plot_batch_cut(cut: Sequence[Sequence[int]], *, ax: Axes | None = None) -> Axes:
    """A table of processes and passes with the pairs that go through the model in each; a pass of 0 counts nothing."""
    table = np.array(cut, np.int64)
    shown = table[:MOST_CELLS, :MOST_CELLS]
    ax = ax or style.new_axes(5.6, 3.4)
    for (row, column), pairs in np.ndenumerate(shown):
        share = pairs / max(table.max(), 1)
        look: dict[str, Any] = {"color": style.BLUE, "alpha": 0.35 + 0.55 * share}
        if pairs == 0:
            look = {"color": style.PALE, "hatch": "xx"}
        ax.barh(row, 0.9, left=column - 0.45, height=0.8, edgecolor="white", linewidth=0.5, **look)
        letters = style.text(9 if shown.size <= 64 else 7, style.INK if share < 0.3 else "white")
        ax.text(column, row, str(pairs), ha="center", va="center", **letters)
    num_processes, num_passes = table.shape
    hidden = f"; the first {shown.shape[0]} × {shown.shape[1]} shown" if shown.shape != table.shape else ""
    style.dress(ax, f"{table.sum()} pairs: {_counted(num_processes, 'process', 'processes')}, "
          f"{_counted(num_passes, 'pass', 'passes')} each", f"pass{hidden}", "process")  # fmt: skip
    ax.set_xlim(-0.6, shown.shape[1] - 0.4)
    ax.set_ylim(shown.shape[0] - 0.4, -0.6)
    ax.set_xticks(range(shown.shape[1]), [str(i + 1) for i in range(shown.shape[1])])
    ax.set_yticks(range(shown.shape[0]), [str(i) for i in range(shown.shape[0])])
    ax.grid(visible=False)
    return ax


def scaling_figure(
    ways: Mapping[str, Mapping[str, float]], cut: Sequence[Sequence[int]], *, live_references: Mapping[str, float] |
    None = None, device: float = 0.0, title: str = "",
) -> style.Picture:  # fmt: skip
    """Both panels beside each other: what each device holds, and how a step's pairs are cut."""
    figure = style.new_figure(10.2, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    plot_device_memory(ways, live_references=live_references, device=device, ax=left)
    plot_batch_cut(cut, ax=right)
    if title:
        heading = f"{style.plain(title)}: each device holds (activations on top)"
        left.set_title(heading, loc="left", fontweight="bold", **style.text(10.5))
    return figure


def describe_scaling(
    ways: Mapping[str, Mapping[str, float]], cut: Sequence[Sequence[int]], *, device: float = 0.0
) -> str:
    """What `scaling_figure` shows, in words."""
    totals = {way: sum(parts.values()) for way, parts in ways.items()}
    memory = "; ".join(f"{way} {amount(total)}" for way, total in totals.items())
    fits = [way for way, total in totals.items() if total < device]
    verdict = f" Below {amount(device)}: {', '.join(fits) or 'none of them'}." if device else ""
    num_pairs, num_idle = sum(map(sum, cut)), sum(pairs == 0 for own in cut for pairs in own)
    idle = f", {_counted(num_idle, 'pass', 'passes')} of them for nothing" if num_idle else ""
    return (
        f"Each device holds: {memory}.{verdict} A step of {num_pairs} pairs goes through "
        f"{_counted(len(cut), 'process', 'processes')} in {_counted(len(cut[0]), 'pass', 'passes')} each{idle}."
    )


def plot_same_curves(
    curves: Mapping[str, tuple[Any, Any]], *, ylabel: str = "loss (nats)", ax: Axes | None = None
) -> Axes:
    """Curves that should be one, (steps, values) by name: each later one is thinner, so that all of them are seen."""
    ax = ax or style.new_axes(6.4, 3.6)
    for i, (name, (steps, values)) in enumerate(curves.items()):
        thin = min(i, 2)
        ax.plot(np.asarray(steps), np.asarray(values, np.float64), style.line(i),
                color=style.PALETTE[(5, 0, 3)[i % 3]], marker=style.marker(i), markersize=9 - 3 * thin,
                linewidth=6 - 2.2 * thin, label=style.plain(name))  # fmt: skip
    style.dress(ax, "The same steps", "optimiser step", ylabel)
    style.count_steps(ax)
    style.add_legend(ax)
    return ax


def plot_growth(per_pair: Mapping[str, float], num_pairs: Sequence[float], *, ax: Axes | None = None) -> Axes:
    """Bytes against the number of pairs, both in powers of ten, a line for each thing that grows with the pairs."""
    ax = ax or style.new_axes(6.4, 3.8)
    pairs = np.asarray(num_pairs, np.float64)
    for i, (name, size) in enumerate(per_pair.items()):
        look = style.look(i, f"{name}: {size:.0f} bytes a pair")
        ax.plot(pairs, size * pairs, linewidth=1.9, marker=style.marker(i), markersize=5, **look)
    style.dress(ax, "What grows with the pairs", "pairs", "bytes")
    ax.set_xscale("log")
    ax.set_yscale("log")
    style.add_legend(ax, loc="upper left")
    return ax


def amount(size: float) -> str:
    """Bytes to two or three figures, with their unit."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            value = size / unit
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.3g} {name}"
    return f"{size:.0f} bytes"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
