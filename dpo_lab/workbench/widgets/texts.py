"""Texts of data and models in a panel: shown as text, whatever they hold. Knows no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_BOX = (
    "margin: 0; padding: 0.5em 0.7em; border: 1px solid #767676; border-radius: 4px; background: #ffffff; "
    "color: #222222; "
    "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; overflow-y: auto; max-height: 22em; "
    "font-family: inherit; font-size: inherit; line-height: 1.45"
)


def text_box(title: str, text: str) -> str:
    """A text in a box under its title. Markup stays text; a long one scrolls, by keyboard too.

    MathJax leaves a <pre> alone, so that a formula stays the text that the model wrote; `dir` and `bdi` keep letters
    that turn the direction of writing inside the box.
    """
    name = escape(title)
    return (
        f'<div role="group" aria-label="{name}"><div style="font-weight: bold; margin-bottom: 0.2em">{name}</div>'
        f'<pre class="tex2jax_ignore mathjax_ignore" tabindex="0" dir="auto" style="{_BOX}">'
        f"<bdi>{escape(_visible(text))}</bdi></pre></div>"
    )


def status(text: str) -> str:
    """A line that a screen reader announces when it changes."""
    return f'<p role="status" aria-live="polite" style="line-height: 1.4; margin: 0.2em 0">{escape(text)}</p>'


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table whose first column names its rows. Every cell is text."""
    cell = 'style="padding: 0.15em 0.8em 0.15em 0; text-align: left; font-weight: normal"'
    top = "".join(f'<th scope="col" {cell}><b>{escape(name)}</b></th>' for name in header)
    body = "".join(
        f'<tr><th scope="row" {cell}>{escape(_visible(first))}</th>'
        + "".join(f"<td {cell}>{escape(_visible(text))}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    told = f'<caption style="text-align: left; font-weight: bold">{escape(caption)}</caption>'
    return (
        f'<table class="tex2jax_ignore mathjax_ignore">{told}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    )


def _visible(text: str) -> str:
    """Control characters as their pictures: a browser would swallow them, or end the text at a NUL."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text.replace("\r\n", "\n"))
