"""A raw row → a row in our shape: the checks that all layouts share, and the columns beside the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from dpo_lab.preferences.layouts import (
    EXAMPLE_LAYOUTS,
    LAYOUTS,
    UNPAIRED_LAYOUTS,
    Raw,
    RowLayout,
    RowParts,
    is_example,
    need,
)
from dpo_lab.preferences.mending import check_media, without_end_markers
from dpo_lab.preferences.messages import TextOrTurns, as_turns, check_tools, is_empty, joined_text
from dpo_lab.preferences.raw_rows import SEVERAL, perhaps, yes_or_no
from dpo_lab.preferences.reports import BadRow, Place, shown

_OF_A_PROMPT = ("input", "instruction", "question", "query", "context", "history", "system_prompt", "functions")
"""Fields that a layout which takes no part of them leaves beside the pair."""

Row = dict[str, Any]
"""A row in our shape: prompt with chosen and rejected, or with completion (and label), and the columns beside them."""


class PlacedRow(Row):
    """A row that knows where it was read, so that every later stage can name the place."""

    place: Place

    @classmethod
    def at(cls, place: Place, fields: Row) -> PlacedRow:
        row = cls(fields)
        row.place = place
        return row


@dataclass
class ParsedRow:
    """A row in our shape, with the name of its layout and what is worth reporting about it."""

    fields: Row
    layout: str
    remarks: set[str] = field(default_factory=set)


def preference_row(raw: Raw, layout: str | None = None, *, from_arrow: bool = False) -> ParsedRow:
    """A pair as `pair_row` gives it, or an answer with its label: prompt, completion, label (True is good)."""
    raw = _with_label(raw)
    if layout not in UNPAIRED_LAYOUTS and (layout is not None or not _is_unpaired(raw)):
        return pair_row(raw, layout, from_arrow=from_arrow)
    layout = layout or _find(raw, UNPAIRED_LAYOUTS)
    parts = UNPAIRED_LAYOUTS[layout].split(raw, from_arrow)
    row = _finished(raw, layout, parts, ("completion",), from_arrow)
    row.fields["label"] = yes_or_no(need(raw, "label"), "label", "write true for a good answer, else false")
    return row


def pair_row(raw: Raw, layout: str | None = None, *, from_arrow: bool = False) -> ParsedRow:
    """A raw row as prompt, chosen, rejected, and optionally system, tools, weight; other fields are kept."""
    if layout is None:
        if _is_unpaired(raw):
            raise unpaired_problem()
        if "completion" in raw and "chosen" not in raw:
            raise BadRow("label", "is missing, and a single answer needs one", "write true for a good answer, else "
                         "false; or bring pairs, with chosen and rejected")  # fmt: skip
        layout = _find(raw, LAYOUTS)
    return _finished(raw, layout, LAYOUTS[layout].split(raw, from_arrow), ("chosen", "rejected"), from_arrow)


def example_row(raw: Raw, layout: str | None = None, *, from_arrow: bool = False) -> ParsedRow:
    """A raw row as prompt and completion; of a preference row the chosen answer."""
    is_pair = raw.get("chosen") is not None or raw.get("preferred_output") is not None
    if layout in LAYOUTS or (layout is None and is_pair):
        row = pair_row(raw, layout, from_arrow=from_arrow)
        row.fields = {("completion" if name == "chosen" else name): value for name, value in row.fields.items()
                      if name not in ("rejected", "label")}  # fmt: skip
        return row
    raw = _with_label(raw)
    if perhaps(raw.get("label")) is False:
        raise BadRow("label", f"marks the answer as bad, got {shown(raw['label'])}, and examples are imitated",
                     "leave the row out, or give a label of another kind another name")  # fmt: skip
    layout = layout or _find(raw, EXAMPLE_LAYOUTS)
    return _finished(raw, layout, EXAMPLE_LAYOUTS[layout].split(raw, from_arrow), ("completion",), from_arrow)


def _with_label(raw: Raw) -> Raw:
    """With `kto_tag`, as LLaMA-Factory calls the label, under its usual name."""
    return raw if "label" in raw or "kto_tag" not in raw else {**raw, "label": raw["kto_tag"]}


def _is_unpaired(raw: Raw) -> bool:
    has_two = any(name in raw for name in ("chosen", "rejected", "rejected_messages", "preferred_output"))
    return not has_two and "label" in raw and (is_example(raw) or perhaps(raw["label"]) is not None)


def unpaired_problem() -> BadRow:
    """Why a row of a single answer with a label cannot be used where two answers are compared."""
    return BadRow("label", "marks single answers as good or bad, and here two answers to one prompt are compared",
                  "take an unpaired loss for single answers (--loss kto), or join a good and a bad answer of each "
                  "prompt to a row with chosen and rejected")  # fmt: skip


def _find(raw: Raw, layouts: dict[str, RowLayout]) -> str:
    names = [name for name in ("chosen", "rejected") if name in raw]
    for name, layout in layouts.items():
        if layout.applies(raw):
            return name
    if layouts is LAYOUTS and names:
        missing = [name for name in ("chosen", "rejected") if raw.get(name) is None]
        if missing:
            need(raw, missing[0])
        got = shown(raw["chosen"])
        raise BadRow("chosen", f"must be text or a list of messages, got {got}", "write the answer as text")
    several = SEVERAL.values() if layouts is LAYOUTS else ()
    known = "; ".join(layout.fields for layout in (*layouts.values(), *several))
    others = "chosen=NAME rejected=NAME" if layouts is LAYOUTS else "completion=NAME"
    raise BadRow(None, f"fits no layout, its fields are {', '.join(map(str, raw)) or 'none'}",
                 f"known are: {known}. --columns prompt=NAME {others} takes others")  # fmt: skip


def _finished(raw: Raw, layout: str, parts: RowParts, names: tuple[str, ...], from_arrow: bool) -> ParsedRow:
    """The checks that all layouts share, and the columns beside the pair."""
    prompt, answers, remarks = parts.prompt, list(parts.answers), set(parts.remarks)
    if prompt == []:
        raise BadRow("prompt", "has no turn: the conversation begins with the answer", "add the turn that is answered")
    extras = _extras(raw if parts.tools is None else {"tools": parts.tools} | dict(raw), prompt, from_arrow)
    remarks |= check_media(raw, prompt, answers)
    answers, marked = without_end_markers(prompt, answers)
    remarks |= marked
    if isinstance(prompt, str) and ("system" in extras or "tools" in extras):
        prompt, answers = as_turns(prompt, "user"), [as_turns(answer, "assistant") for answer in answers]
        remarks.add("wrapped")
    for name, answer in zip(names, answers, strict=True):
        _check_answer(answer, name, may_be_silent="silent" in remarks)
    fields = {"prompt": prompt, **dict(zip(names, answers, strict=True)), **extras}
    known = {*fields, *parts.used, "system", "tools", "weight"}
    others = {key: value for key, value in raw.items() if key not in known}
    said = "".join(turn.get("content", "") for turn in as_turns(prompt, "user"))
    if any(others.get(name) and str(others[name]).strip() not in said for name in _OF_A_PROMPT):
        remarks.add("unused")
    return ParsedRow(fields | others, layout, remarks)


def _check_answer(answer: TextOrTurns, name: str, *, may_be_silent: bool) -> None:
    if isinstance(answer, str):
        empty = not answer.strip() and not may_be_silent
    elif not answer:
        raise BadRow(name, "has no turn after the prompt", "add the assistant's answer")
    elif answer[0]["role"] != "assistant":
        raise BadRow(name, f"begins with a turn of the {answer[0]['role']}", "begin the answer with an assistant turn")
    elif answer[-1]["role"] in ("user", "system"):
        raise BadRow(name, f"ends with a turn of the {answer[-1]['role']}", "end the answer with an assistant turn")
    elif any(turn.get("weight") in (0, "0") or turn.get("loss") is False
             for turn in answer if turn["role"] == "assistant"):  # fmt: skip
        raise BadRow(name, "has a turn marked as one not to be learnt (weight 0, or loss false)",
                     "leave the row out, or end the conversation before that turn")  # fmt: skip
    else:
        empty = all(is_empty(turn) for turn in answer)
    if empty:
        raise BadRow(name, f"must not be empty, got {shown(answer)}", "write the answer, or leave the row out")


def _extras(raw: Raw, prompt: TextOrTurns, from_arrow: bool) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if raw.get("system") not in (None, "", []):
        extras["system"] = joined_text(raw["system"], "system")
        if isinstance(prompt, list) and prompt and prompt[0]["role"] == "system":
            if prompt[0].get("content") != extras["system"]:
                raise BadRow("system", "differs from the system turn with which the prompt begins", "keep one of them")
            del extras["system"]  # it stands in the prompt already
    if raw.get("tools") not in (None, "", []):
        extras["tools"] = check_tools(raw["tools"], from_arrow=from_arrow)
    if raw.get("weight") not in (None, ""):
        extras["weight"] = check_weight(raw["weight"])
    return extras


def check_weight(value: Any) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise BadRow("weight", f"must be a finite number and not negative, got {shown(value)}",
                     "1 counts a row once, 0 leaves it out of the loss")  # fmt: skip
    return weight
