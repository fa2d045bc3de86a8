"""Conversations as lists of messages: what a valid turn is, and other dialects → ours.

A message is {"role": "system" | "user" | "assistant" | "tool", "content": text}; an assistant turn may carry
`tool_calls`, each {"name", "arguments"} or {"type": "function", "function": {"name", "arguments"}}, with the
arguments as an object or as JSON text. An assistant turn with `prefix` is the beginning of the answer, which goes on
where it ends. Further keys (`name`, `tool_call_id`, `reasoning_content`) are kept.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from numbers import Number
from typing import Any

from dpo_lab.preferences.reports import BadRow, shown

Message = dict[str, Any]
TextOrTurns = str | list[Message]  # plain text, or turns

_NO_COMMA = re.compile(r"\}\s*\n\s*\{")
_MESSAGES = re.compile(r"\s*\[?\s*\{\s*[\"'](role|from|content|value)[\"']")

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {
    "developer": "system", "human": "user", "gpt": "assistant", "model": "assistant", "function_call": "assistant",
    "tool_call": "assistant", "observation": "tool", "tool_response": "tool", "function": "tool",
}  # fmt: skip
"""How other tools call a role; ShareGPT's are among them."""
CALLS = ("function_call", "tool_call")  # roles whose text is the JSON of a call


def text_of(value: object, field: str) -> str:
    """A text that a tokenizer can take."""
    if not isinstance(value, str):
        remedy = "decode the bytes, as in value.decode('utf-8')" if isinstance(value, bytes) else "write a string"
        raise BadRow(field, f"must be text, got {shown(value)}", remedy)
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
        remedy = 'write [{"role": "user", "content": ...}, ...]'
        if isinstance(value, Number | bytes):
            remedy = f'write it as text, "{value}"' if isinstance(value, Number) else "decode the bytes"
        raise BadRow(field, f"must be text or a list of messages, got {shown(value)}", remedy)
    return [_message(turn, f"{field}[{index}]", from_arrow) for index, turn in enumerate(value)]


def _message(turn: object, field: str, from_arrow: bool) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(field, f"must be a message, got {shown(turn)}", 'write {"role": ..., "content": ...}')
    message = {key: value for key, value in turn.items() if value is not None}
    says = "content"
    if "role" not in message and "from" in message:  # ShareGPT
        says = "value"
        message = {"role": message["from"], "content": text_of(message.get("value"), f"{field}.value")}
    if "parts" in message and "content" not in message:  # Gemini
        message["content"] = message.pop("parts")
    name = message.get("role")
    if name is None:
        raise BadRow(field, f"has no role, got {shown(turn)}", f"give it one of {', '.join(ROLES)}")
    role = OTHER_ROLES.get(str(name).lower(), str(name).lower())
    if role not in ROLES:
        known = ROLES if says == "content" else ("human", "gpt", "system", "tool", "function_call")
        raise BadRow(field, f"has the unknown role {name!r}", f"use one of {', '.join(known)}")
    message["role"] = role
    if "content" in message:
        message["content"] = joined_text(message["content"], f"{field}.{says}")
    if name in CALLS:
        message |= {"content": "", "tool_calls": _call_of_text(message.get("content"), f"{field}.{says}")}
    if "function_call" in message and "tool_calls" not in message:  # as OpenAI wrote one before `tool_calls`
        message["tool_calls"] = [message.pop("function_call")]
    if "tool_calls" in message:
        if role != "assistant":
            raise BadRow(field, f"has tool_calls in a turn of the {role}", "only the assistant calls tools")
        message["tool_calls"] = _tool_calls(message["tool_calls"], field, from_arrow)
        if not message["tool_calls"]:
            del message["tool_calls"]
    elif "content" not in message:
        raise BadRow(field, "has neither content nor tool_calls", "write what the turn says")
    return message


def joined_text(value: object, field: str) -> str:
    """A text, or the text of content that comes in parts."""
    return text_of("".join(_part(part, field) for part in value) if isinstance(value, list) else value, field)


def _part(part: object, field: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
        return text_of(part.get("text"), f"{field}.text")
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


def _call_of_text(text: object, field: str) -> list[Any]:
    calls, why = value_of_text(text)
    if calls is None:
        raise BadRow(field, f"must be the JSON of a function call ({why}), got {shown(text)}",
                     'write {"name": ..., "arguments": {...}}')  # fmt: skip
    return calls if isinstance(calls, list) else [calls]


def value_of_text(text: object) -> tuple[Any, str]:
    """The value of a text of JSON, or of Python as `repr` and pandas write it; None and why not where it is neither."""
    if not isinstance(text, str):
        return None, "no text"
    try:
        return json.loads(text), ""
    except ValueError as problem:
        why = getattr(problem, "msg", str(problem))
    except RecursionError:
        return None, "nested too deeply"
    try:  # numpy writes line ends where lists have commas; inside of texts both write them as \\n
        with warnings.catch_warnings(action="ignore"):  # about backslashes, where it is no Python
            return ast.literal_eval(_NO_COMMA.sub("}, {", text.strip())), ""
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None, why


def messages_of_text(text: object) -> Any:
    """The message or the list of messages that a text of JSON or of Python is; None where it is something else."""
    if not isinstance(text, str) or not _MESSAGES.match(text):
        return None
    value, _ = value_of_text(text)
    turns = value if isinstance(value, list) else [value]
    return value if turns and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns) else None


def check_tools(value: object, *, from_arrow: bool = False) -> list[dict[str, Any]]:
    """The functions on offer: a list of objects, or the text of one."""
    if isinstance(value, str):
        value, why = value_of_text(text := value)
        if value is None:
            raise BadRow("tools", f"must be a list or the JSON of one ({why}), got {shown(text)}",
                         "write a list of function descriptions")  # fmt: skip
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("tools", f"must be a list of objects, got {shown(value)}", "write a list of function descriptions")
    return _without_none(value) if from_arrow else value


def as_turns(value: TextOrTurns, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


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
