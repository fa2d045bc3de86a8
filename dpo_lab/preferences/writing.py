"""Rows in our shape → the layouts of other tools. Every row that is written reads back as the same conversation; plain
text becomes turns where a layout knows turns alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dpo_lab.preferences.chat import answer_messages, is_conversation, prompt_messages, with_object
from dpo_lab.preferences.messages import Message, as_turns
from dpo_lab.preferences.raw_rows import raw_rows
from dpo_lab.preferences.reports import BadRow
from dpo_lab.preferences.rows import Row, preference_row

ANSWERS = ("chosen", "rejected", "completion")
_OF_LAYOUTS = ("messages", "rejected_messages", "conversations", "instruction", "question", "input", "history",
               "preferred_output")  # fmt: skip
"""Columns beside a pair that are left: a reader would take them for its turns."""
_TURNS = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def written(rows: Iterable[Row], to: str) -> Iterator[Row]:
    """Each row in the layout `to` of `WRITERS`; BadRow where that layout cannot say it."""
    if to not in WRITERS:
        raise ValueError(f"layout {to!r} is not written; choose one of {', '.join(WRITERS)}")
    return (_checked(row, to) for row in rows)


def _checked(row: Row, to: str) -> Row:
    ours = ("prompt", "system", "tools", *ANSWERS, *_OF_LAYOUTS)
    rest = {name: value for name, value in row.items() if name not in ours}
    place, why, raw = getattr(row, "place", None), "", {}
    if to != "trl" and "completion" in row:
        why = "it is a single answer"
    else:
        if to != "trl" and not is_conversation(row):  # the others know turns alone
            row = row | {name: as_turns(row[name], role) for name, role in _TURNS.items()}
        try:
            raw = rest | WRITERS[to](row)
            [back] = raw_rows(raw)
            is_same = _said(preference_row(back.raw).fields) == _said(row)
        except (ValueError, LookupError, AttributeError):
            is_same = False
        if not is_same:
            why = "that layout has no place for all that its turns say"
    if why:
        raise BadRow(None, f"cannot be written as {to} ({why})", "write it as trl", place)
    return {name: value for name, value in raw.items() if value is not None}


def _said(row: Mapping[str, Any]) -> list[Any]:
    """All that a row says, in whichever fields it says it."""
    answers = [row[name] for name in ANSWERS if name in row]
    if not is_conversation(row):
        return [row["prompt"], answers]
    return [list(map(_turn, prompt_messages(row))), [list(map(_turn, answer_messages(own))) for own in answers],
            row.get("tools") or None, row.get("label")]  # fmt: skip


def _turn(turn: Message) -> tuple[Any, ...]:
    calls = [(call.get("function") or call) for call in turn.get("tool_calls") or []]
    called = [(call["name"], with_object(call).get("arguments") or {}) for call in calls]
    return turn["role"], turn.get("content") or "", called, turn.get("name"), turn.get("reasoning_content")


def _trl(row: Row) -> Row:
    chat = is_conversation(row)
    answers = {name: answer_messages(row[name]) if chat else row[name] for name in ANSWERS if name in row}
    return {"prompt": prompt_messages(row) if chat else row["prompt"], **answers, "tools": row.get("tools")}


def _openai(row: Row) -> Row:
    request = {"messages": prompt_messages(row)} | ({"tools": row["tools"]} if row.get("tools") else {})
    return {"input": request, "preferred_output": answer_messages(row["chosen"]),
            "non_preferred_output": answer_messages(row["rejected"])}  # fmt: skip


def _sharegpt(row: Row) -> Row:
    def turn(message: Message) -> dict[str, str]:
        calls = [call.get("function") or call for call in message.get("tool_calls") or []]
        if not calls:
            return {"from": _SHAREGPT[message["role"]], "value": message["content"]}
        return {"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)}

    answers = {name: list(map(turn, answer_messages(row[name]))) for name in ("chosen", "rejected")}
    answers = {name: turns[0] if len(turns) == 1 else turns for name, turns in answers.items()}
    tools = json.dumps(row["tools"], ensure_ascii=False) if row.get("tools") else None
    return {"conversations": list(map(turn, prompt_messages(row))), **answers, "tools": tools}


def _swift(row: Row) -> Row:
    """ms-swift: the conversation ends with the chosen answer, and the rejected one is a text beside it."""
    [rejected] = answer_messages(row["rejected"])
    return {"messages": [*prompt_messages(row), *answer_messages(row["chosen"])],
            "rejected_response": rejected["content"], "tools": row.get("tools")}  # fmt: skip


def _alpaca(row: Row) -> Row:
    turns = prompt_messages(row)
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
    history = [[asked["content"], said["content"]] for asked, said in zip(turns[:-1:2], turns[1:-1:2], strict=True)]
    [[chosen], [rejected]] = (answer_messages(row[name]) for name in ("chosen", "rejected"))
    return {"instruction": turns[-1]["content"], "input": "", "system": system, "history": history or None,
            "chosen": chosen["content"], "rejected": rejected["content"], "tools": row.get("tools")}  # fmt: skip


WRITERS: dict[str, Callable[[Row], Row]] = {
    "trl": _trl,
    "openai": _openai,
    "sharegpt": _sharegpt,
    "swift": _swift,
    "alpaca": _alpaca,
}
