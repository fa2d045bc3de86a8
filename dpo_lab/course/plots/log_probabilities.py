"""Pictures of log π(y|x): the anatomy of a pair, the row that two answers share, and sums against means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch, Rectangle

from dpo_lab.workbench.plots import style


def show_token(token: str) -> str:
    """A token as a figure can print it: white space becomes visible."""
    return style.plain(token.replace("\n", "↵").replace(" ", "·"))


def plot_tokens(
    prompt: Sequence[str], completion: Sequence[str], logps: Any, *, color: str = style.CHOSEN, ax: Axes | None = None
) -> Axes:
    """One completion behind its prompt: tokens as columns, the prompt greyed, a bar where a token is scored.

    logps: log π of each completion token, in nats. A bar is −log π: how surprised the model is by that token.
    """
    costs = -np.asarray(logps, np.float64)
    if costs.shape != (len(completion),):
        raise ValueError(
            f"logps must be one number per completion token, got shape {costs.shape} for {len(completion)} tokens; "
            "take token_logps of this completion only"
        )
    num_prompt, num = len(prompt), len(prompt) + len(completion)
    ax = ax or style.new_axes(max(6.0, 1.2 + 0.3 * num), 2.9)
    top = max(1.0, float(costs.max(initial=0.0))) * 1.45
    columns = np.arange(num_prompt, num)
    ax.axvspan(-0.5, num_prompt - 0.5, color=style.PALE, zorder=0)
    ax.bar(columns, costs, width=0.8, color=color)
    ax.plot(columns, np.full(len(columns), -0.035 * top), "^", color=color, markersize=4, clip_on=False)
    for column, cost in zip(range(num_prompt, num), costs.tolist(), strict=True):
        ax.text(column, cost + 0.015 * top, f"{cost:.1f}", ha="center", va="bottom", fontsize=6.5, color=style.INK)
    if num_prompt:
        place = ax.get_xaxis_transform()  # columns across, a share of the height upwards: any scale may follow
        arrow = {"arrowstyle": "->", "color": style.INK, "connectionstyle": "arc3,rad=-0.45"}
        ax.annotate("", (num_prompt + 0.1, 0.6), (num_prompt - 1.0, 0.6), xycoords=place, arrowprops=arrow)
        text = {"fontsize": 8, "color": style.INK, "transform": place}
        ax.text(num_prompt / 2 - 0.5, 0.93, "prompt x: given, not scored", ha="center", va="top", **text)
        ax.text(num_prompt - 1.4, 0.6, "the logits here\nscore the next token", ha="right", va="center", **text)
    total = f"{-costs.sum():.2f}".replace("-", "−")
    title = f"answer y: log π(y|x) = {total} nats over {len(completion)} tokens"
    style.dress(ax, title, "", "−log π (nats)")
    ax.grid(visible=False)
    ax.set_xlim(-0.5, num - 0.5)
    ax.set_ylim(-0.07 * top, top)
    ax.set_xticks(range(num), [show_token(token) for token in (*prompt, *completion)], rotation=90, fontsize=7.5)
    for label, column in zip(ax.get_xticklabels(), range(num), strict=True):
        label.set_color(style.GREY if column < num_prompt else color)
    return ax


def pair_anatomy(
    prompt: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], chosen_logps: Any, rejected_logps: Any
) -> style.Picture:
    """Both answers to one prompt, side by side on one scale; of the prompt only its end. See `plot_tokens`."""
    prompt = _end_of(prompt)
    longest = len(prompt) + max(len(chosen), len(rejected))
    figure = style.new_figure(min(13.0, 2.4 + 0.6 * longest), 3.4)
    axes = figure.subplots(1, 2)
    answers = (("chosen", chosen, chosen_logps, style.CHOSEN), ("rejected", rejected, rejected_logps, style.REJECTED))
    for ax, (name, tokens, logps, color) in zip(axes, answers, strict=True):
        plot_tokens(prompt, tokens, logps, color=color, ax=ax)
        title = ax.get_title(loc="left").replace("answer y:", f"{name}:")
        ax.set_title(title, loc="left", fontweight="bold", **style.text(10))
        ax.set_xlim(-0.5, longest - 0.5)
    tallest = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:  # one scale, so that the bars of the two answers compare
        ax.set_ylim(-0.05 * tallest, tallest)
    return figure


def _end_of(prompt: Sequence[str]) -> list[str]:
    """The last tokens of a prompt, with a mark where more stand before them."""
    return list(prompt) if len(prompt) <= 5 else ["…", *prompt[-4:]]


def describe_pair_anatomy(prompt: Sequence[str], chosen: Sequence[str], rejected: Sequence[str]) -> str:
    """What `pair_anatomy` shows, in words; without values, which differ in their last digit between machines."""
    return (
        f"Two panels of bars over tokens. The first {len(_end_of(prompt))} columns are grey and empty: the end of the "
        f"prompt, which has {len(prompt)} tokens. The chosen "
        f"answer has {len(chosen)} bars and the rejected one {len(rejected)}, one for each of its tokens and one for "
        f"the end token {chosen[-1]}; a bar's height is minus the log-probability of that token in nats. An arrow "
        "leads from the prompt's last token to the answer's first: the logits there score it."
    )


def plot_shared_row(
    tokens: Sequence[str], num_prompt: int, num_chosen: int, mask: Any, *, ax: Axes | None = None
) -> Axes:
    """Who sees whom in a row [prompt | chosen | rejected]: line t is coloured where token t may look.

    mask: (T, T) booleans, `mask[t, s]` says whether token t sees token s.
    """
    sees = np.asarray(mask, bool)
    num = len(tokens)
    if sees.shape != (num, num):
        raise ValueError(f"mask must be {num} × {num}, one line and one column per token, got shape {sees.shape}")
    part = (np.arange(num) >= num_prompt).astype(int) + (np.arange(num) >= num_prompt + num_chosen)
    colors = ["white", style.GREY, style.CHOSEN, style.REJECTED]
    picture = np.where(sees, 1 + part[:, None], 0)
    size = max(4.6, 1.6 + 0.2 * num)
    ax = ax or style.new_axes(size + 0.4, size)
    ax.imshow(picture, cmap=ListedColormap([to_rgb(color) for color in colors]), vmin=0, vmax=3, aspect="equal")
    style.dress(ax, "Who sees whom in a shared row", "token that is looked at", "token that looks")
    ax.set_xticks(range(num), [show_token(token) for token in tokens], rotation=90, fontsize=7)
    ax.set_yticks(range(num), [show_token(token) for token in tokens], fontsize=7)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, which in zip(labels, part, strict=True):
            label.set_color(colors[1 + which])
    ax.grid(visible=False)
    ax.set_xticks(np.arange(-0.5, num), minor=True)
    ax.set_yticks(np.arange(-0.5, num), minor=True)
    ax.grid(which="minor", color=style.PALE, linewidth=0.4)
    ax.tick_params(which="minor", length=0)
    for border in (num_prompt - 0.5, num_prompt + num_chosen - 0.5):
        ax.axhline(border, color=style.INK, linewidth=1)
        ax.axvline(border, color=style.INK, linewidth=1)
    names = ("the prompt looks", "the chosen answer looks", "the rejected answer looks")
    keys = [Patch(color=color, label=name) for color, name in zip(colors[1:], names, strict=True)]
    ax.legend(handles=keys, loc="upper right", fontsize=8, framealpha=0.95).get_frame().set_linewidth(0)
    return ax


def plot_sum_against_mean(sum_gaps: Any, mean_gaps: Any, *, ax: Axes | None = None) -> Axes:
    """Each pair's gap log π(y_w|x) − log π(y_l|x), as a sum and per token; shaded where the two disagree.

    Both axes are linear near 0, where the two disagree most often, and logarithmic further out.
    """
    sums, means = np.asarray(sum_gaps, np.float64), np.asarray(mean_gaps, np.float64)
    if sums.shape != means.shape or sums.ndim != 1 or not len(sums):
        raise ValueError(f"both must hold one gap per pair, got shapes {sums.shape} and {means.shape}")
    ax = ax or style.new_axes(6.2, 4.2)
    differ = (sums > 0) != (means > 0)
    wide, tall = 1.3 * np.abs(sums).max() + 1e-9, 1.3 * np.abs(means).max() + 1e-9
    for corner in ((-wide, 0.0), (0.0, -tall)):
        ax.add_patch(Rectangle(corner, wide, tall, color=style.REJECTED, alpha=0.08, zorder=0, linewidth=0))
    ax.scatter(sums[~differ], means[~differ], s=14, color=style.GREY, label="both rank the pair alike")
    ax.scatter(sums[differ], means[differ], s=20, color=style.REJECTED, marker="D", label="sum and mean disagree")
    ax.axhline(0, color=style.INK, linewidth=0.8)
    ax.axvline(0, color=style.INK, linewidth=0.8)
    style.dress(ax, "Which answer does the model find likelier?", "gap of the sums, chosen − rejected (nats)",
          "gap of the means (nats per token)")  # fmt: skip
    ax.set_xscale("symlog", linthresh=1)
    ax.set_yscale("symlog", linthresh=0.1)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set_xlim(-wide, wide)
    ax.set_ylim(-tall, tall)
    style.add_legend(ax, loc="lower right")
    return ax
