"""Writers and inspection: what is written reads back as the same, and what is shown is what is trained on."""

from __future__ import annotations

import json

import pytest

from dpo_lab.preferences import read_preferences, render_prompt, tokenize_pairs
from dpo_lab.preferences.inspection import inspect_data, plain
from dpo_lab.preferences.writing import WRITERS, written
from tests.small_tokenizers import CHATML, bpe


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
CALL = said("", tool_calls=[{"name": "clock", "arguments": {"zone": "CET"}}])
PAIR = {"prompt": [user("q")], "chosen": [said("yes")], "rejected": [said("no")]}
# row, layouts that cannot say it
ROWS = {
    "one turn": (PAIR, ()),
    "several turns and a system turn": (
        PAIR | {"prompt": [{"role": "system", "content": "s"}, user("q"), said("a"), user("r")]}, ()),
    "a system column and others": (PAIR | {"system": "s", "weight": 2.0, "note": "é"}, ()),
    "tools": (PAIR | {"tools": TOOLS}, ()),
    "a call": (PAIR | {"chosen": [CALL], "tools": TOOLS}, ("alpaca",)),
    "a rejected call": (PAIR | {"rejected": [CALL]}, ("swift", "alpaca")),
    "a call and its result in the prompt": (
        PAIR | {"prompt": [user("q"), CALL, {"role": "tool", "content": "noon"}]}, ("alpaca",)),
    "answers of several turns": (
        PAIR | {"chosen": [CALL, {"role": "tool", "content": "noon"}, said("noon")]}, ("swift", "alpaca")),
    "a label": (
        {"prompt": "q", "completion": " yes", "label": False}, ("openai", "sharegpt", "swift", "alpaca")),
    "reasoning beside the answer": (
        PAIR | {"chosen": [said("yes", reasoning_content="so")]}, ("sharegpt", "alpaca")),
}  # fmt: skip


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("case", ROWS)
def test_what_is_written_reads_back_as_the_same(case, to):
    row, cannot = ROWS[case]
    [row], _ = read_preferences([row])
    if to in cannot:
        with pytest.raises(ValueError, match=rf"row index 0: cannot be written as {to} .*; write it as trl"):
            list(written([row], to))
        return
    [raw] = written([row], to)
    [back], report = read_preferences([json.loads(json.dumps(raw))])
    assert not report.is_remarkable
    template = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + CHATML
    tokenizer = bpe(
        template=template.replace("m.content", "m.content ~ (m.tool_calls | tojson if m.tool_calls else '')")
    )
    assert render_prompt(back, tokenizer) == render_prompt(row, tokenizer)
    if "chosen" in row:
        ours, theirs = (tokenize_pairs([each], tokenizer)[0].ids.tolist() for each in (row, back))
        assert ours == theirs or "tool_calls" in str(row), "calls may be wrapped otherwise"
    for name in set(row) - {"prompt", "chosen", "rejected", "system", "tools"}:
        assert back[name] == row[name]


@pytest.mark.parametrize("to", WRITERS)
def test_plain_text_becomes_turns_where_a_layout_knows_turns_alone(to):
    [raw] = written([{"prompt": "q", "chosen": " yes", "rejected": " no", "messages": [user("of old")]}], to)
    [back], _ = read_preferences([raw])
    if to == "trl":
        assert (back["prompt"], back["chosen"]) == ("q", " yes")
    else:
        assert (back["prompt"], back["chosen"]) == ([user("q")], [said(" yes")])


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout 'csv' is not written; choose one of trl, openai"):
        written([], "csv")


def test_what_is_shown_are_the_tokens_that_are_trained_on():
    tokenizer = bpe(template=CHATML)
    row = PAIR | {"prompt": [user("What is the answer? " * 6)], "chosen": [said("forty-two " * 4)]}
    found = inspect_data([row, PAIR, PAIR | {"chosen": 3}], tokenizer, max_length=40, num_rows=2)
    data, _ = tokenize_pairs([row, PAIR], tokenizer, max_length=40)
    for index, shown in enumerate(found.rows):
        kept = lambda name, shown=shown: "".join("".join(p.tokens) for p in shown.texts[name] if p.fate != "cut")
        assert kept("prompt") == tokenizer.decode(data.row(index).prompt)
        assert [kept("chosen"), kept("rejected")] == list(map(tokenizer.decode, data.row(index).completions))
        assert [part.fate for part in shown.texts["chosen"] if part.tokens][:1] == ["scored"]
    whole = "".join("".join(part.tokens) for part in found.rows[0].texts["prompt"])
    assert whole == render_prompt(row, tokenizer), "with what is cut it is the whole prompt"
    assert "⟨cut: " in plain(found.rows[0].texts["prompt"][1])
    assert "left out, unusable: 1" in str(found)
    assert "|n|o|<|im_end|>|" in str(found)


def test_a_notebook_shows_it_as_html_without_the_markup_of_data():
    page = inspect_data([PAIR | {"chosen": "<script>"}], bpe(template=CHATML))._repr_html_()
    assert "<script>" not in page
    assert "&lt;" in page
    assert "line-through" in page


def test_examples_and_answers_with_a_label_are_shown_too():
    tokenizer = bpe(template=CHATML)
    found = inspect_data([{"messages": [user("q"), said("yes")]}], tokenizer, sft=True)
    assert list(found.rows[0].texts) == ["prompt", "completion"]
    found = inspect_data([{"prompt": "q", "completion": "yes", "label": True}], tokenizer)
    assert list(found.rows[0].texts) == ["prompt", "completion"]


def test_the_first_token_of_an_empty_prompt_is_not_scored():
    [row] = inspect_data([{"prompt": "", "chosen": "the cat", "rejected": "the dog"}], bpe()).rows
    assert next((part.fate, len(part.tokens)) for part in row.texts["chosen"]) == ("prompt", 1)
