"""The layouts in which preference data comes: where the prompt is, where the answers are, what parts them.

`LAYOUTS` (pairs) and `EXAMPLE_LAYOUTS` (prompt and completion) are the tables. What a layout cannot take apart
is refused with a `BadRow`; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_lab.preferences.mending import taken_once
from dpo_lab.preferences.messages import (
    Message,
    TextOrTurns,
    as_turns,
    check_messages,
    last_shared_answer,
    text_of,
)
from dpo_lab.preferences.reports import BadRow, shown

Raw = Mapping[str, Any]

COLUMNS = (
    "prompt", "chosen", "rejected", "completion", "label", "messages", "system", "tools", "weight", "completions",
    "scores", "ranks", "overall_preference", "better_response_id",
)  # fmt: skip
"""The fields that `columns` may find under another name."""

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class RowParts(NamedTuple):
    """What a layout found: the prompt, its answers, and the fields it used up."""

    prompt: TextOrTurns
    answers: tuple[TextOrTurns, ...]
    used: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    tools: Any = None  # where they stand in another field than `tools`


Split = Callable[[Raw, bool], RowParts]


def need(raw: Raw, name: str) -> Any:
    if raw.get(name) is None:
        if name in raw:
            raise BadRow(name, "is null", "write it, or leave the row out")
        raise BadRow(name, f"is missing; the row has {', '.join(map(str, raw)) or 'no field'}", _where(name))
    return raw[name]


def _where(name: str) -> str:
    return f"add {name!r}" + (f", or say where it is with --columns {name}=NAME" if name in COLUMNS else "")


def _text_or_turns(value: object, name: str, from_arrow: bool) -> TextOrTurns:
    return text_of(value, name) if isinstance(value, str) else check_messages(value, name, from_arrow=from_arrow)


def _beside(name: str) -> Split:
    """A prompt of its own in the field `name`, text or turns. Answers that are whole conversations lose its turns."""

    def split(raw: Raw, arrow: bool) -> RowParts:
        prompt = _text_or_turns(need(raw, name), name, arrow)
        chosen, rejected = (_text_or_turns(need(raw, side), side, arrow) for side in ("chosen", "rejected"))
        return _after(prompt, name, chosen, rejected)

    return split


def _after(prompt: TextOrTurns, name: str, chosen: TextOrTurns, rejected: TextOrTurns) -> RowParts:
    used = (name, "chosen", "rejected")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return _apart(prompt, (chosen, rejected), used)
    # One list among the three makes the row a conversation.
    chosen, rejected = as_turns(chosen, "assistant"), as_turns(rejected, "assistant")
    size = len(prompt) if isinstance(prompt, list) else 0
    if size and chosen[:size] == prompt == rejected[:size]:
        return _apart(prompt, (chosen[size:], rejected[size:]), used)
    begin = chosen[0]["role"], rejected[0]["role"]
    if begin == ("assistant", "assistant") or (size and "assistant" in begin):
        return _apart(as_turns(prompt, "user"), (chosen, rejected), used)
    whole = _whole_conversations(chosen, rejected)
    turns = whole.prompt if isinstance(whole.prompt, list) else []
    if isinstance(prompt, str):
        is_shared = any(turn.get("content", "").strip() == prompt.strip() for turn in turns)
    else:
        is_shared = prompt[: len(turns)] == turns
    if not is_shared:
        raise BadRow(name, f"is not among the turns that chosen and rejected share, got {shown(prompt)}",
                     "take it out, or make chosen and rejected the answers alone")  # fmt: skip
    return whole._replace(used=used)


def _apart(prompt: TextOrTurns, answers: tuple[TextOrTurns, ...], used: tuple[str, ...]) -> RowParts:
    """Prompt and answers that stand apart, without what stands in both."""
    prompt, answers, remarks = taken_once(prompt, answers)
    if any(isinstance(answer, str) and HUMAN in answer for answer in answers):
        remarks = (*remarks, "human_inside")
    return RowParts(prompt, answers, used, remarks)


def _messages(raw: Raw, arrow: bool) -> RowParts:
    """Turns with both answers beside them; or with the rejected one alone, and the last turn is the chosen one."""
    if raw.get("chosen") is not None:
        return _beside("messages")(raw, arrow)
    if raw.get("rejected_messages") is not None:
        both = [check_messages(raw[name], name, from_arrow=arrow) for name in ("messages", "rejected_messages")]
        return _whole_conversations(*both)._replace(used=("messages", "rejected_messages"))
    turns, [chosen] = _conversation("messages")(raw, arrow)[:2]
    return _after(turns, "messages", chosen, _text_or_turns(need(raw, "rejected"), "rejected", arrow))


def _whole_conversations(chosen: list[Message], rejected: list[Message]) -> RowParts:
    at = last_shared_answer(chosen, rejected)
    answers = chosen[at:], rejected[at:]
    late = [sum(turn["role"] == "assistant" for turn in answer) > 1 for answer in answers]
    return RowParts(chosen[:at], answers, ("chosen", "rejected"), _parting(*late))


def _parting(chosen_goes_on: bool, rejected_goes_on: bool) -> tuple[str, ...]:
    return ("split_early",) if chosen_goes_on else ("run_on",) if rejected_goes_on else ()


def _implicit(raw: Raw, arrow: bool) -> RowParts:
    """chosen and rejected are whole message lists: split at the last assistant turn before which they agree."""
    chosen, rejected = (check_messages(need(raw, name), name, from_arrow=arrow) for name in ("chosen", "rejected"))
    return _whole_conversations(chosen, rejected)


def _transcript(raw: Raw, arrow: bool) -> RowParts:
    r"""chosen and rejected are texts of `\n\nHuman:` and `\n\nAssistant:` turns, as in hh-rlhf.

    The border is the last `\n\nAssistant:` up to which both texts agree, never a common character prefix: that
    would move the words with which both answers begin into the prompt.
    """
    chosen, rejected = (text_of(need(raw, name), name) for name in ("chosen", "rejected"))
    border = chosen.rfind(ASSISTANT)
    while border >= 0 and not rejected.startswith(chosen[: border + len(ASSISTANT)]):
        border = chosen.rfind(ASSISTANT, 0, border)
    if border < 0:
        name = "rejected" if ASSISTANT in chosen and ASSISTANT not in rejected else "chosen"
        rule = "and rejected share no turn" if ASSISTANT in chosen and ASSISTANT in rejected else "has no prompt"
        raise BadRow(name, f"{rule}: a transcript needs {ASSISTANT!r} after what both have in common",
                     "give the prompt in a field of its own, or write transcripts")  # fmt: skip
    at = border + len(ASSISTANT)
    answers = chosen[at:], rejected[at:]
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if answer.rfind(HUMAN) > answer.rfind(ASSISTANT):
            raise BadRow(name, "ends with a human turn", "end the transcript with the assistant's answer")
    late = [ASSISTANT in answer for answer in answers]
    silent = () if all(answer.strip() for answer in answers) else ("silent",)
    human = ("human_inside",) if any(HUMAN in answer for answer in answers) else ()
    return RowParts(chosen[:at], answers, ("chosen", "rejected"), _parting(*late) + silent + human)


def _instruction_prompt(raw: Raw) -> tuple[list[Message], tuple[str, ...]]:
    """instruction + input, or one of them, or question, as a user turn, after the turns of `history` where it is."""
    name = next((name for name in ("instruction", "question") if name in raw), "input")
    text = text_of(need(raw, name), name)
    if raw.get("input") and name != "input":
        text = f"{text}\n\n{text_of(raw['input'], 'input')}" if text else text_of(raw["input"], "input")
    turns: list[Message] = []
    history = raw.get("history") or []
    if not isinstance(history, list | tuple):
        raise BadRow("history", f"must be a list of exchanges, got {shown(history)}", "write [[question, answer], ...]")
    for index, exchange in enumerate(history):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise BadRow(f"history[{index}]", f"must be a question and its answer, got {shown(exchange)}",
                         "write [question, answer]")  # fmt: skip
        turns += [{"role": role, "content": text_of(part, f"history[{index}]")}
                  for role, part in zip(("user", "assistant"), exchange, strict=True)]  # fmt: skip
    return [*turns, {"role": "user", "content": text}], (name, "input", "history")


def _answer_turns(raw: Raw, arrow: bool) -> tuple[list[Message], ...]:
    names = ("chosen", "rejected")
    return tuple(as_turns(_text_or_turns(need(raw, name), name, arrow), "assistant") for name in names)


def _instruction(raw: Raw, arrow: bool) -> RowParts:
    """instruction, input, output + chosen and rejected. `output` stays a column; it takes no part."""
    prompt, used = _instruction_prompt(raw)
    return _apart(prompt, _answer_turns(raw, arrow), (*used, "chosen", "rejected"))


def _openai(raw: Raw, arrow: bool) -> RowParts:
    """OpenAI's fine-tuning files: input.messages, preferred_output, non_preferred_output."""
    request = need(raw, "input")
    if not isinstance(request, dict) or "messages" not in request:
        raise BadRow("input", f"must hold messages, got {shown(request)}", 'write {"messages": [...]}')
    names = ("preferred_output", "non_preferred_output")
    answers = tuple(check_messages(need(raw, name), name, from_arrow=arrow) for name in names)
    parts = _apart(check_messages(request["messages"], "input.messages", from_arrow=arrow), answers, ("input", *names))
    return parts._replace(tools=request.get("tools"))


def _has(*names: str) -> Callable[[Raw], bool]:
    return lambda raw: all(raw.get(name) is not None for name in names)


def _pair_of(kind: type) -> Callable[[Raw], bool]:
    return lambda raw: isinstance(raw.get("chosen"), kind) or isinstance(raw.get("rejected"), kind)


class RowLayout(NamedTuple):
    """When it applies, how it is taken apart, and how to describe it to somebody whose row fits none."""

    applies: Callable[[Raw], bool]
    split: Callable[[Raw, bool], RowParts]
    fields: str


# The first that applies wins; a field of its own for the prompt says most.
LAYOUTS: dict[str, RowLayout] = {
    "explicit": RowLayout(_has("prompt"), _beside("prompt"), "prompt, chosen, rejected"),
    "messages": RowLayout(_has("messages"), _messages, "messages, chosen, rejected (or rejected_messages)"),
    "sharegpt": RowLayout(_has("conversations"), _beside("conversations"), "conversations, chosen, rejected"),
    "openai": RowLayout(_has("preferred_output"), _openai, "input, preferred_output, non_preferred_output"),
    "instruction": RowLayout(lambda raw: any(map(raw.get, ("instruction", "question", "input"))), _instruction,
                             "instruction (or question), input, chosen, rejected"),
    "implicit": RowLayout(_pair_of(list), _implicit, "chosen, rejected (whole message lists)"),
    "transcript": RowLayout(_pair_of(str), _transcript, r"chosen, rejected (texts with \n\nHuman: and \n\nAssistant:)"),
}  # fmt: skip


def _completion(raw: Raw, arrow: bool) -> RowParts:
    prompt, completion = (_text_or_turns(need(raw, name), name, arrow) for name in ("prompt", "completion"))
    if isinstance(prompt, list) or isinstance(completion, list):
        prompt, completion = as_turns(prompt, "user"), as_turns(completion, "assistant")
    return _apart(prompt, (completion,), ("prompt", "completion"))


def _conversation(name: str) -> Split:
    def split(raw: Raw, arrow: bool) -> RowParts:
        """The last assistant turn is the completion, all before it the prompt."""
        turns = check_messages(need(raw, name), name, from_arrow=arrow)
        if turns[-1]["role"] != "assistant":
            raise BadRow(name, f"must end with an assistant turn, ends with one of the {turns[-1]['role']}",
                         "add the answer that is to be learnt")  # fmt: skip
        return RowParts(turns[:-1], (turns[-1:],), (name,))

    return split


def _alpaca(raw: Raw, arrow: bool) -> RowParts:
    prompt, used = _instruction_prompt(raw)
    answer = as_turns(text_of(need(raw, "output"), "output"), "assistant")
    return RowParts(prompt, (answer,), (*used, "output"))


EXAMPLE_LAYOUTS: dict[str, RowLayout] = {
    "completion": RowLayout(_has("prompt", "completion"), _completion, "prompt, completion"),
    "messages": RowLayout(_has("messages"), _conversation("messages"), "messages"),
    "conversations": RowLayout(_has("conversations"), _conversation("conversations"), "conversations"),
    "alpaca": RowLayout(_has("instruction", "output"), _alpaca, "instruction, input, output"),
}


def is_example(raw: Raw) -> bool:
    """Whether a row has a prompt with one answer, in one of the layouts of examples."""
    return any(layout.applies(raw) for layout in EXAMPLE_LAYOUTS.values())


def _labelled(raw: Raw, arrow: bool) -> RowParts:
    layout = next(layout for layout in EXAMPLE_LAYOUTS.values() if layout.applies(raw))
    parts = layout.split(raw, arrow)
    return parts._replace(used=(*parts.used, "label"))


UNPAIRED_LAYOUTS: dict[str, RowLayout] = {
    "unpaired": RowLayout(is_example, _labelled, "prompt, completion, label (or messages, label)"),
}  # fmt: skip
"""One answer with a yes or a no, for the losses that learn from single answers."""
