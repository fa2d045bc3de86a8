"""Docstrings of this project are plain text with `code` in backticks; Sphinx reads reStructuredText.

A paragraph whose lines begin with `name: ` is a list of arguments, each of which may go on in indented lines. What is
indented else is a formula, code or a table. Everything else is prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

_ITEM = re.compile(r"(?:\*{0,2}\w[\w`, /*.]{0,40}|`[^`]+`): \S")


def as_restructured_text(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring as reStructuredText; the common indentation is already gone."""
    made: list[str] = []
    was_block = False
    for is_blank, group in groupby(lines, key=lambda line: not line.strip()):
        if is_blank:
            made += [""] * len(list(group))
            continue
        paragraph = list(group)
        if paragraph[0].startswith("    "):
            made += [*([] if was_block else ["::", ""]), *paragraph]
            was_block = True
            continue
        was_block = False
        made += _list_of_names(paragraph) if _names(paragraph) else _prose(paragraph)
    return made


def _names(paragraph: Sequence[str]) -> bool:
    """Whether a paragraph lists names: two of them, or one whose text goes on in indented lines."""
    items = sum(bool(_ITEM.match(line)) for line in paragraph)
    return items > 1 or (items == 1 and any(line.startswith("    ") for line in paragraph))


def _prose(paragraph: Sequence[str]) -> Iterator[str]:
    """Lines of text; indented ones among them are a block of their own."""
    for is_block, group in groupby(paragraph, key=lambda line: line.startswith("    ")):
        run = list(group)
        yield from ["", "::", "", *run, ""] if is_block else [_escaped(line) for line in run]


def _list_of_names(paragraph: Sequence[str]) -> Iterator[str]:
    inside = False
    for line in paragraph:
        if _ITEM.match(line):
            name, _, text = line.partition(": ")
            yield from ([] if inside else [""])
            inside = True
            yield f"- {_escaped(name)}: {_escaped(text)}"
        elif inside and line.startswith("  "):
            yield f"  {_escaped(line.strip())}"
        else:
            yield from ([""] if inside else [])
            inside = False
            yield _escaped(line)


def _escaped(line: str) -> str:
    """Code between two backticks on each side, and no letter that has a meaning of its own."""
    indent = line[: len(line) - len(line.lstrip())]
    parts = re.split(r"(`+[^`]+`+)", line.strip())
    for i, part in enumerate(parts):
        if i % 2:
            tail = parts[i + 1][:1]
            parts[i] = f"``{part.strip('`')}``" + ("\\ " if tail.isalnum() else "")
        elif not part.startswith("- ") or i:
            parts[i] = re.sub(r"([*|`\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part)
    return indent + "".join(parts)
