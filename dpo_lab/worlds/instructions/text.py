"""What a text has: words, sentences, lines, paragraphs, JSON. Every check counts with these."""

from __future__ import annotations

import json
import re
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]*]*(?=\s)""")
ABBREVIATIONS = ("Mr", "Mrs", "Ms", "Dr", "St", "vs", "e.g", "i.e", "approx")
LIST_MARK = re.compile(r"^\s*(?:[-*•+]|\d+[.)]|#{1,6})\s+", re.MULTILINE)
MAX_NESTING = 50  # deeper brackets are no answer, and Python's parser gives up at a thousand


def words(text: str) -> list[str]:
    """The words in order; "well-known" and "don't" count as one each, a list's own marks as none."""
    return WORD.findall(LIST_MARK.sub("", text))


def sentences(text: str) -> list[str]:
    """The sentences in order. A line ends one too, whatever it ends with; "Dr." and "e.g." do not."""
    found = []
    for line in LIST_MARK.sub("", text).splitlines():
        start = 0
        for end in SENTENCE_END.finditer(line):
            before = line[start : end.start()]
            if end.group().startswith(".") and before.endswith(ABBREVIATIONS):
                continue
            found.append(line[start : end.end()].strip())
            start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if WORD.search(sentence)]


def lines(text: str) -> list[str]:
    """The lines that are not empty, without white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """What blank lines divide."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def parse_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object that the whole text is (a fence of ``` around it is allowed), or None and why not."""
    bare = re.sub(r"^```(?:json)?\s*\n|\n?```$", "", text.strip()).strip()
    if not bare.startswith("{"):
        return None, "the answer does not begin with a JSON object"
    if bare.count("{") + bare.count("[") > MAX_NESTING:
        return None, "brackets nested too deeply"
    try:
        found = json.loads(bare, parse_constant=_no_number, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        return None, f"the JSON does not parse ({str(error).split(':')[0]})"
    return found, "a JSON object"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _each_key_once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in items}) < len(items):
        raise ValueError("a key stands twice")
    return dict(items)
