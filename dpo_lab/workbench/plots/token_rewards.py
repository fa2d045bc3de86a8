"""The reward of every token, written over the words: a figure, and a view in HTML.

A pair is anything with `chosen` and `rejected`, each with `tokens` (T texts) and `rewards` (T numbers,
β·(log π − log π_ref)), as `evaluation.token_rewards` gives them. Blue: the policy says the token more readily than its
reference; vermillion: less readily. Texts come from data and models: here they are drawn or shown as they are, and
neither markup nor formulas in them have any effect.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from dpo_lab.workbench.plots import style
from dpo_lab.workbench.plots.token_text import Cell, lay_out, plain_lines, visible

_MONO = "DejaVu Sans Mono"  # comes along with matplotlib
_COLUMNS, _LINE, _SIDE = 50, 0.36, 4.5  # letters per line, inches per line, inches per side
_SIDES = ("chosen", "rejected")


def token_heatmap(pair: Any, *, limit: float | None = None, max_lines: int = 24, title: str = "") -> style.Picture:
    """Chosen and rejected side by side; each token stands on its colour, with its reward under it.

    limit: the reward at which a colour is full, the same on both sides; None takes the largest of the pair.
    max_lines: of an answer that is longer, the last line says how many tokens are left out and what they add up to.
    """
    limit = color_limit(pair, limit)
    lines = [_lines(getattr(pair, side), max_lines) for side in _SIDES]
    height = _LINE * max(len(answer) for answer in lines)
    top, bottom = (0.75 if title else 0.4), 0.85
    figure = style.new_figure(2 * _SIDE + 0.6, height + top + bottom)
    figure.set_layout_engine("none")  # the letters are placed by hand
    width, whole = figure.get_figwidth(), figure.get_figheight()
    for k, (side, answer) in enumerate(zip(_SIDES, lines, strict=True)):
        left = 0.15 + k * (_SIDE + 0.3)
        ax = figure.add_axes((left / width, bottom / whole, _SIDE / width, height / whole))
        _draw(ax, answer, limit, height)
        total = float(np.sum(getattr(pair, side).rewards))
        heading = f"{side}: implicit reward {_signed(total)}, {len(getattr(pair, side).tokens)} tokens"
        ax.set_title(heading, loc="left", fontweight="bold", **style.text(9.5))
    _draw_scale(figure.add_axes((0.3, 0.45 / whole, 0.4, 0.14 / whole)), limit)
    style.add_title(figure, title)
    return figure


def token_html(pair: Any, *, limit: float | None = None, has_prompt: bool = True) -> str:
    """The same as HTML that needs no script and no style sheet, with all tokens; every text is escaped.

    Each token's reward and log-probs are in its `title`, which shows under the pointer; a line under the token is
    solid where the reward is positive and dashed where it is negative, for those who don't see the colours. The prompt
    is folded away above them, unless `has_prompt` is false.
    """
    limit = color_limit(pair, limit)
    # MathJax leaves `pre` and these classes alone, so that a formula in a text stays the text that it is.
    text = 'class="mathjax_ignore tex2jax_ignore" style="margin:0;padding:6px;font:13px/1.9 monospace;'
    text += 'white-space:pre-wrap;overflow-wrap:anywhere;max-height:30em;overflow:auto;background:#fff;color:#000"'
    prompt, parts = str(getattr(pair, "prompt_text", "")) if has_prompt else "", []
    for side in _SIDES:
        answer = getattr(pair, side)
        head = f"<strong>{side}</strong>: implicit reward {_signed(float(np.sum(answer.rewards)))}"
        tokens = "".join(_span(answer, i, limit) for i in range(len(answer.tokens)))
        parts.append(f'<div style="flex:1 1 20em;min-width:0"><div>{head}, {len(answer.tokens)} tokens</div>'
                     f"<pre {text}>{tokens}</pre></div>")  # fmt: skip
    if prompt:
        prompt = f"<details><summary>prompt</summary><pre {text}>{escape(plain_lines(prompt))}</pre></details>"
    frame = f"background:#fff;color:{style.INK};border:1px solid {style.PALE};padding:8px;font:14px/1.5 sans-serif"
    return (
        f'<div style="{frame}">{prompt}<div style="display:flex;flex-wrap:wrap;gap:12px">'
        f"{''.join(parts)}</div>{_legend(limit)}</div>"
    )


def color_limit(pair: Any, limit: float | None = None) -> float:
    """The reward at which a colour is full: the one given, or the largest of the pair."""
    largest = max(float(np.abs(_rewards(getattr(pair, side))).max()) for side in _SIDES)
    if limit is not None and not 0 < limit < np.inf:
        raise ValueError(f"limit must be positive and finite, got {limit}; None takes the largest reward of the pair")
    return float(limit) if limit is not None else max(largest, 1e-6)


def token_colors(reward: float, limit: float) -> tuple[str, str]:
    """Background and text colour of a token; the text has a contrast of at least 4.5 on it, as WCAG 2 asks for."""
    strength = min(abs(reward) / limit, 1.0)
    full = [round(255 * part) for part in to_rgb(style.BLUE if reward > 0 else style.VERMILLION)]
    red, green, blue = (round(255 + (part - 255) * strength) for part in full)
    # Black or white, whichever is further away: one of the two always reaches 4.58.
    light = _luminance((red, green, blue))
    text = "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"
    return f"#{red:02x}{green:02x}{blue:02x}", text


def _rewards(answer: Any) -> np.ndarray:
    rewards = np.asarray(answer.rewards, np.float64)
    if rewards.shape != (len(answer.tokens),) or not len(rewards):
        raise ValueError(
            f"an answer needs one reward per token and at least one token, got {len(answer.tokens)} tokens and rewards "
            f"of shape {rewards.shape}; token_rewards gives both"
        )
    if not np.isfinite(rewards).all():
        raise ValueError("rewards must be finite to have a colour; look for tokens that the model gives probability 0")
    return rewards


def _lines(answer: Any, max_lines: int) -> list[list[Cell]]:
    rewards = _rewards(answer)
    lines = lay_out(answer.tokens, rewards, _COLUMNS)
    if len(lines) <= max_lines:
        return lines
    whole = lines[: max_lines - 1]
    rest = np.concatenate([[cell.place for cell in line] for line in lines[max_lines - 1 :]])
    left_out = sorted({int(i) for i in rest} - {cell.place for line in whole for cell in line})
    words = f"… and {len(left_out)} more tokens, {_signed(rewards[left_out].sum())} together"
    return [*whole, [Cell(words, "", 0.0, 0, len(words), -1)]]


def _draw(ax: Axes, lines: list[list[Cell]], limit: float, height: float) -> None:
    ax.set_xlim(0, _COLUMNS)
    ax.set_ylim(height / _LINE, 0)
    ax.set_axis_off()
    size = 0.97 * _SIDE * 72 / _COLUMNS / 0.602  # points: a letter of the font is 0.602 em wide
    words: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False, "clip_on": True}
    for y, line in enumerate(lines):
        for cell in line:
            background, color = token_colors(cell.reward, limit) if cell.place >= 0 else ("#ffffff", style.INK)
            place, middle = (cell.left, y + 0.05), cell.left + cell.width / 2
            ax.add_patch(Rectangle(place, cell.width - 0.12, 0.9, facecolor=background, linewidth=0))
            ax.text(middle, y + 0.34, cell.text, fontsize=size, color=color, fontfamily=_MONO, **words)
            ax.text(middle, y + 0.76, cell.number, fontsize=0.62 * size, color=color, fontfamily=_MONO, **words)


def _draw_scale(ax: Axes, limit: float) -> None:
    for i, reward in enumerate(np.linspace(-limit, limit, 61)):
        ax.add_patch(Rectangle((i - 0.5, 0), 1.02, 1, facecolor=token_colors(reward, limit)[0], linewidth=0))
    ax.set_xlim(-0.5, 60.5)
    ax.set_ylim(0, 1)
    ax.set_yticks([])
    ax.set_xticks([0, 30, 60], [_signed(-limit), "0", _signed(limit)])
    ax.tick_params(labelsize=8, colors=style.INK, labelfontfamily=style.FONT, length=2)
    ax.spines[:].set_color(style.GREY)
    label = "less likely than under the reference  ←  reward of the token  →  more likely"
    ax.set_xlabel(label, **style.text())


def _span(answer: Any, index: int, limit: float) -> str:
    reward = float(answer.rewards[index])
    background, color = token_colors(reward, limit)
    details = f"reward {_signed(reward)}"
    if hasattr(answer, "logps") and hasattr(answer, "reference_logps"):
        details += f", log π {answer.logps[index]:.2f}, log π_ref {answer.reference_logps[index]:.2f}"
    line = "solid" if reward > 0 else "dashed" if reward < 0 else "hidden"
    letters = escape(visible(answer.tokens[index])) + "\n" * answer.tokens[index].count("\n")
    look = f"background:{background};color:{color};border-bottom:2px {line} #555"
    look += ";unicode-bidi:isolate;padding:1px 0;margin-right:1px"
    return f'<span title="{escape(details)}" style="{look}">{letters}</span><wbr>'


def _legend(limit: float) -> str:
    stops = ",".join(token_colors(reward, limit)[0] for reward in np.linspace(-limit, limit, 9))
    return (
        '<div style="margin-top:6px;font-size:12px">less likely than under the reference '
        f'{_signed(-limit)} <span style="display:inline-block;width:10em;height:0.9em;vertical-align:middle;'
        f'background:linear-gradient(to right,{stops});border:1px solid {style.GREY}"></span> {_signed(limit)} more '
        "likely; a line under a token is solid where it is more likely, dashed where less; under the pointer, its "
        "reward</div>"
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [part / 255 for part in rgb]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
