"""Conversations → text, by the tokenizer's own chat template or by a plain one. No token ids here.

A row is a conversation when its prompt is a message list, or when it has a `system` or `tools` column. Everything
else is plain text that the model continues, and is never put into a template, whether the tokenizer has one or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpo_lab.preferences.messages import Message
from dpo_lab.preferences.reports import BadRow, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_REASONING = ("reasoning_content", "reasoning", "thinking")
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}

# Plain words, since a model without a template has no tokens for turns. An answer begins exactly where the generation
# prompt ends, and what comes before it doesn't depend on it: the rendered prompt always begins the rendered whole.
DEFAULT_CHAT_TEMPLATE = """\
{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} -%}
{%- if tools -%}
{{- 'Tools:\\n' -}}
{%- for tool in tools -%}{{- tool | tojson + '\\n' -}}{%- endfor -%}
{{- '\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- names[message.role] + ':\\n' + message.content -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{%- if message.content or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- 'Call: ' + function.name + ' ' -}}
{{- function.arguments if function.arguments is string else (function.arguments or {}) | tojson -}}
{%- endfor -%}
{{- '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- names.assistant + ':\\n' -}}{%- endif -%}
"""


def is_conversation(row: Mapping[str, Any]) -> bool:
    return isinstance(row["prompt"], list) or bool(row.get("system")) or bool(row.get("tools"))


def prompt_messages(row: Mapping[str, Any]) -> list[Message]:
    """The turns before the answer, with the `system` column as the leading system turn."""
    prompt = row["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [{"role": "system", "content": row["system"]}, *turns] if row.get("system") else turns


def split_prefill(turns: list[Message]) -> tuple[list[Message], str]:
    """The turns before the answer, and its beginning where the last turn is a `prefix`."""
    return (turns[:-1], turns[-1].get("content") or "") if turns and turns[-1].get("prefix") else (turns, "")


def answer_messages(answer: str | list[Message]) -> list[Message]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else list(answer)


def has_own_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def render(
    messages: list[Message],
    tokenizer: PreTrainedTokenizerBase,
    tools: list[dict[str, Any]] | None = None,
    *,
    open_answer: bool = False,
) -> str:
    """The conversation as text. `open_answer` ends it where the assistant's next answer begins."""
    template = None if has_own_template(tokenizer) else DEFAULT_CHAT_TEMPLATE
    try:
        text = tokenizer.apply_chat_template(
            [_for_template(message) for message in messages],
            tools=tools or None,  # type: ignore[arg-type]
            chat_template=template,
            add_generation_prompt=open_answer,
            tokenize=False,
        )
    except Exception as problem:  # a template is a program of its own: jinja errors, TypeError, KeyError, ...
        raise BadRow(
            None,
            f"does not go through the tokenizer's chat template ({type(problem).__name__}: {problem})",
            "bring the turns into the order and the roles that the template knows",
        ) from problem
    assert isinstance(text, str)
    return text


def _for_template(message: Message) -> Message:
    """What templates rely on: content is text, and arguments are an object where their text is JSON of one."""
    message = {key: value for key, value in message.items() if value is not None}
    message.setdefault("content", "")
    if "tool_calls" in message:
        message["tool_calls"] = [with_object(call) for call in message["tool_calls"]]
    return message


def with_object(call: dict[str, Any]) -> dict[str, Any]:
    if call.get("function"):
        return call | {"function": with_object(call["function"])}
    if isinstance(call.get("arguments"), str):
        try:
            arguments = json.loads(call["arguments"])
        except (ValueError, RecursionError):
            return call  # a rejected answer may well hold broken JSON
        if isinstance(arguments, dict):
            return call | {"arguments": arguments}
    return call


def render_prompt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the model continues: plain prompts as they are, conversations up to the opened answer."""
    if not is_conversation(row):
        return row["prompt"]
    turns, begun = split_prefill(prompt_messages(row))
    return render(turns, tokenizer, row.get("tools"), open_answer=True) + begun


def render_whole(row: Mapping[str, Any], name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Prompt and answer in one text."""
    if not is_conversation(row):
        return row["prompt"] + row[name]
    turns, begun = split_prefill(prompt_messages(row))
    first, *rest = answer_messages(row[name])
    if begun:
        first = first | {"content": begun + (first.get("content") or "")}
    return render([*turns, first, *rest], tokenizer, row.get("tools"))


def dropped_text(answer: str | list[Message], whole: str) -> str | None:
    """What an answer says and the rendered whole doesn't, such as reasoning, or a call that a template doesn't know."""
    for turn in answer_messages(answer):
        calls = [(call.get("function") or call)["name"] for call in turn.get("tool_calls") or []]
        for text in (*map(turn.get, ("content", *_REASONING)), *calls):
            if text and text.strip() not in whole and not _is_within(text, whole):
                return text
    return None


def dropped_from_prompt(row: Mapping[str, Any], prompt: str) -> str | None:
    """As `dropped_text`, of the turns before the answer and the functions on offer. Earlier reasoning isn't meant to
    stay."""
    turns = [{key: _THOUGHTS.sub("", value) if key == "content" else value for key, value in turn.items()
              if key not in _REASONING} for turn in prompt_messages(row)]  # fmt: skip
    offered = [{"content": str((tool.get("function") or tool).get("name") or "")} for tool in row.get("tools") or []]
    return dropped_text([*turns, *offered], prompt)


def _is_within(text: str, whole: str) -> bool:
    """Whatever a template does to spaces; and as JSON, as some write what a tool returned."""
    return any(_unspaced(form) in _unspaced(whole) for form in (text, json.dumps(text, ensure_ascii=False)[1:-1]))


def _unspaced(text: str) -> str:
    return "".join(text.split())


def prompt_text(row: Mapping[str, Any]) -> str:
    """The prompt for a human reader, without any tokenizer."""
    if not is_conversation(row):
        return row["prompt"]
    return "\n\n".join(f"{_NAMES.get(turn['role'], turn['role'])}: {_spoken(turn)}" for turn in prompt_messages(row))


def completion_text(row: Mapping[str, Any], name: str = "chosen") -> str:
    """An answer ("chosen", "rejected" or "completion") for a human reader."""
    if name not in row:
        raise ValueError(f"the row has no {name!r}, its fields are {shown(list(row))}; pairs have chosen and rejected")
    turns = answer_messages(row[name])
    if len(turns) == 1:
        return _spoken(turns[0])
    return "\n\n".join(f"{_NAMES.get(turn['role'], turn['role'])}: {_spoken(turn)}" for turn in turns)


def _spoken(turn: Message) -> str:
    parts = [turn.get("content") or ""]
    for call in turn.get("tool_calls") or []:
        function = call.get("function") or call
        arguments = function.get("arguments") or {}
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        parts.append(f"[calls {function['name']} {text}]")
    return "\n".join(part for part in parts if part)
