"""What panels show as text: boxes, tables, answers side by side, code. HTML without scripts and without outside links.

Everything that comes from data, models, settings or errors is escaped here; long texts are folded. No widgets here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_lab.workbench.runs.page import folded, text

_CELL = (
    "padding: 0.25em 0.7em; line-height: 1.35; vertical-align: top; text-align: left; border-bottom: 1px solid #8886"
)
_TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.35; max-width: 34em"
_BOX = (
    "margin: 0; padding: 0.5em 0.7em; border: 1px solid #767676; border-radius: 4px; white-space: pre-wrap; "
    "background: var(--jp-layout-color1, #ffffff); color: var(--jp-ui-font-color1, #222222); word-break: normal; "
    "overflow-wrap: anywhere; overflow-y: auto; max-height: 22em; font-family: inherit; font-size: inherit; "
    "line-height: 1.45"
)
_NO_FORMULAS = 'class="tex2jax_ignore mathjax_ignore"'  # a formula stays the text that somebody wrote


def line(words: str, *, is_error: bool = False) -> str:
    """A line that a screen reader announces when it changes; an error at once."""
    role = 'role="alert"' if is_error else 'role="status" aria-live="polite"'
    mark = "<strong>Error: </strong>" if is_error and words else ""
    look = "line-height: 1.4; margin: 0.2em 0; max-width: 60em; overflow-wrap: anywhere"
    return f'<p {role} style="{look}">{mark}{text(words)}</p>'


def shortened(words: str, longest: int = 70) -> str:
    """A text as an entry of a menu: on one line, cut where it is long."""
    words = " ".join(words.split())
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def numbered(texts: Sequence[str]) -> list[tuple[str, int]]:
    """Texts as the entries of a menu: "1: the first", and the number that it stands for."""
    return [(f"{i}: {shortened(words)}", i) for i, words in enumerate(texts, start=1)]


def keyless(html: str, name: str = "") -> str:
    """HTML in which a key, after a click on plain text too, is no shortcut of JupyterLab: `a` would insert a cell.

    JupyterLab looks for the attribute at the element that has the focus, so a part that takes it needs its own.
    """
    role = f'role="group" aria-label="{name}" ' if name else ""
    return f'<div {role}tabindex="-1" style="outline: none" data-lm-suppress-shortcuts="true">{html}</div>'


def text_box(title: str, words: str) -> str:
    """A text in a box under its title. Markup stays text; a long one scrolls, by keyboard too.

    `dir` and `bdi` keep letters that turn the direction of writing inside the box.
    """
    name = text(title)
    return keyless(
        f'<div style="font-weight: bold; margin-bottom: 0.2em">{name}</div>'
        f'<pre {_NO_FORMULAS} tabindex="0" data-lm-suppress-shortcuts="true" dir="auto" style="{_BOX}">'
        f"<bdi>{text(_visible(words))}</bdi></pre>", name
    )  # fmt: skip


def notes(lines: Sequence[str], title: str = "About the data") -> str:
    """Remarks, quietly: behind their title."""
    listed = "".join(f'<p style="{_TEXT}; max-width: 60em; margin: 0.2em 0">{text(one)}</p>' for one in lines if one)
    return f"<details><summary>{text(title)}</summary>{listed}</details>" if listed else ""


def block(words: str) -> str:
    """A text from data or a model as it is, folded where it is long."""
    return re.sub(r'class="text"', f'style="{_TEXT}"', folded(words))


def code(source: str, label: str) -> str:
    """Source code to read and copy."""
    return (
        f'<pre tabindex="0" aria-label="{text(label)}" style="padding: 0.6em; overflow-x: auto; line-height: 1.35; '
        f'border: 1px solid #8886"><code>{text(source)}</code></pre>'
    )


def table(caption: str, rows: Sequence[Mapping[str, Any]], *, upright: bool = False) -> str:
    """Rows of a table, columns by name; `upright` puts the rows beside each other, as for a few runs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    grid = [names, *([row.get(name) for name in names] for row in rows)]
    grid = [list(column) for column in zip(*grid, strict=True)] if upright else grid
    lines = []
    for i, cells in enumerate(grid):
        tags = ['th scope="col"' if i == 0 else 'th scope="row"' if j == 0 else "td" for j in range(len(cells))]
        one = (f'<{tag} style="{_CELL}">{_cell(cell)}</{tag[:2]}>' for tag, cell in zip(tags, cells, strict=True))
        lines.append(f"<tr>{''.join(one)}</tr>")
    return (
        f'<div style="overflow-x: auto"><table {_NO_FORMULAS} style="border-collapse: collapse; line-height: 1.35">'
        f'<caption style="text-align: left; padding: 0.3em 0">{text(caption)}</caption>{"".join(lines)}</table></div>'
    )


def answers(prompt: str, columns: Mapping[str, tuple[str | None, float | None]]) -> str:
    """A prompt, and under it answers side by side; `columns` gives each (text, true reward) its heading."""
    heads, cells = [], []
    for name, (words, reward) in columns.items():
        worth = f'<br><span style="font-weight: normal">true reward {reward:.2f}</span>' if reward is not None else ""
        heads.append(f'<th scope="col" style="{_CELL}">{text(name)}{worth}</th>')
        answer = block(words) if words is not None else "<em>not answered</em>"
        cells.append(f'<td style="{_CELL}">{answer}</td>')
    return (
        f'<div style="margin: 0.3em 0"><strong>Prompt</strong>{block(prompt)}</div>'
        f'<div style="overflow-x: auto"><table style="border-collapse: collapse; table-layout: fixed">'
        f"<tr>{''.join(heads)}</tr><tr>{''.join(cells)}</tr></table></div>"
    )


def download(name: str, content: str, words: str) -> str:
    """A link that saves `content` as a file, from the page itself."""
    data = base64.b64encode(content.encode()).decode()
    look, address = "text-decoration: underline", f"data:text/csv;charset=utf-8;base64,{data}"
    return f'<a style="{look}" download="{text(name)}" href="{address}">{text(words)}</a>'


def _cell(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return text(f"{value:.4g}".replace("-", "−"))
        case str():
            return block(value) if len(value) > 80 else text(value)
        case _:
            return text(value)


def _visible(words: str) -> str:
    """Control characters as their pictures: a browser would swallow them, or end the text at a NUL."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in words.replace("\r\n", "\n"))
