"""Conversations as lists of messages: what a valid turn is, and other dialects → ours.

A message is {"role": "system" | "user" | "assistant" | "tool", "content": text}; an assistant turn may carry
`tool_calls`, each {"name", "arguments"} or {"type": "function", "function": {"name", "arguments"}}, with the
arguments as an object or as JSON text. Further keys (`name`, `tool_call_id`, `reasoning_content`) are kept.
"""

from __future__ import annotations

import json
from typing import Any

from dpo_lab.preferences.reports import BadRow, shown

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "observation": "tool", "tool": "tool", "function_call": "assistant",
}  # fmt: skip


def text_of(value: object, field: str) -> str:
    """A text that a tokenizer can take."""
    if not isinstance(value, str):
        raise BadRow(field, f"must be text, got {shown(value)}", "write a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise BadRow(field, f"has half of a surrogate pair, {value[problem.start]!r}, at character {problem.start}",
                     "write the whole character, or take it out") from None  # fmt: skip
    return value


def check_messages(value: object, field: str, *, from_arrow: bool = False) -> list[Message]:
    """A list of valid turns. Keys that are None are taken off: arrow tables fill them in for other rows."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"must be text or a list of messages, got {shown(value)}",
                     'write [{"role": "user", "content": ...}, ...]')  # fmt: skip
    return [_message(turn, f"{field}[{index}]", from_arrow) for index, turn in enumerate(value)]


def _message(turn: object, field: str, from_arrow: bool) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(field, f"must be a message, got {shown(turn)}", 'write {"role": ..., "content": ...}')
    if "role" not in turn and "from" in turn:
        return _sharegpt_turn(turn, field)
    message = {key: value for key, value in turn.items() if value is not None}
    role = message.get("role")
    if role is None:
        raise BadRow(field, f"has no role, got {shown(turn)}", f"give it one of {', '.join(ROLES)}")
    if role not in ROLES:
        hint = "write system instead" if role == "developer" else f"use one of {', '.join(ROLES)}"
        raise BadRow(field, f"has the unknown role {role!r}", hint)
    if isinstance(message.get("content"), list):
        message["content"] = "".join(_part(part, field) for part in message["content"])
    if "content" in message:
        text_of(message["content"], f"{field}.content")
    if "tool_calls" in message:
        if role != "assistant":
            raise BadRow(field, f"has tool_calls in a turn of the {role}", "only the assistant calls tools")
        message["tool_calls"] = _tool_calls(message["tool_calls"], field, from_arrow)
        if not message["tool_calls"]:
            del message["tool_calls"]
    elif "content" not in message:
        raise BadRow(field, "has neither content nor tool_calls", "write what the turn says")
    return message


def _part(part: object, field: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRow(field, f"has content that is not text, {shown(part)}", "only text is trained on; take the row out")


def _tool_calls(calls: object, field: str, from_arrow: bool) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise BadRow(f"{field}.tool_calls", f"must be a list, got {shown(calls)}", 'write [{"name", "arguments"}]')
    return [_tool_call(call, f"{field}.tool_calls[{index}]", from_arrow) for index, call in enumerate(calls)]


def _tool_call(call: object, field: str, from_arrow: bool) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(field, f"must name a function, got {shown(call)}", 'write {"name": ..., "arguments": {...}}')
    if not isinstance(function.get("arguments", {}), dict | str):
        raise BadRow(field, f"needs arguments as an object or JSON text, got {shown(function['arguments'])}",
                     'write {"name": ..., "arguments": {...}}')  # fmt: skip
    assert isinstance(call, dict)
    return _without_none(call) if from_arrow else call


def _without_none(value: Any) -> Any:
    """Takes off the None fields with which arrow makes all structs of a column alike."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _sharegpt_turn(turn: dict[str, Any], field: str) -> Message:
    role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise BadRow(field, f"has the unknown role {turn['from']!r}", f"use one of {', '.join(SHAREGPT_ROLES)}")
    text = text_of(turn.get("value"), f"{field}.value")
    if turn["from"] != "function_call":
        return {"role": role, "content": text}
    try:
        calls = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as problem:
        raise BadRow(f"{field}.value", f"must be the JSON of a function call ({_why(problem)}), got {shown(text)}",
                     'write {"name": ..., "arguments": {...}}') from None  # fmt: skip
    calls = _tool_calls(calls if isinstance(calls, list) else [calls], field, False)
    return {"role": role, "content": "", "tool_calls": calls}


def _why(problem: Exception) -> str:
    return problem.msg if isinstance(problem, json.JSONDecodeError) else "nested too deeply"


def check_tools(value: object, *, from_arrow: bool = False) -> list[dict[str, Any]]:
    """The functions on offer: a list of objects, or the JSON of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise BadRow("tools", f"must be a list or the JSON of one ({_why(problem)}), got {shown(value)}",
                         "write a list of function descriptions") from None  # fmt: skip
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("tools", f"must be a list of objects, got {shown(value)}", "write a list of function descriptions")
    return _without_none(value) if from_arrow else value


def is_empty(message: Message) -> bool:
    return not message.get("tool_calls") and not message.get("content", "").strip()


def shared_turns(one: list[Message], other: list[Message]) -> int:
    """How many leading messages are the same."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def last_shared_answer(chosen: list[Message], rejected: list[Message]) -> int:
    """Index of the last assistant turn before which both conversations are the same: where a pair is split."""
    for index in range(min(shared_turns(chosen, rejected), len(chosen) - 1, len(rejected) - 1), -1, -1):
        if chosen[index]["role"] == "assistant" and rejected[index]["role"] == "assistant":
            return index
    raise BadRow("chosen", "and rejected share no prompt that an assistant turn follows in both",
                 "begin both with the same turns, or give the prompt in a field of its own")  # fmt: skip
