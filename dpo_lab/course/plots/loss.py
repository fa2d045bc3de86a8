"""Pictures of the DPO loss: its value and its pull on a pair, and quantities on their way as a policy learns.

h is the gap of the two log-ratios, in nats: log π/π_ref of the chosen answer minus that of the rejected one.
Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7 and the gradient in Section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from dpo_lab.workbench.plots import style

WIDEST_GAP = 30.0  # nats, at either end of the picture


def loss_at(gap: Any, beta: float) -> np.ndarray:
    """−log σ(β·h), nats."""
    _check(beta)
    return np.logaddexp(0, -beta * np.asarray(gap, np.float64))


def weight_at(gap: Any, beta: float) -> np.ndarray:
    """β·σ(−β·h): how hard the pair pulls, the loss's slope with its sign turned."""
    _check(beta)
    return beta * (1 - np.tanh(beta * np.asarray(gap, np.float64) / 2)) / 2


def plot_loss(gap: float, beta: float, *, ax: Axes | None = None) -> Axes:
    """The loss of a pair against its gap h, with one gap marked and the tangent there, whose slope is −weight."""
    ax = ax or style.new_axes(5.2, 3.8)
    at = np.linspace(-WIDEST_GAP, WIDEST_GAP, 481)
    here, slope = float(loss_at(gap, beta)), -float(weight_at(gap, beta))
    top = max(3.5, float(loss_at(-WIDEST_GAP, beta)) * 1.08)
    ax.plot(at, loss_at(at, beta), color=style.CHOSEN, linewidth=2.4, label=f"loss, β = {beta:.3g}")
    near = gap + np.array([-9.0, 9.0])
    label = f"tangent, slope {slope:.3f}".replace("-", "−")
    ax.plot(near, here + slope * (near - gap), "--", color=style.ORANGE, linewidth=2, label=label)
    ax.axhline(np.log(2), color=style.GREY, linewidth=0.9, linestyle=":")
    ax.text(WIDEST_GAP, np.log(2), "log 2 ", ha="right", va="bottom", **style.text(9))
    ax.plot([gap], [here], "o", color=style.ORANGE, markersize=10, markeredgecolor=style.INK, zorder=3)
    ax.set(xlim=(-WIDEST_GAP, WIDEST_GAP), ylim=(0, top))
    style.dress(ax, "What a pair costs", "log-ratio gap h (nats)", "loss −log σ(βh) (nats)")
    style.add_legend(ax, loc="upper right")
    return ax


def plot_weight(gap: float, beta: float, *, ax: Axes | None = None) -> Axes:
    """How hard a pair pulls, β·σ(−β·h), against its gap h: β where it is ranked wrongly, β/2 at the start, then 0."""
    ax = ax or style.new_axes(5.2, 3.8)
    at = np.linspace(-WIDEST_GAP, WIDEST_GAP, 481)
    ax.axvspan(-WIDEST_GAP, 0, color=style.REJECTED, alpha=0.07, zorder=0)
    ax.plot(at, weight_at(at, beta), color=style.CHOSEN, linewidth=2.4, label="weight βσ(−βh)")
    for level, name in ((beta, f"β = {beta:.3g}"), (beta / 2, f"β/2 = {beta / 2:.3g}")):
        ax.axhline(level, color=style.GREY, linewidth=0.9, linestyle=":")
        ax.text(WIDEST_GAP, level, f"{name} ", ha="right", va="bottom", **style.text(9))
    here = float(weight_at(gap, beta))
    ax.plot([gap], [here], "o", color=style.ORANGE, markersize=10, markeredgecolor=style.INK, zorder=3,
            label=f"h = {gap:.1f}: weight {here:.3f}".replace("-", "−"))  # fmt: skip
    ax.text(-WIDEST_GAP, 0.03 * beta, " ranked wrongly", va="bottom", **style.text(9))
    ax.set(xlim=(-WIDEST_GAP, WIDEST_GAP), ylim=(0, 1.42 * beta))
    style.dress(ax, "How hard it pulls", "log-ratio gap h (nats)", "weight (loss per nat)")
    style.add_legend(ax, loc="upper right")
    return ax


def loss_figure(gap: float, beta: float) -> style.Picture:
    """The loss and the weight of its gradient, side by side, with one gap marked in both."""
    figure = style.new_figure(9.2, 3.8)
    left, right = figure.subplots(1, 2)
    plot_loss(gap, beta, ax=left)
    plot_weight(gap, beta, ax=right)
    return figure


def describe_loss(gap: float, beta: float) -> str:
    """What `loss_figure` shows, in words."""
    loss, weight = float(loss_at(gap, beta)), float(weight_at(gap, beta))
    return (
        f"Two curves against the log-ratio gap h, for β = {beta:.3g}. The loss falls from a straight slope on the left "
        f"to zero on the right and crosses log 2 at h = 0. The weight falls from β = {beta:.3g} on the left, through "
        f"{beta / 2:.3g} at h = 0, to zero. At h = {gap:.1f} nats the loss is {loss:.3f} and the weight {weight:.3f}."
    )


def plot_courses(
    steps: Any, courses: Mapping[str, Any], *, title: str, ylabel: str, levels: Mapping[str, float] | None = None,
    is_log: bool = False, colors: Sequence[str] = style.PALETTE, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Several quantities against the step of training; `levels` are values that they are to be compared with.

    With `is_log` the steps stand on a logarithmic axis, which starts at step 1.
    """
    steps = np.asarray(steps, np.float64)
    ax = ax or style.new_axes(5.8, 3.8)
    for i, (name, values) in enumerate(courses.items()):
        ax.plot(steps, np.asarray(values), linewidth=2, **style.look(i, name, color=colors[i % len(colors)]))
    ax.set_xlim(*((max(1.0, steps.min()), steps.max()) if is_log else (steps.min(), steps.max())))
    if is_log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    for name, level in (levels or {}).items():
        ax.axhline(level, color=style.GREY, linewidth=1, linestyle=(0, (1, 1.5)), zorder=0.5)
        ax.annotate(style.plain(name), (0.01, level), (0, 3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", **style.text(9))  # fmt: skip
    style.dress(ax, title, "gradient step", ylabel)
    style.add_legend(ax)
    return ax


def _check(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}; smaller values allow more drift from the reference")
