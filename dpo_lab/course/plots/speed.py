"""Where a training step's time and memory go: rates, a waterfall, queues, layouts, what is held, running sums.

Seconds, bytes and operations per second come in as numbers; nothing here measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dpo_lab.workbench.plots import style

_HELD = {"weights": style.BLUE, "moments": style.GREEN, "gradients": style.VERMILLION, "kept": style.ORANGE}
_HELD_NAMES = {"weights": "weights", "moments": "optimiser's moments", "gradients": "gradients",
               "kept": "saved for the backward pass"}  # fmt: skip


def plot_rates(rates: Mapping[str, Sequence[Sequence[float]]], *, title: str = "Matrix products",
               ax: Axes | None = None) -> Axes:  # fmt: skip
    """Operations per second against the size of square matrices, both logarithmic: name → rows of (size, rate)."""
    if not rates or not all(len(rows) for rows in rates.values()):
        raise ValueError(f"every precision needs at least one (size, rate), got {dict(rates)}")
    ax = ax or style.new_axes(5.8, 3.6)
    for i, (name, rows) in enumerate(rates.items()):
        sizes, values = np.asarray(rows, np.float64).T
        ax.plot(sizes, values / 1e9, linewidth=1.8, marker=style.marker(i), markersize=5, **style.look(i, name))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    every = sorted({int(size) for rows in rates.values() for size, _ in rows})
    ax.set_xticks(every, [str(size) for size in every])
    style.dress(ax, title, "rows and columns of the matrices", "10⁹ operations per second")
    style.add_legend(ax)
    return ax


def plot_queue(history: Sequence[tuple[float, float, float]], clocks: Mapping[str, float], *,
               title: str = "A queue, and two clocks", ax: Axes | None = None) -> Axes:  # fmt: skip
    """What program and device do: `history` is SimulatedGPU's, `clocks` names moments on the program's clock."""
    if not history:
        raise ValueError("there is no work to draw; launch some first")
    ax = ax or style.new_axes(7.2, 2.6)
    before = 0.0
    for i, (written, began, ended) in enumerate(history):
        color = (style.BLUE, style.SKY)[i % 2]
        ax.barh(1, written - before, left=before, height=0.5, color=color, edgecolor="white")
        ax.barh(0, ended - began, left=began, height=0.5, color=color, edgecolor="white")
        before = written
    for i, (name, moment) in enumerate(clocks.items()):
        color, line = ((style.VERMILLION, "--"), (style.GREEN, "-"))[i % 2]
        label = style.plain(f"{name}: {moment:g} ms")
        ax.axvline(moment, color=color, linewidth=1.8, linestyle=line, label=label)
    style.dress(ax, title, "milliseconds", "")
    style.name_rows(ax, ["the device works", "the program queues"])
    ax.set_ylim(-0.5, 2.1)
    style.add_legend(ax, loc="upper right", ncols=2)
    return ax


def plot_layouts(separate: Any, shared: Sequence[Sequence[int]]) -> style.Picture:
    """Two grids of tokens: the same pairs as they go through the model. 0 padding, 1 prompt, 2 chosen, 3 rejected.

    separate: (R, T). shared: the tokens of each pair, which follow one another in one long row; a line for each pair.
    """
    separate = np.asarray(separate)
    lines = np.full((len(shared), max(separate.shape[1], *map(len, shared))), -1)
    for line, pair in zip(lines, shared, strict=True):
        line[: len(pair)] = pair
    colors = ListedColormap(["white", style.PALE, style.GREY, style.BLUE, style.VERMILLION])
    figure = style.new_figure(8.4, 3.4)
    panels = zip(
        figure.subplots(1, 2), (separate, lines), ("Separate rows", "One shared row, a line per pair"), strict=True
    )
    for ax, grid, title in panels:
        ax.imshow(grid + 1, cmap=colors, vmin=-0.5, vmax=4.5, aspect="auto", interpolation="nearest")
        style.dress(ax, f"{title}: {(grid >= 0).sum():,} tokens", "token", "row" if grid is separate else "pair")
        ax.set_xlim(-0.5, lines.shape[1] - 0.5)
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(visible=False)
    names = ("padding", "prompt", "chosen", "rejected")
    keys = [
        Patch(facecolor=colors(i + 1), edgecolor=style.GREY, linewidth=0.4, label=name) for i, name in enumerate(names)
    ]
    figure.legend(handles=keys, ncols=4, loc="outside lower center", fontsize=8, frameon=False)
    return figure


def plot_memory(curve: Mapping[str, Any], *, title: str = "What a step holds", top: float | None = None,
                ax: Axes | None = None) -> Axes:  # fmt: skip
    """Bytes held, one kind above the other, event by event, as `MemoryBook.curve` gives them; phases named on top.

    The device's own meter, where there is one, is a line: what it shows above the areas are operations at work.
    top: the upper end of the axis in bytes, to compare two pictures.
    """
    ax = ax or style.new_axes(7.6, 3.4)
    held = np.array([curve[kind] for kind in _HELD], np.float64)
    highest = max(held.sum(0).max(), max(curve["device"] or [0.0]), top or 0.0)
    unit, name = next((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes")) if highest >= u)
    events = np.arange(held.shape[1])
    ax.stackplot(events, held / unit, colors=list(_HELD.values()), labels=[_HELD_NAMES[kind] for kind in _HELD],
                 step="post", alpha=0.85, linewidth=0)  # fmt: skip
    if curve["device"]:
        ax.plot(events, np.asarray(curve["device"]) / unit, color=style.INK, linewidth=1.2, label="torch's own meter")
    borders = [(phase, event) for phase, event in curve["phases"] if phase in ("forward", "backward", "step")]
    for phase, event in borders:
        ax.axvline(event, color=style.GREY, linewidth=0.8, linestyle=":")
        if len(borders) <= 8:
            side = "right" if phase == "step" else "left"  # the next forward pass begins right after it
            ax.text(event, 1.27 * highest / unit, f" {phase} ", va="top", ha=side, **style.text(7))
    style.dress(ax, title, "event: something is saved or freed", f"{name} held")
    ax.set_xlim(0, max(len(events) - 1, 1))
    ax.set_ylim(0, 1.3 * highest / unit)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, fontsize=8, frameon=False)
    return ax


def plot_running_sums(sums: Mapping[str, Any], *, title: str = "A sum over tokens, as it grows",
                      ax: Axes | None = None) -> Axes:  # fmt: skip
    """The sum of the first 1, 2, … tokens' log-probs, one line per way of adding: name → (T,) nats."""
    if not sums:
        raise ValueError("there is no sum to draw; give at least one name with its values")
    ax = ax or style.new_axes(6.2, 3.6)
    colors = (style.BLUE, style.VERMILLION, style.ORANGE)
    for i, (name, values) in enumerate(sums.items()):
        values = np.asarray(values, np.float64)
        look = style.look(i, f"{name}: {values[-1]:.0f} nats", color=colors[i % len(colors)])
        ax.plot(np.arange(1, len(values) + 1), values, linewidth=1.8, **look)
    style.dress(ax, title, "tokens added", "running sum (nats)")
    ax.set_xlim(left=0)
    style.add_legend(ax)
    return ax


def plot_waterfall(
    ways: Mapping[str, Mapping[str, float]],
    *,
    title: str = "Pairs per second, one change after the other",
) -> style.Picture:
    """What each change adds: device → way → pairs per second, each way with all changes before it; a panel per device.

    A pale bar is what the way before it reached, the coloured end is what the change won, or lost.
    """
    if not ways or not all(ways.values()):
        raise ValueError(f"every device needs at least one way with its pairs per second, got {dict(ways)}")
    figure = style.new_figure(7.2 if len(ways) == 1 else 10.4, 1.3 + 0.42 * max(map(len, ways.values())))
    for ax, (device, rates) in zip(figure.subplots(1, len(ways), squeeze=False)[0], ways.items(), strict=True):
        before = None
        for y, rate in enumerate(rates.values()):
            base, change = (rate, 0.0) if before is None else (min(before, rate), abs(rate - before))
            ax.barh(y, base, color=style.GREY if before is None else style.PALE, height=0.62)
            color, hatch = (style.BLUE, "") if before is None or rate >= before else (style.VERMILLION, "///")
            ax.barh(y, change, left=base, color=color, height=0.62, hatch=hatch, edgecolor="white", linewidth=0)
            note = "" if before is None else f"  (× {rate / before:.1f})"
            ax.text(base + change, y, f"  {rate:,.3g}{note}", va="center", **style.text())
            before = rate
        style.dress(ax, title if len(ways) == 1 else device, "pairs per second", "")
        style.name_rows(ax, rates)
        ax.invert_yaxis()
        ax.set_xlim(0, 1.3 * max(rates.values()))
    return figure
