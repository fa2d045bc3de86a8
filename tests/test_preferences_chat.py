"""Conversations as text: the default template, the tokenizer's own, and text for readers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_lab.preferences import completion_text, prompt_text, render_prompt, tokenize_pairs
from dpo_lab.preferences.chat import render, render_whole
from tests.small_tokenizers import CHATML, bpe

ASK = [{"role": "user", "content": "Time?"}]
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"properties": {"zone": {"type": "string"}}}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "clock", "arguments": {"zone": "CET"}}]}

TURN = st.one_of(
    st.builds(lambda text: {"role": "user", "content": text}, st.text(max_size=8)),
    st.builds(lambda text: {"role": "assistant", "content": text}, st.text(max_size=8)),
    st.builds(lambda text: {"role": "tool", "content": text}, st.text(max_size=8)),
    st.just(CALL),
)


def test_the_default_template_word_for_word():
    row = {
        "prompt": [*ASK, CALL, {"role": "tool", "content": "12:00"}],
        "chosen": [{"role": "assistant", "content": "Noon."}],
        "system": "Be brief.",
        "tools": [{"name": "clock"}],
    }
    prompt = (
        'Tools:\n{"name": "clock"}\n\nSystem:\nBe brief.\n\nUser:\nTime?\n\n'
        'Assistant:\nCall: clock {"zone": "CET"}\n\nTool:\n12:00\n\nAssistant:\n'
    )
    assert render_prompt(row, bpe()) == prompt
    assert render_whole(row, "chosen", bpe()) == prompt + "Noon.\n\n"


@settings(max_examples=30, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=4), st.text(min_size=1, max_size=8), st.sampled_from([None, [CLOCK]]))
def test_the_default_template_is_prefix_stable(turns, answer, tools):
    opened = render(turns, bpe(), tools, open_answer=True)
    assert render([*turns, {"role": "assistant", "content": answer}], bpe(), tools) == opened + answer + "\n\n"


def test_the_system_column_leads_and_tools_reach_the_template_of_the_tokenizer():
    row = {"prompt": ASK, "system": "Be brief.", "tools": [CLOCK]}
    assert render_prompt(row, bpe(template=CHATML)) == (
        f"<|im_start|>system\n{json.dumps(CLOCK)}<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nTime?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("wrapped", [True, False])
def test_arguments_as_an_object_and_as_its_json_are_rendered_alike(wrapped):
    def row(arguments):
        function = {"name": "clock", "arguments": arguments}
        call = {"type": "function", "function": function} if wrapped else function
        return {"prompt": ASK, "chosen": [{"role": "assistant", "tool_calls": [call]}]}

    text = render_whole(row({"zone": "CET"}), "chosen", bpe())
    assert text.endswith('Assistant:\nCall: clock {"zone": "CET"}\n\n')
    assert render_whole(row('{"zone":"CET"}'), "chosen", bpe()) == text
    assert render_whole(row('{"zone": '), "chosen", bpe()).endswith('Call: clock {"zone": \n\n')


def test_content_and_several_calls_stand_on_lines_of_their_own():
    turn = {"role": "assistant", "content": "Wait.", "tool_calls": [{"name": "a", "arguments": {}}, {"name": "b"}]}
    assert render([*ASK, turn], bpe()).endswith("Assistant:\nWait.\nCall: a {}\nCall: b {}\n\n")


def test_a_plain_prompt_is_rendered_as_it_is_whatever_the_tokenizer_has():
    assert render_prompt({"prompt": "Once upon"}, bpe()) == "Once upon"
    assert render_prompt({"prompt": "Once upon"}, bpe(template=CHATML)) == "Once upon"


def test_a_plain_prompt_with_a_system_column_is_a_conversation():
    row = {"prompt": "Time?", "system": "Be brief.", "chosen": "Noon.", "rejected": "No."}
    assert render_prompt(row, bpe()) == "System:\nBe brief.\n\nUser:\nTime?\n\nAssistant:\n"
    data, report = tokenize_pairs([row], bpe())
    assert bpe().decode(data.row(0).completions[0]) == "Noon.<eos>"
    assert report.template == "default"


def test_text_for_readers_needs_no_tokenizer():
    row = {"prompt": ASK, "system": "Be brief.", "chosen": [CALL], "rejected": "No.", "completion": [*ASK, CALL]}
    assert prompt_text(row) == "System: Be brief.\n\nUser: Time?"
    assert prompt_text({"prompt": "Once"}) == "Once"
    assert completion_text(row) == '[calls clock {"zone": "CET"}]'
    assert completion_text(row, "rejected") == "No."
    assert completion_text(row, "completion") == 'User: Time?\n\nAssistant: [calls clock {"zone": "CET"}]'
    with pytest.raises(ValueError, match="the row has no 'chosen', its fields are"):
        completion_text({"prompt": "x"})
