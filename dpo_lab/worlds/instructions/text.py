"""What a text has: words, sentences, lines, paragraphs, JSON. Every check counts with these."""

from __future__ import annotations

import json
import re
from typing import Any

WORD = re.compile(r"[^\W_]+(?:['’\-_][^\W_]+){0,3}")  # a longer chain is no way to save words
SENTENCE_END = re.compile(r"""(?<![.!?…])[.!?…]+["'”’)\]*_]*(?=\s)""")
ABBREVIATION = re.compile(r"(?:^|[^\w.])(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|e\.g|i\.e|cf|approx)$")
ABBREVIATION_OR_END = re.compile(r"(?:^|[^\w.])(?:etc|[ap]\.m|U\.S|U\.K|\.{0,2})$")  # no end where small letters follow
INITIALS = re.compile(r"(?:^|\b[A-Z]\. ?)[A-Z]$|(?:^|[.!?] |\b(?:of|and|to|with) )[B-HJ-Z]$|\bby [A-Z]$")
LIST_MARK = re.compile(r"^[ \t]*(?:[-*•+]|\d+[.)]|#{1,6})[ \t]+", re.MULTILINE)
MAX_NESTING = 50  # deeper brackets are no answer, and Python's parser gives up at a thousand


def words(text: str) -> list[str]:
    """The words in order; "well-known" and "don't" count as one each, a list's own marks as none."""
    return WORD.findall(LIST_MARK.sub("", text))


def sentences(text: str) -> list[str]:
    """The sentences in order. A line ends one too, whatever it ends with; "Dr." and "e.g." do not."""
    found, has_capitals = [], text != text.lower()
    for line in LIST_MARK.sub("", text).splitlines():
        start = 0
        for end in SENTENCE_END.finditer(line):
            if _goes_on(line, max(start, end.start() - 20), end, has_capitals):
                continue
            found.append(line[start : end.end()].strip())
            start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if WORD.search(sentence)]


def _goes_on(line: str, start: int, end: re.Match[str], has_capitals: bool) -> bool:
    """Whether the stop is inside a sentence: an abbreviation's, or an ellipsis or quotation before a small letter."""
    stop, before = end.group(), line[start : end.start()]
    follows = has_capitals and line[end.end() : end.end() + 40].lstrip()[:1].islower()
    if follows and (stop.startswith(("..", "…")) or stop[-1] in "\"'”’)"):
        return True
    return stop == "." and bool(
        ABBREVIATION.search(before) or INITIALS.search(before) or (follows and ABBREVIATION_OR_END.search(before))
    )


def closing(text: str) -> str:
    """The marks after its last letter, digit or white space: stops, quotation marks, brackets, emoji."""
    start = len(text)
    while start and not (text[start - 1].isalnum() or text[start - 1] == "_" or text[start - 1].isspace()):
        start -= 1
    return text[start:]


def lines(text: str) -> list[str]:
    """The lines that are not empty, without white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def paragraphs(text: str) -> list[str]:
    """What blank lines divide and has a word; a line of dashes is none."""
    found, part = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            part.append(line)
        elif part:
            found.append("\n".join(part).strip())
            part = []
    return [part for part in found if WORD.search(part)]


def tokens(text: str) -> list[str]:
    """The words in small letters, cut at hyphens and apostrophes: "it's" holds "it". A name like is_useful is whole."""
    return re.findall(r"[^\W_]+(?:_[^\W_]+)*", text.lower())


def parse_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object that the whole text is (a fence of ``` around it is allowed), or None and why not."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```"):
        bare = re.sub(r"^```(?:json|JSON)?", "", bare)[:-3].strip()
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
