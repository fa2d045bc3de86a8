"""What a run measured, step by step: the panels of a run, and one metric of several runs over each other.

A row is one line of a run's `metrics.jsonl`: {"kind": "step" or "evaluation", "step": 3, "loss": 0.69, …}; names of
evaluation metrics begin with eval_. Log-probs are in nats, rewards in β × nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from dpo_lab.workbench.plots import style

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """One metric as a line. Its colour never stands alone: line style and marker differ too."""

    metric: str
    label: str
    color: str = style.TRAINING
    line: str = "-"
    marker: str = "D"


@dataclass(frozen=True)
class Panel:
    """What belongs into one pair of axes."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    meaning: str  # a sentence for a caption
    level: float | None = None  # a line to compare with
    from_zero: bool = False
    is_noisy: bool = True  # noisy curves are smoothed


_CHOSEN = ("chosen", style.CHOSEN, "-", "o")
_REJECTED = ("rejected", style.REJECTED, "--", "s")

PANELS: dict[str, Panel] = {
    "loss": Panel(
        "Loss", "mean per pair", (Curve("loss", "loss"),),
        "What training lowers. The plain DPO loss starts at log 2 = 0.693, where policy and reference agree.",
    ),
    "token_loss": Panel(
        "Loss", "nats per completion token", (Curve("loss", "loss"),),
        "Cross-entropy of the completion's tokens: what training lowers.",
    ),
    "perplexity": Panel(
        "Perplexity", "e to the loss", (Curve("perplexity", "perplexity"),),
        "Among how many equally likely tokens the model seems to choose.",
    ),
    "accuracy": Panel(
        "Pairs ranked right", "share of pairs", (Curve("rewards/accuracies", "pairs ranked right"),),
        "How often the chosen answer has the higher implicit reward; a tie counts as half. Guessing gives 0.5.",
        level=0.5,
    ),
    "rewards": Panel(
        "Implicit rewards", "β × nats",
        (Curve("rewards/chosen", *_CHOSEN), Curve("rewards/rejected", *_REJECTED)),
        "β·log(π/π_ref): how far an answer has moved from the reference. Both may fall; DPO asks only for the gap.",
        level=0.0,
    ),
    "margins": Panel(
        "Reward margin", "β × nats", (Curve("rewards/margins", "margin"),),
        "The chosen answer's implicit reward minus the rejected one's.", level=0.0,
    ),
    "true_reward": Panel(
        "True reward of sampled answers", "mean per answer", (Curve("true_reward", "true reward"),),
        "What the judge gives to answers that the model samples on the way, where a judge knows.",
    ),
    "judged_reward": Panel(
        "Score of sampled answers", "mean per answer", (Curve("reward", "score"),),
        "What the judge of a run in rounds gives to the answers that the policy samples when a round begins.",
        is_noisy=False,
    ),
    "kl": Panel(
        "KL from the reference", "nats per answer", (Curve("kl", "KL"),),
        "How far the policy has gone from where it began, on answers that it samples itself.",
        from_zero=True, is_noisy=False,
    ),
    "answer_length": Panel(
        "Length of sampled answers", "as logged", (Curve("answer_length", "length"),),
        "Words or tokens per sampled answer. Length that grows without a task for it points to the labels.",
    ),
    "well_formed": Panel(
        "Well-formed answers", "share of answers", (Curve("well_formed", "well-formed"),),
        "Sampled answers whose sentences and JSON are whole. A policy that has gone too far loses this first.",
        is_noisy=False,
    ),
    "mixed": Panel(
        "Mixed prompts", "share of prompts", (Curve("mixed", "mixed"),),
        "Prompts whose answers got different scores. The others make no pair, so a round learns nothing from them.",
        is_noisy=False,
    ),
    "logps_chosen": Panel(
        "Log-prob of chosen answers", "nats per answer", (Curve("logps/chosen", *_CHOSEN),),
        "log π of the chosen answers, summed over tokens. It often falls while the margin grows: worth watching.",
    ),
    "logps_rejected": Panel(
        "Log-prob of rejected answers", "nats per answer", (Curve("logps/rejected", *_REJECTED),),
        "log π of the rejected answers, summed over tokens.",
    ),
    "grad_norm": Panel(
        "Gradient norm", "before clipping", (Curve("grad_norm", "gradient norm"),),
        "Spikes point to a learning rate that is too high or to odd rows.", from_zero=True,
    ),
    "learning_rate": Panel(
        "Learning rate", "per step", (Curve("learning_rate", "learning rate"),), "The schedule as it was applied.",
        from_zero=True, is_noisy=False,
    ),
}  # fmt: skip


def series(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (int64) and values (float64) of a metric, from the rows that have it."""
    points = [(row["step"], row[metric]) for row in rows if metric in row]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def smoothing_window(num: int) -> int:
    """How many points a smoothed curve of `num` points averages: odd, about a tenth, 1 (none) for few points."""
    return min(101, 2 * (num // 20) + 1)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over `window` (odd) points around each point; near an end, over those of them that exist."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}; 1 leaves the values as they are")
    is_number = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_number, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_number)])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    covered = counts[high] - counts[low]
    return np.where(covered > 0, (sums[high] - sums[low]) / np.maximum(covered, 1), np.nan)


def panels_of(rows: Rows) -> list[str]:
    """The names of the panels that these rows can fill, in reading order."""
    # What is measured once, after training, is no curve.
    names = {name.removeprefix("eval_") for row in rows if row.get("kind") != "result" for name in row}
    unwanted = "token_loss" if any(name.startswith("rewards/") for name in names) else "loss"
    return [
        key for key, panel in PANELS.items() if key != unwanted and any(curve.metric in names for curve in panel.curves)
    ]


def plot_panel(rows: Rows, panel: str, *, ax: Axes | None = None) -> Axes:
    """Draw one entry of `PANELS`: a light point per step, their running mean as a line, held-out values as markers."""
    spec = PANELS[panel]
    ax = ax or style.new_axes(5.2, 3.2)
    has_mean = False
    for curve in spec.curves:
        steps, values = series(rows, curve.metric)
        window = smoothing_window(len(values)) if spec.is_noisy else 1
        has_mean = has_mean or window > 1
        if window > 1:
            dots = {"alpha": 0.4, "markersize": 4, "markeredgewidth": 0}
            ax.plot(steps, values, ".", color=curve.color, label=_mean_label(1), **dots)
        if len(values):
            hollow = {"marker": curve.marker, "markersize": 7, "fillstyle": "none"}  # one or two points make no line
            few: dict[str, Any] = hollow if len(values) <= 2 else {}
            name = curve.label if len(spec.curves) > 1 else _mean_label(window)
            ax.plot(steps, smooth(values, window), curve.line, color=curve.color, linewidth=1.8, label=name, **few)
        steps, values = series(rows, f"eval_{curve.metric}")
        if len(values):
            color = style.INK if curve.color == style.TRAINING else curve.color
            joined = ":" if len(values) > 2 else "none"  # a line from first to last would look like a course
            ax.plot(steps, values, linestyle=joined, color=color, linewidth=1, marker=curve.marker, markersize=6,
                    markeredgecolor="white", label=f"{curve.label}, held out")  # fmt: skip
    if spec.level is not None:
        ax.axhline(spec.level, color=style.GREY, linewidth=0.9, zorder=0.5)
    style.dress(ax, spec.title, "optimiser step", spec.unit)
    style.count_steps(ax)
    if not spec.is_noisy:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    if spec.from_zero:
        ax.set_ylim(bottom=0)
    style.add_legend(ax, skip=(_mean_label(1),) if has_mean else ())
    return ax


def curves_figure(rows: Rows, *, title: str = "", panels: Sequence[str] | None = None) -> style.Picture:
    """What a run measured, on one sheet of two columns: for preference tuning and for SFT.

    `panels` names some of `PANELS`, in order; None draws all that the rows can fill.
    """
    known = panels_of(rows)
    names = known if panels is None else list(panels)
    if not names or set(names) - set(known):
        raise ValueError(f"there is nothing to draw for {sorted(set(names) - set(known)) or 'any panel'}: the rows can "
                         f"fill {known}; record at least one step, or name other panels")  # fmt: skip
    num_rows = math.ceil(len(names) / 2)
    figure = style.new_figure(10, 0.6 + 2.5 * num_rows)
    for name, ax in zip(names, style.grid_of(figure, len(names), 2), strict=True):
        plot_panel(rows, name, ax=ax)
        if len(PANELS[name].curves) == 1 and (legend := ax.get_legend()):
            legend.remove()  # one legend for the whole sheet, below
    window = smoothing_window(sum(row.get("kind") == "step" for row in rows))
    key = [Line2D([], [], color=style.GREY, linewidth=1.8, label=_mean_label(window))]
    if window > 1:
        key.insert(0, Line2D([], [], color=style.GREY, alpha=0.5, linestyle="", marker=".", label=_mean_label(1)))
    if any(row.get("kind") == "evaluation" for row in rows):
        held_out: dict[str, Any] = {"marker": "D", "markeredgecolor": "white", "label": "held-out data"}
        key.append(Line2D([], [], color=style.INK, linestyle="", **held_out))
    figure.legend(handles=key, loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    style.add_title(figure, title)
    return figure


def curves_pngs(rows: Rows, *, title: str = "") -> tuple[bytes, dict[str, bytes]]:
    """`curves_figure` as a PNG file, and each of its panels as one."""
    figure = curves_figure(rows, title=title)
    names = panels_of(rows)
    whole, *panels = style.pngs_of_parts(figure, figure.axes[: len(names)])
    return whole, dict(zip(names, panels, strict=True))


def metric_label(metric: str) -> tuple[str, str]:
    """A title and a unit for a metric name; the name itself where it is not one of ours."""
    base = metric.removeprefix("eval_")
    for panel in PANELS.values():
        for curve in panel.curves:
            if curve.metric == base:
                title = panel.title if len(panel.curves) == 1 else f"{panel.title}, {curve.label}"
                unit = "mean" if base == "loss" else panel.unit
                return (f"{title}, held out" if base != metric else title), unit
    return style.plain(metric), "value"


def describe_panel(rows: Rows, panel: str) -> str:
    """What `plot_panel` shows, in words."""
    spec, parts = PANELS[panel], []
    for curve in spec.curves:
        steps, values = series(rows, curve.metric)
        window = smoothing_window(len(values)) if spec.is_noisy else 1
        parts += _from_to(curve.label, steps, smooth(values, window), f" ({_mean_label(window)})" if window > 1 else "")
        parts += _from_to(f"{curve.label} on held-out data", *series(rows, f"eval_{curve.metric}"))
    return f"{spec.title} ({spec.unit}): {'; '.join(parts) or 'nothing was measured'}."


def describe_curves(rows: Rows) -> str:
    """What `curves_figure` shows, in words."""
    return " ".join(describe_panel(rows, name) for name in panels_of(rows))


def _from_to(name: str, steps: np.ndarray, values: np.ndarray, note: str = "") -> list[str]:
    match len(values):
        case 0:
            return []
        case 1:
            return [f"{name} {values[0]:.4g} at step {steps[0]}"]
        case _:
            return [f"{name} from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at step {steps[-1]}{note}"]


def _mean_label(window: int) -> str:
    return "each logged step" if window == 1 else f"mean over {window} logged steps"
