"""The parts of a page of HTML that needs no other file, no network and no script.

Everything that comes from data, models, settings or paths goes through `text` or `folded`, which escape it.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONG = 600  # letters; longer texts are folded
# Nothing but what is in the page itself may load or run, whatever a text contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Control letters have no place in HTML, halves of surrogate pairs none in UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def whole_page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The page: a title, a sentence of HTML under it, and sections of (heading, HTML)."""
    body = "\n".join(f"<section>\n<h2>{text(name)}</h2>\n{content}\n</section>" for name, content in sections)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{text(title)} · DPO Lab</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
<p>{lead}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def text(value: Any) -> str:
    """Any value as text that is safe inside an element or a quoted attribute."""
    match value:
        case None:
            value = "none"
        case float():
            value = f"{value:.5g}"
        case str():
            value = value.replace("\r\n", "\n").replace("\r", "\n")
        case _:
            value = json.dumps(value, ensure_ascii=False, default=str)
    return html.escape(UNPRINTABLE.sub("\ufffd", value), quote=True)


def folded(value: Any, *, limit: int = LONG) -> str:
    """A text from data or a model as a block; where it is long, only its beginning is seen until it is opened."""
    full = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    if not full.strip():
        return '<div class="quiet">(empty)</div>'
    if len(full) <= limit:
        return f'<div class="text" dir="auto">{text(full)}</div>'
    start = " ".join(full[: limit // 3].split())
    return (
        f'<details class="long"><summary><span class="text" dir="auto">{text(start)}…</span> '
        f'<span class="quiet">({len(full):,} letters)</span></summary>'
        f'<div class="text" dir="auto">{text(full)}</div></details>'
    )


def table(caption: str, columns: Sequence[str], rows: Sequence[str], *, has_numbers: bool = False) -> str:
    """A table that scrolls within the page. `rows` are <tr> elements; with numbers, all columns but the first are."""
    kinds = ["", *[' class="number"' if has_numbers else ""] * (len(columns) - 1)]
    head = "".join(f'<th scope="col"{kind}>{text(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    lines = [f"<caption>{text(caption)}</caption>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def terms(entries: Mapping[str, str]) -> str:
    """A list of names and what belongs to them; the latter is HTML already."""
    return "<dl>\n" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>\n" for name, value in entries.items()) + "</dl>"


def picture(png: bytes, alt: str, caption: str) -> str:
    """A figure with its image in it, a description in words, and a caption."""
    data = base64.b64encode(png).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{text(alt)}">'
    return f"<figure>{image}\n<figcaption>{text(caption)}</figcaption></figure>"


def code(source: str) -> str:
    """A block of code."""
    return f"<pre><code>{text(source)}</code></pre>"
