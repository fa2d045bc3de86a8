"""Pictures of a finite world: the optimum against β, reward against KL, and DPO on its way to π*.

Probabilities come as arrays: Y responses to one prompt, B values of β, S steps. KL and rewards are means over prompts;
KL is in nats, β in units of reward per nat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, PercentFormatter

from dpo_lab.course.plots.inputs import same_length
from dpo_lab.workbench.plots import style

REFERENCE = r"$\pi_\mathrm{ref}$"  # as it is written in a picture
# π_ref, π* and a trained policy look alike in every picture of the course.
BAR_COLORS = (style.GREY, style.BLUE, style.GREEN, style.ORANGE, style.VERMILLION)


def plot_optimum_path(
    betas: Any, probs: Any, reference_probs: Any, responses: Sequence[str], *, marked: float | None = None, title: str =
    "", ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """π*(y|x) of one prompt against β, one line per response; triangles on the right border stand at π_ref(y|x).

    `betas` (B,) rising, `probs` (B, Y), `reference_probs` (Y,). A line is drawn at `marked`, with the probabilities
    there. Small β, on the left, gives everything to the best response; large β gives the reference back.
    """
    betas, probs, reference = _path(betas, probs, reference_probs, responses)
    ax = ax or style.new_axes(6.4, 4.4)
    for y, response in enumerate(responses):
        ax.plot(betas, probs[:, y], linewidth=2, **style.look(y, response))
        ax.plot(betas[-1], reference[y], marker="<", color=style.color(y), markersize=7, clip_on=False, zorder=4)
    ax.set_xscale("log")
    ax.set_xlim(betas[0], betas[-1])
    ax.set_ylim(0, 1)
    if marked is not None:
        at = [np.interp(np.log(marked), np.log(betas), column) for column in probs.T]
        ax.axvline(marked, color=style.INK, linewidth=1)
        ax.plot([marked] * len(at), at, "o", color=style.INK, markersize=4.5, zorder=5)
        ax.annotate(f"β = {marked:.3g}", (marked, 1), (4, -11), textcoords="offset points", **style.text())
    style.dress(ax, title or "The optimum π* against β", "β (reward per nat)", "π*(y|x)")
    style.in_percent(ax.yaxis)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.annotate(REFERENCE, (betas[-1], reference.max()), (7, 4), textcoords="offset points", **style.text(9))
    # On the lines the legend would hide them: they fill the whole range from 0 to 1.
    style.add_legend_below(ax, pad=4.6, ncols=1 if max(map(len, responses)) > 24 else 2)
    return ax


def describe_optimum_path(betas: Any, probs: Any, reference_probs: Any, responses: Sequence[str]) -> str:
    """What `plot_optimum_path` shows, in words."""
    betas, probs, reference = _path(betas, probs, reference_probs, responses)
    lines = [
        f"“{response}” {probs[0, y]:.0%} at β = {betas[0]:.3g}, {probs[-1, y]:.0%} at β = {betas[-1]:.3g} "
        f"(reference {reference[y]:.0%})"
        for y, response in enumerate(responses)
    ]
    return f"Probabilities under the optimal policy against β, on a logarithmic axis: {'; '.join(lines)}."


def plot_policies(
    policies: Mapping[str, Any], responses: Sequence[str], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Several policies' probabilities of the responses to one prompt, as bars side by side, each with its number.

    `policies` names each (Y,); give the reference first, it is drawn in grey.
    """
    table = _policies(policies, responses)
    ax = ax or style.new_axes(6.4, 0.9 + 0.23 * (len(table) + 0.7) * len(responses))
    height = 0.8 / len(table)
    for i, (name, probs) in enumerate(zip(policies, table, strict=True)):
        at = np.arange(len(responses)) + (i - (len(table) - 1) / 2) * height
        label = style.plain(name).replace("π_ref", REFERENCE)
        ax.barh(at, probs, height * 0.92, color=BAR_COLORS[i % len(BAR_COLORS)], label=label)
        for y, p in zip(at, probs, strict=True):
            ax.annotate(f"{100 * p:.1f}", (p, y), (3, 0), textcoords="offset points", va="center", **style.text())
    style.dress(ax, title or "Probabilities of the responses", "π(y|x) in %", "")
    style.name_rows(ax, responses)
    ax.invert_yaxis()
    ax.set_xlim(0, min(1.15, 1.18 * float(table.max())))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    style.add_legend(ax, loc="lower right")
    return ax


def describe_policies(policies: Mapping[str, Any], responses: Sequence[str]) -> str:
    """What `plot_policies` shows, in words."""
    table = _policies(policies, responses)
    bars = [
        f"“{response}” " + ", ".join(f"{name} {p:.1%}" for name, p in zip(policies, column, strict=True))
        for response, column in zip(responses, table.T, strict=True)
    ]
    return f"Bars of probabilities: {'; '.join(bars)}."


def plot_frontier(
    kl: Any, rewards: Any, *, labels: Mapping[str, tuple[float, float]] | None = None, points: Mapping[str, tuple[float,
    float]] | None = None, path: tuple[Any, Any] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """The reward–KL frontier, a curve that no policy exceeds; the region above it is shaded.

    `kl` and `rewards` (B,) are those of π* as β runs. `labels` writes names at points of the curve, `points` adds
    other policies, each name ↦ (KL, reward), and `path` (KLs, rewards) the way of a policy in training.
    """
    kl, rewards = same_length(kl=kl, rewards=rewards)
    ax = ax or style.new_axes(6.4, 4.2)
    order = np.argsort(kl)
    ax.plot(kl[order], rewards[order], color=style.BLUE, linewidth=2.2, label="π* at every β")
    if path is not None:
        along, worth = same_length(path_kl=path[0], path_rewards=path[1])
        ax.plot(along, worth, "o-", color=style.GREEN, markersize=3.5, linewidth=1.2, label="DPO in training")
    for name, (x, y) in (labels or {}).items():
        ax.plot(x, y, "o", color=style.BLUE, markersize=6, zorder=5)
        ax.annotate(style.plain(name), (x, y), (-5, 5), textcoords="offset points", ha="right", **style.text())
    for i, (name, (x, y)) in enumerate((points or {}).items()):
        ax.plot(x, y, style.marker(i), color=style.color(i + 3), markersize=7, linestyle="none", clip_on=False,
                zorder=6, label=style.plain(name))  # fmt: skip
    low, high = ax.get_ylim()
    high += 0.08 * (high - low)
    ax.fill_between(kl[order], rewards[order], high, color=style.BLUE, alpha=0.07, linewidth=0)
    ax.set_ylim(low, high)
    style.dress(ax, "The reward–KL frontier", f"E KL(π‖{REFERENCE}) (nats)", "expected reward")
    style.add_legend(ax, loc="lower right")
    return ax


def describe_frontier(kl: Any, rewards: Any) -> str:
    """What `plot_frontier`'s curve shows, in words."""
    kl, rewards = same_length(kl=kl, rewards=rewards)
    low, high = np.argmin(kl), np.argmax(kl)
    return (
        f"Expected reward of the optimal policy against its KL from the reference: a rising, flattening curve from "
        f"reward {rewards[low]:.2f} at {kl[low]:.2f} nats to {rewards[high]:.2f} at {kl[high]:.2f} nats; "
        "the region above it is out of reach."
    )


def optimum_figure(
    betas: Any, probs: Any, reference_probs: Any, responses: Sequence[str], *, kl: Any, rewards: Any, at: int, title:
    str = "",
) -> style.Picture:  # fmt: skip
    """Left π*(y|x) of one prompt against β, right its reward against KL; both marked at `betas[at]`.

    `betas`, `kl` and `rewards` (B,), `probs` (B, Y), `reference_probs` (Y,): see `plot_optimum_path`, `plot_frontier`.
    """
    figure = style.new_figure(10, 4.6)
    left, right = figure.subplots(1, 2)
    plot_optimum_path(betas, probs, reference_probs, responses, marked=betas[at], title=title, ax=left)
    plot_frontier(kl, rewards, labels={f"β = {betas[at]:.3g}": (kl[at], rewards[at])}, ax=right)
    right.set_xlabel(f"KL(π‖{REFERENCE}) at this prompt (nats)")
    return figure


def plot_shortfall(divergence: Any, objective: Any, *, beta: float, best: float, ax: Axes | None = None) -> Axes:
    """The objective J(π) of many policies against their KL(π‖π*): all lie on the line J(π*) − β·KL(π‖π*).

    `divergence` and `objective` (N,), β the slope, `best` = J(π*).
    """
    divergence, objective = same_length(divergence=divergence, objective=objective)
    ax = ax or style.new_axes(6.4, 3.6)
    ends = np.array([0.0, 1.05 * divergence.max()])
    ax.plot(ends, best - beta * ends, color=style.BLUE, linewidth=1.6, label=f"J(π*) − β·KL(π‖π*), β = {beta:g}")
    count = f"{len(divergence)} policies"
    ax.plot(divergence, objective, "o", color=style.ORANGE, markersize=4, alpha=0.7, label=count)
    ax.plot(0, best, "*", color=style.GREEN, markersize=15, clip_on=False, zorder=5, label="π*")
    ax.set_xlim(0, ends[-1])
    style.dress(ax, "The objective falls by β per nat of KL from π*", "E KL(π‖π*) (nats)", "objective J(π)")
    style.add_legend(ax)
    return ax


def plot_convergence(
    steps: Any, distances: Mapping[str, Any], *, target: float | None = None, title: str = "", ax: Axes | None = None
) -> Axes:
    """Total variation from π* against training steps (S,), both axes logarithmic; one line per name, each (S,).

    Step 0 has no place on a logarithmic axis and is drawn at 1/2. `target` draws a line to get below.
    """
    ax = ax or style.new_axes(6.4, 3.8)
    for i, (name, values) in enumerate(distances.items()):
        at, values = same_length(steps=np.asarray(steps)[: len(values)], distances=values)
        ax.plot(np.maximum(at, 0.5), values, linewidth=2, **style.look(i, name))
    ax.set_xscale("log")
    ax.set_yscale("log")
    if target is not None:
        ax.axhline(target, color=style.INK, linewidth=1, linestyle=":")
        ax.annotate(f"{target:g}", (0, target), (4, 3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", **style.text())  # fmt: skip
    style.dress(ax, title or "DPO goes to π*", "step", "total variation from π*")
    style.add_legend(ax, loc="lower left")
    return ax


def _path(
    betas: Any, probs: Any, reference: Any, responses: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    betas, probs, reference = (np.asarray(part, np.float64) for part in (betas, probs, reference))
    if betas.ndim != 1 or len(betas) < 2 or not (betas > 0).all() or not (np.diff(betas) > 0).all():
        raise ValueError(
            f"betas must be at least two rising positive numbers, got shape {betas.shape}; try np.geomspace"
        )
    if probs.shape != (len(betas), len(responses)) or reference.shape != (len(responses),):
        raise ValueError(
            f"probs must have shape {(len(betas), len(responses))} and reference_probs {(len(responses),)}, "
            f"got {probs.shape} and {reference.shape}; give one prompt at a time"
        )
    return betas, probs, reference


def _policies(policies: Mapping[str, Any], responses: Sequence[str]) -> np.ndarray:
    table = [np.asarray(probs, np.float64) for probs in policies.values()]
    if not table or any(probs.shape != (len(responses),) for probs in table):
        raise ValueError(f"policies must give {len(responses)} probabilities each, one per response, got "
                         f"{[probs.shape for probs in table]}; give one prompt at a time")  # fmt: skip
    return np.stack(table)
