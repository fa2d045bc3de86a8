"""Text that nobody meant to be learnt: what stands twice, and markers of the end that were typed into answers.

Where the meaning is plain the text is taken once or off, and a remark counts the row; where it may be meant, the row
stays as it is and a remark counts it; where it is not plain, `BadRow`. The remarks are those of `reports.READ_AS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dpo_lab.preferences.messages import Message, TextOrTurns, as_turns
from dpo_lab.preferences.reports import BadRow, shown

END_MARKERS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<|eom_id|>", "<|return|>",
    "<end_of_turn>", "<eos>", "</s>", "<|eot|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
_MARKER = re.compile("|".join(map(re.escape, (*END_MARKERS, "<|im_start|>", "<|start_header_id|>", "<start_of_turn>"))))
_SENTENCE_ENDS, _CLOSERS = tuple(".!?…。！？"), "\"'”’)]*`"
_GOES_ON = re.compile(r"[\w,:;(\[{\"'“‘<=/-]\s*$")
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")

Mended = tuple[TextOrTurns, tuple[TextOrTurns, ...], tuple[str, ...]]  # prompt, answers, remarks


def taken_once(prompt: TextOrTurns, answers: tuple[TextOrTurns, ...]) -> Mended:
    """Prompt and answers, without what stands in both: a repeated prompt, an answer that the conversation ends with."""
    if isinstance(prompt, str):
        return _without_repeated_prompt(prompt, answers)
    turns = [as_turns(answer, "assistant") for answer in answers]
    for answer in turns:
        before = prompt[: len(prompt) - len(answer)]
        if before and answer and [_said(turn) for turn in prompt[-len(answer) :]] == [_said(turn) for turn in answer]:
            return before, answers, ("answer_in_prompt",)
    last = prompt[-1]
    if last["role"] != "assistant" or last.get("tool_calls"):
        asked = last.get("content", "").strip() if last["role"] == "user" else ""
        repeats = " " in asked and any(answer and answer[0].get("content", "").startswith(asked) for answer in turns)
        return prompt, answers, ("restates",) if repeats else ()
    return _going_on(prompt, turns)


def _without_repeated_prompt(prompt: str, answers: tuple[TextOrTurns, ...]) -> Mended:
    asked = prompt.strip()
    repeats = [isinstance(answer, str) and answer.lstrip().startswith(asked) for answer in answers]
    if not asked or not any(repeats):
        return prompt, answers, ()
    if not all(repeats) or " " not in asked:  # one word may well begin both answers
        return prompt, answers, ("restates",)
    exact = all(str(answer).startswith(prompt) for answer in answers)
    cut = (lambda answer: answer[len(prompt) :]) if exact else (lambda answer: answer.lstrip()[len(asked) :])
    if not all(map(str.strip, cut_off := tuple(map(cut, answers)))):
        raise BadRow(None, f"has an answer that only repeats the prompt, {shown(asked)}", "write what is answered")
    return prompt, cut_off, ("repeated_prompt",)


def _going_on(prompt: list[Message], answers: list[list[Message]]) -> Mended:
    """The prompt ends with an assistant turn: the beginning of the answer, which is not learnt."""
    begun = prompt[-1].get("content", "")
    texts = [answer[0].get("content", "") if answer else "" for answer in answers]
    repeats = all(text.startswith(begun) for text in texts)
    if not repeats and not prompt[-1].get("prefix") and any(text.startswith(begun) for text in texts):
        raise BadRow("prompt", f"ends with a beginning, {shown(begun)}, that only one of the answers repeats",
                     "let both begin with it, or neither")  # fmt: skip
    said = begun.rstrip().rstrip(_CLOSERS)
    is_begun = _GOES_ON.search(begun) and not said.endswith(_SENTENCE_ENDS)
    if len(prompt) == 1 or not (repeats or prompt[-1].get("prefix") or is_begun):
        raise BadRow("prompt", f"ends with an assistant turn that is none of the answers, got {shown(begun)}",
                     'take it out; or write "prefix": true into it, if the answers go on where it ends')  # fmt: skip
    if repeats:
        answers = [[{**first, "content": first["content"][len(begun) :]}, *rest] for first, *rest in answers]
    return [*prompt[:-1], {**prompt[-1], "prefix": True}], tuple(answers), ("prefill",)


def _said(turn: Message) -> tuple[Any, ...]:
    return turn["role"], turn.get("content", "").strip(), turn.get("tool_calls")


def without_end_markers(prompt: TextOrTurns, answers: list[TextOrTurns]) -> tuple[list[TextOrTurns], set[str]]:
    """The answers, without a marker at their end: the tokenizer's own end token comes there anyway.

    A text prompt with markers was rendered by hand, so the answers' own markers are meant; `<s>…</s>` may be HTML.
    """
    by_hand = isinstance(prompt, str) and _MARKER.search(prompt) is not None
    remarks: set[str] = set()

    def bare(text: str) -> str:
        said = text.rstrip()
        if by_hand and said.endswith(END_MARKERS):
            text = said  # a line end after it would bring a second one
        while said.endswith(END_MARKERS) and not by_hand and "<s>" not in said:
            said = said[: said.rindex("<")].rstrip()
        if said and said != text.rstrip():
            remarks.add("end_marker")
            text = said
        if _MARKER.search(text):
            remarks.add("marker_inside")
        return text

    def bare_answer(answer: TextOrTurns) -> TextOrTurns:
        if isinstance(answer, str):
            return bare(answer)
        is_spoken = lambda turn: turn["role"] == "assistant" and turn.get("content")
        return [turn | {"content": bare(turn["content"])} if is_spoken(turn) else turn for turn in answer]

    return [bare_answer(answer) for answer in answers], remarks


def check_media(raw: Mapping[str, Any], prompt: TextOrTurns, answers: list[TextOrTurns]) -> set[str]:
    """Pictures are not seen: BadRow where a column belongs to a place in a text, a remark where there is only one."""
    columns = [name for name in _MEDIA if raw.get(name) not in (None, "", [], {})]
    texts = [turn.get("content", "") for part in (prompt, *answers) for turn in as_turns(part, "user")]
    places = [place[0] for place in map(_PLACEHOLDER.search, texts) if place]
    if columns and places:
        raise BadRow(columns[0], f"belongs to the {places[0]} in the text, and only text is trained on",
                     "leave the row out")  # fmt: skip
    return {"media"} if columns else {"media_marker"} if places else set()
