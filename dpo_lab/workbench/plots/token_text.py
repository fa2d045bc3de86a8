"""Texts of tokens as they can be drawn: white space made visible, lines broken between tokens. Knows no colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import findfont, get_font

_MARKS = {"\n": "↵", "\t": "⇥", "\r": "␍"}
_LONGEST = 40  # letters of one token that are drawn


class Cell(NamedTuple):
    """One token on its line: what is written, where, and which token it is."""

    text: str
    number: str
    reward: float
    left: float  # in letters
    width: float
    place: int  # of the token in its answer


def visible(token: str) -> str:
    """A token's text with line ends and tabs as signs, invisible letters as their number, a part of a letter as ⋯."""
    return "".join(_MARKS.get(letter) or (_code(letter) if _is_hidden(letter) else letter) for letter in token) or "⋯"


def plain_lines(text: str) -> str:
    """A text of several lines with its line ends and tabs as they are, and invisible letters as their number."""
    return "".join(letter if letter in "\n\t" else visible(letter) for letter in text)


def drawable(token: str, font: str = "DejaVu Sans Mono") -> str:
    """The same with letters that the font lacks as “?”, and a very long token cut in its middle."""
    text = "".join(letter if ord(letter) in _letters(font) else "?" for letter in visible(token))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2 - 1]}…{text[-_LONGEST // 2 :]}"


def lay_out(tokens: Sequence[str], rewards: np.ndarray, columns: int) -> list[list[Cell]]:
    """Tokens on lines of at most `columns` letters, broken between tokens and after line ends."""
    lines: list[list[Cell]] = [[]]
    cursor = 0.0
    for index, (token, reward) in enumerate(zip(tokens, rewards, strict=True)):
        text, number = drawable(token), f"{reward:+.2f}".replace("-", "−")
        width = max(len(text), 0.66 * len(number)) + 0.5
        if cursor + width > columns and lines[-1]:
            lines.append([])
            cursor = 0.0
        lines[-1].append(Cell(text, number, float(reward), cursor, width, index))
        cursor += width
        if "\n" in token and index + 1 < len(tokens):
            lines.append([])
            cursor = 0.0
    return lines


def _is_hidden(letter: str) -> bool:
    """Control and format characters (among them those that turn the direction of writing), and lone surrogates."""
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _code(letter: str) -> str:
    return f"[U+{ord(letter):04X}]"


@cache
def _letters(font: str) -> frozenset[int]:
    return frozenset(get_font(findfont(font)).get_charmap())
