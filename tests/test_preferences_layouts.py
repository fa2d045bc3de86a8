"""Layouts: where the prompt ends, what is kept, what is refused."""
# ruff: noqa: E501  tables of cases read best with one case on a line

import pytest

from dpo_lab.preferences import LAYOUTS, BadRow, read_examples, read_preferences


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def one(raw, **arguments):
    [row], report = read_preferences([raw], **arguments)
    return row, report


PAIR = {"prompt": [user("q")], "chosen": [said("yes")], "rejected": [said("no")]}
FUNCTION = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}

# layout, raw row, the row that must come out
CASES = {
    "plain text": ("explicit", {"prompt": "q", "chosen": " yes", "rejected": " no"},
        {"prompt": "q", "chosen": " yes", "rejected": " no"}),
    "message lists": ("explicit", PAIR, PAIR),
    "single messages": ("explicit", {"prompt": [user("q")], "chosen": said("yes"), "rejected": said("no")}, PAIR),
    "text answers to turns": ("explicit", {"prompt": [user("q")], "chosen": "yes", "rejected": "no"}, PAIR),
    "text prompt, answer turns": ("explicit", {"prompt": "q", "chosen": [said("yes")], "rejected": [said("no")]}, PAIR),
    "whole conversations beside the prompt's text (UltraFeedback)": ("explicit",
        {"prompt": "q", "chosen": [user("q"), said("yes")], "rejected": [user("q"), said("no")]}, PAIR),
    "whole conversations beside the prompt's turns": ("explicit",
        {"prompt": [user("q")], "chosen": [user("q"), said("yes")], "rejected": [user("q"), said("no")]}, PAIR),
    "implicit prompt": ("implicit",
        {"chosen": [user("q"), said("yes")], "rejected": [user("q"), said("no")]}, PAIR),
    "implicit, the same first words": ("implicit",
        {"chosen": [user("q"), said("well, yes")], "rejected": [user("q"), said("well, no")]},
        {"prompt": [user("q")], "chosen": [said("well, yes")], "rejected": [said("well, no")]}),
    "implicit, several turns": ("implicit",
        {"chosen": [system("s"), user("q"), said("a"), user("r"), said("yes")],
         "rejected": [system("s"), user("q"), said("a"), user("r"), said("no")]},
        {"prompt": [system("s"), user("q"), said("a"), user("r")], "chosen": [said("yes")], "rejected": [said("no")]}),
    "transcript": ("transcript",
        {"chosen": "\n\nHuman: q\n\nAssistant: the yes", "rejected": "\n\nHuman: q\n\nAssistant: the no"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " the yes", "rejected": " the no"}),
    "instruction": ("instruction", {"instruction": "do", "input": "it", "output": "kept", "chosen": "yes", "rejected": "no"},
        {**PAIR, "prompt": [user("do\n\nit")], "output": "kept"}),
    "instruction without input": ("instruction", {"instruction": "q", "input": "", "chosen": "yes", "rejected": "no"}, PAIR),
    "instruction with history": ("instruction",
        {"instruction": "r", "history": [["q", "a"]], "chosen": "yes", "rejected": "no"},
        {**PAIR, "prompt": [user("q"), said("a"), user("r")]}),
    "question and system": ("instruction", {"system": "s", "question": "q", "chosen": "yes", "rejected": "no"},
        {**PAIR, "system": "s"}),
    "ShareGPT": ("sharegpt",
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
         "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}},
        {**PAIR, "prompt": [system("s"), user("q")]}),
    "ShareGPT with tools": ("sharegpt",
        {"conversations": [{"from": "human", "value": "time?"},
                           {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": "CET"}}'},
                           {"from": "observation", "value": "noon"}],
         "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}, "tools": '[{"name": "clock"}]'},
        {**PAIR, "prompt": [user("time?"),
                            {"role": "assistant", "content": "",
                             "tool_calls": [{"name": "clock", "arguments": {"zone": "CET"}}]},
                            {"role": "tool", "content": "noon"}],
         "tools": [{"name": "clock"}]}),
    "OpenAI": ("openai",
        {"input": {"messages": [user("q")]}, "preferred_output": [said("yes")], "non_preferred_output": [said("no")]}, PAIR),
    "OpenAI with tools in the request": ("openai",
        {"input": {"messages": [{"role": "developer", "content": "s"}, user("q")], "tools": [FUNCTION]},
         "preferred_output": [said("yes")], "non_preferred_output": [said("no")]},
        {**PAIR, "prompt": [system("s"), user("q")], "tools": [FUNCTION]}),
    "messages, answers as messages": ("messages", {"messages": [user("q")], "chosen": said("yes"), "rejected": said("no")}, PAIR),
    "messages, answers as lists": ("messages", {"messages": [user("q")], "chosen": [said("yes")], "rejected": [said("no")]}, PAIR),
    "messages, answers as texts": ("messages", {"messages": [user("q")], "chosen": "yes", "rejected": "no"}, PAIR),
    "messages that end with the chosen answer": ("messages",
        {"messages": [user("q"), said("yes")], "rejected_response": "no"}, PAIR),
    "messages beside whole conversations": ("messages",
        {"messages": [user("q"), said("yes")], "chosen": [user("q"), said("yes")], "rejected": [user("q"), said("no")]}, PAIR),
    "system and input": ("instruction", {"system": "s", "input": "q", "chosen": "yes", "rejected": "no"}, {**PAIR, "system": "s"}),
    "chosen_response": ("instruction", {"instruction": "q", "chosen_response": "yes", "rejected_response": "no"}, PAIR),
    "roles of other tools": ("sharegpt",
        {"conversations": [{"role": "Human", "content": "time?"}, {"role": "tool_call", "content": '{"name": "clock"}'},
                           {"role": "tool_response", "content": "noon"}],
         "chosen": {"role": "model", "parts": [{"text": "yes"}]}, "rejected": {"role": "model", "content": "no"}},
        {**PAIR, "prompt": [user("time?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "clock"}]},
                            {"role": "tool", "content": "noon"}]}),
    "a legacy function_call": ("explicit",
        {**PAIR, "chosen": [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}]},
        {**PAIR, "chosen": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}]}),
    "other columns": ("explicit", {**PAIR, "job": "safe", "reward_chosen": 0.5, "split": "test", "note": None},
        {**PAIR, "job": "safe", "reward_chosen": 0.5, "split": "test", "note": None}),
    "weight and tools": ("explicit", {**PAIR, "weight": 2, "tools": [FUNCTION]},
        {**PAIR, "weight": 2.0, "tools": [FUNCTION]}),
    "fields that say nothing": ("explicit", {**PAIR, "weight": None, "tools": [], "system": ""}, PAIR),
    "text parts": ("explicit", {**PAIR, "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, PAIR),
    "None keys": ("explicit", {**PAIR, "prompt": [{**user("q"), "tool_calls": None, "name": None}]}, PAIR),
    "system said twice": ("explicit", {**PAIR, "prompt": [system("s"), user("q")], "system": "s"},
        {**PAIR, "prompt": [system("s"), user("q")]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_layout_gives_prompt_chosen_and_rejected(case):
    layout, raw, expected = CASES[case]
    row, report = one(raw)
    assert row == expected
    assert report.layouts == {layout: 1}
    assert one(raw, layout=layout)[0] == expected


# layout, raw row, pairs (chosen, rejected) by the name of the pairing
SAID = [("best", "worst")]
SEVERAL = {
    "labelled candidates": ("candidates",
        {"messages": [user("q"), {"role": "assistant", "candidates": [
            {"content": [{"text": text}], "preferenceLabel": label}
            for text, label in (("worst", "non-preferred"), ("best", "preferred"), ("bad", "non-preferred"))]}]},
        {"best_worst": SAID, "best_each": [*SAID, ("best", "bad")], "all": [*SAID, ("best", "bad")]}),
    "ranks": ("completions",
        {"context": "q", "completions": [{"rank": rank, "completion": text} for rank, text in ((2, "worst"), (0, "best"), (1, "middle"))]},
        {"best_worst": SAID, "best_each": [*SAID, ("best", "middle")], "all": [*SAID, ("middle", "worst"), ("best", "middle")]}),
    "scores": ("completions",
        {"instruction": "q", "completions": [{"response": text, "overall_score": score} for text, score in (("best", 8.5), ("worst", 2.0))]},
        {"best_worst": SAID}),
    "scores beside": ("completions", {"prompt": "q", "responses": ["worst", "best"], "scores": [0.1, 0.7]}, {"all": SAID}),
    "a signed preference, the first is better": ("comparison",
        {"context": [user("q")], "response1": "best", "response2": "worst", "overall_preference": -2}, {"all": SAID}),
    "a signed preference, the second is better": ("comparison",
        {"context": [user("q")], "response1": "worst", "response2": "best", "overall_preference": 1}, {"all": SAID}),
    "the number of the better one": ("comparison",
        {"prompt": "q", "response_0": "worst", "response_1": "best", "better_response_id": 1}, {"all": SAID}),
    "the name of the better one": ("comparison",
        {"prompt": "q", "response_a": "best", "response_b": "worst", "winner": "model_a"}, {"best_worst": SAID}),
    "a battle": ("comparison",
        {"model_a": "m", "model_b": "n", "winner": "model_b", "conversation_a": [user("q"), said("worst")],
         "conversation_b": [user("q"), said("best")]}, {"all": SAID}),
    "a battle with a column for each outcome": ("comparison",
        {"id": 1, "model_a": "m", "model_b": "n", "prompt": '["q"]', "response_a": '["worst"]', "response_b": '["best"]',
         "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, {"all": SAID}),
    "the same as lists, with words": ("comparison",
        {"prompt": ["q"], "response_a": ["best"], "response_b": ["worst"], "winner_model_a": "True",
         "winner_model_b": "False"}, {"all": SAID}),
    "the same as plain text, which may look like a list": ("comparison",
        {"prompt": "q", "response_a": "best", "response_b": "worst", "winner_model_a": 1.0, "winner_model_b": 0.0,
         "winner_tie": 0.0}, {"all": SAID}),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
def test_several_answers_to_a_prompt_are_made_into_pairs(case):
    layout, raw, pairings = SEVERAL[case]
    text = lambda answer: answer if isinstance(answer, str) else answer[0]["content"]
    for pairing, expected in pairings.items():
        rows, report = read_preferences([raw], pairing=pairing)
        assert [(text(row["chosen"]), text(row["rejected"])) for row in rows] == expected
        assert all(row["prompt"] in ("q", [user("q")]) for row in rows)
        assert report.layouts == {layout: len(expected)}


def test_ties_are_left_out_and_counted():
    battle = {"prompt": "q", "response_a": "yes", "response_b": "no", "winner": "model_a"}
    ties = [battle | {"winner": winner} for winner in ("tie", "tie (bothbad)")]
    outcomes = {"winner": None, "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    others = [{"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, battle | outcomes]
    rows, report = read_preferences([*ties, battle, *others])
    assert len(rows) == 1
    assert "no answer is preferred to the others: 4 (row 0, row 1, row 3, row 4)" in report.summary()


OUTCOMES = {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}


def test_lists_of_turns_in_a_battle_are_read_as_a_battle_of_conversations():
    agree = {"prompt": '["q", "r"]', "response_a": '["a", "yes"]', "response_b": '["a", "no"]', **OUTCOMES, "id": 3}
    row, report = one(agree)
    assert row == {"prompt": [user("q"), said("a"), user("r")], "chosen": [said("yes")], "rejected": [said("no")],
                   "winner": "model_a", "id": 3}  # fmt: skip
    assert not report.split_early
    apart = agree | {"response_a": '["a", ""]', "response_b": '["b", "no"]'}
    row, report = one(apart)
    conversations = [[user("q"), said("a"), user("r"), said("")], [user("q"), said("b"), user("r"), said("no")]]
    named = {"conversation_a": conversations[0], "conversation_b": conversations[1], "winner": "model_a", "id": 3}
    assert row == one(named)[0] | {"winner": "model_a"}  # as battles of conversations always were
    assert (row["prompt"], row["chosen"]) == ([user("q")], conversations[0][1:])
    assert len(report.split_early) == 1


def test_a_list_is_text_where_no_column_stands_for_each_outcome_or_the_prompt_is_text():
    row, _ = one({"prompt": '["q"]', "response_a": '["yes"]', "response_b": '["no"]', "winner": "model_a"})
    assert (row["prompt"], row["chosen"]) == ('["q"]', '["yes"]')
    row, _ = one({"prompt": "give me a list", "response_a": '["yes"]', "response_b": "no", **OUTCOMES})
    assert (row["prompt"], row["chosen"]) == ("give me a list", '["yes"]')


def test_every_layout_of_the_table_has_a_case():
    assert {layout for layout, _, _ in CASES.values()} == set(LAYOUTS)


def test_a_transcript_is_split_at_the_last_shared_assistant_turn_not_at_common_characters():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row, report = one({"chosen": f"{start} same text", "rejected": f"{start} same text, and more"})
    assert (row["prompt"], row["chosen"], row["rejected"]) == (start, " same text", " same text, and more")
    assert not report.split_early


def test_transcripts_that_part_early_are_split_there_and_reported():
    start = "\n\nHuman: a\n\nAssistant:"
    row, report = one({"chosen": f"{start} b\n\nHuman: c\n\nAssistant: d", "rejected": f"{start} e"})
    assert (row["prompt"], row["chosen"], row["rejected"]) == (start, " b\n\nHuman: c\n\nAssistant: d", " e")
    assert [place.row for place in report.split_early] == [0]
    assert "differ before the last assistant turn: 1 (row 0)" in report.summary()
    _, report = one({"chosen": f"{start} e", "rejected": f"{start} b\n\nAssistant: d"})
    assert not report.split_early
    assert len(report.run_on) == 1


def test_message_lists_that_part_early_are_split_at_the_last_shared_answer():
    chosen, rejected = [user("q"), said("a"), user("r"), said("b")], [user("q"), said("a"), user("s"), said("c")]
    row, report = one({"chosen": chosen, "rejected": rejected})
    assert row == {"prompt": [user("q")], "chosen": chosen[1:], "rejected": rejected[1:]}
    assert len(report.split_early) == 1


def test_an_empty_turn_of_a_transcript_is_kept_and_reported():
    row, report = one({"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"})
    assert row["chosen"] == " "
    assert "answers that are an empty turn: 1 (row 0)" in report.summary()


def test_plain_text_with_a_system_column_becomes_turns_and_is_reported():
    row, report = one({"prompt": "q", "chosen": "yes", "rejected": "no", "system": "s"})
    assert row == {**PAIR, "system": "s"}
    assert len(report.wrapped) == 1
    assert "made a user turn" in report.summary()


def test_chosen_equal_to_rejected_is_left_out_counted_and_listed_without_an_error():
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    rows, report = read_preferences([same, {"prompt": "q", "chosen": "a", "rejected": "b"}, same])
    assert len(rows) == 1
    assert [place.row for place in report.identical] == [0, 2]
    assert "chosen = rejected states no preference: 2 (row 0, row 2)" in report.summary()


def test_repeated_rows_are_kept_and_counted():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows, report = read_preferences([row, {**row, "note": "again"}, {**row, "chosen": "c"}])
    assert len(rows) == 3
    assert [place.row for place in report.duplicates] == [1]


TEXT = {"prompt": "q", "chosen": "a", "rejected": "b"}
BATTLE = {"prompt": '["q", "r"]', "response_a": '["a", "b"]', "response_b": '["a", "c"]', **OUTCOMES}
REFUSED = {
    "missing field": ({"prompt": "q", "chosen": "a"}, r"field 'rejected' is missing; the row has prompt, chosen; add 'rejected'"),
    "null field": ({**TEXT, "chosen": None}, r"field 'chosen' is null"),
    "only chosen": ({"chosen": "a"}, r"field 'chosen' has no prompt|field 'rejected' is missing"),
    "no prompt": ({"chosen": "the cat", "rejected": "the dog"},
        r"field 'chosen' has no prompt: a transcript needs '\\n\\nAssistant:'"),
    "empty completion": ({**TEXT, "chosen": ""}, r"field 'chosen' must not be empty, got ''; write the answer, or leave"),
    "blank completion": ({**TEXT, "rejected": " \n"}, r"field 'rejected' must not be empty, got ' \\n'"),
    "empty turn": ({**PAIR, "chosen": [said("")]}, r"field 'chosen' must not be empty"),
    "wrong type": ({**TEXT, "chosen": 3}, r"field 'chosen' must be text or a list of messages, got 3; write it as text, \"3\""),
    "wrong type, no prompt": ({"chosen": 1, "rejected": 2}, r"field 'chosen' must be text or a list of messages, got 1"),
    "empty list": ({**PAIR, "prompt": []}, r"field 'prompt' must be text or a list of messages, got \[\]"),
    "not a message": ({**PAIR, "prompt": ["q"]}, r"field 'prompt\[0\]' must be a message, got 'q'"),
    "no role": ({**PAIR, "prompt": [{"content": "q"}]}, r"field 'prompt\[0\]' has no role"),
    "unknown role": ({**PAIR, "prompt": [{"role": "bot", "content": "q"}]},
        r"field 'prompt\[0\]' has the unknown role 'bot'; use one of system, user, assistant, tool"),
    "unknown ShareGPT role": ({"conversations": [{"from": "bing", "value": "x"}], "chosen": "a", "rejected": "b"},
        r"field 'conversations\[0\]' has the unknown role 'bing'; use one of human"),
    "no content": ({**PAIR, "prompt": [{"role": "user"}]}, r"has neither content nor tool_calls"),
    "content of a wrong type": ({**PAIR, "prompt": [{"role": "user", "content": 3}]}, r"'prompt\[0\].content' must be text"),
    "an image": ({**PAIR, "prompt": [{"role": "user", "content": [{"type": "image"}]}]}, r"content that is not text"),
    "half a character": ({**TEXT, "prompt": "\ud83d!"}, r"field 'prompt' has half of a surrogate pair, '\\ud83d', at character 0"),
    "user calls tools": ({**PAIR, "prompt": [{**user("q"), "tool_calls": [{"name": "f"}]}]}, r"only the assistant calls"),
    "nameless call": ({**PAIR, "chosen": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
        r"field 'chosen\[0\].tool_calls\[0\]' must name a function"),
    "calls of a wrong type": ({**PAIR, "chosen": [{"role": "assistant", "tool_calls": {"name": "f"}}]}, r"must be a list"),
    "arguments of a wrong type": ({**PAIR, "chosen": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]}]},
        r"needs arguments as an object or JSON text, got 3"),
    "broken function_call": ({"conversations": [{"from": "function_call", "value": "{"}], "chosen": "a", "rejected": "b"},
        r"'conversations\[0\].value' must be the JSON of a function call"),
    "broken tools": ({**PAIR, "tools": "["}, r"field 'tools' must be a list or the JSON of one"),
    "tools of a wrong type": ({**PAIR, "tools": ["clock"]}, r"field 'tools' must be a list of objects, got \['clock'\]"),
    "negative weight": ({**TEXT, "weight": -1}, r"field 'weight' must be a finite number and not negative, got -1; 1 counts"),
    "weight NaN": ({**TEXT, "weight": float("nan")}, r"field 'weight' must be a finite number and not negative, got nan"),
    "weight of a wrong type": ({**TEXT, "weight": "much"}, r"field 'weight' must be a finite number .* got 'much'"),
    "boolean weight": ({**TEXT, "weight": True}, r"field 'weight' must be a finite number .* got True"),
    "two systems": ({**PAIR, "prompt": [system("s"), user("q")], "system": "t"},
        r"field 'system' differs from the system turn with which the prompt begins; keep one of them"),
    "system of a wrong type": ({**PAIR, "system": 3}, r"field 'system' must be text, got 3"),
    "answer of the user": ({**PAIR, "chosen": [user("q")]}, r"field 'chosen' begins with a turn of the user"),
    "nothing shared": ({"chosen": [user("a"), said("b")], "rejected": [user("c"), said("d")]},
        r"field 'chosen' and rejected share no prompt"),
    "only answers": ({"chosen": [said("b")], "rejected": [said("d")]}, r"field 'prompt' has no turn"),
    "prompt elsewhere": ({"prompt": "x", "chosen": [user("q"), said("b")], "rejected": [user("q"), said("d")]},
        r"field 'prompt' is not among the turns that chosen and rejected share, got 'x'"),
    "unlike transcripts": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        r"field 'chosen' and rejected share no turn"),
    "transcript that ends with the human": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        r"field 'chosen' ends with a human turn"),
    "broken history": ({"instruction": "q", "history": ["x"], "chosen": "a", "rejected": "b"}, r"write \[question, answer\]"),
    "OpenAI without messages": ({"input": "x", "preferred_output": [said("a")], "non_preferred_output": [said("b")]},
        r"field 'input' must hold messages"),
    "label that is neither": ({"prompt": "q", "completion": "a", "label": "fine"},
        r"field 'label' must be true or false, got 'fine'; write true for a good answer"),
    "unpaired without an answer": ({"messages": [user("q")], "label": True}, r"field 'messages' must end with"),
    "battle with two outcomes": (BATTLE | {"winner_tie": 1},
        r"row index 1: has 2 outcomes, of {'winner_model_a': 1, 'winner_model_b': 0, 'winner_tie': 1}; write 1 for one of"),
    "battle without an outcome": (BATTLE | {"winner_model_a": 0}, r"has 0 outcomes, of {.*; write 1 for one of winner_model_a"),
    "battle with a probability": (BATTLE | {"winner_tie": 0.33}, r"field 'winner_tie' must be true or false, got 0.33; write 1"),
    "battle of turns without an answer": (BATTLE | {"response_b": '["a"]'},
        r"field 'response_b' must be a list of 2 texts, as the prompt is, got '\[.a.\]'; write one answer for each turn"),
    "battle of turns and of text": (BATTLE | {"response_a": "a"}, r"field 'response_a' must be a list of 2 texts"),
    "battle with a turn that is null": (BATTLE | {"response_a": '["a", null]'}, r"field 'response_a\[1\]' must be text, got None"),
    "battle with a prompt that is null": (BATTLE | {"prompt": '[null, "r"]'}, r"field 'prompt\[0\]' must be text, got None"),
    "battle with half a character": (BATTLE | {"response_a": '["a", "\\ud83d"]'}, r"field 'response_a\[1\]' has half of a"),
    "battle about nothing": (BATTLE | {"prompt": "[]", "response_a": "[]", "response_b": "[]"}, r"must be text or a list of mess"),
    "no layout": ({"text": "a", "label_name": 1}, r"fits no layout, its fields are text, label_name; known are: prompt, chosen"),
    "not a dict": ("x", r"the rows, row index 1: must be a dict, got 'x'; give a list of dicts"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_row_is_refused_with_place_field_rule_and_remedy_or_skipped(case):
    raw, message = REFUSED[case]
    with pytest.raises(BadRow, match=message) as caught:
        read_preferences([TEXT, raw])
    assert str(caught.value).startswith("the rows, row index 1: ")
    rows, report = read_preferences([TEXT, raw], on_bad_row="skip")
    assert rows == [TEXT]
    assert (
        str(caught.value)
        == f'{report.bad[0]}. --on-bad-row skip (on_bad_row="skip") leaves such rows out and lists them'
    )
    assert "left out, unusable: 1" in report.summary()


def test_when_no_row_is_usable_the_message_lists_why():
    with pytest.raises(ValueError, match=r"no usable row among 1; (.|\n)*'chosen' must not be empty"):
        read_preferences([{**TEXT, "chosen": ""}], on_bad_row="skip")


def test_broken_arguments_of_a_rejected_call_are_kept_as_they_are():
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"city": '}]}
    row, _ = one({**PAIR, "rejected": [call]})
    assert row["rejected"] == [call]


EXAMPLES = {
    "text": ({"prompt": "q", "completion": " a"}, {"prompt": "q", "completion": " a"}),
    "turns": ({"prompt": [user("q")], "completion": [said("a")]}, {"prompt": [user("q")], "completion": [said("a")]}),
    "messages": ({"messages": [user("q"), said("a"), user("r"), said("b")]},
        {"prompt": [user("q"), said("a"), user("r")], "completion": [said("b")]}),
    "alpaca": ({"instruction": "do", "input": "it", "output": "a"},
        {"prompt": [user("do\n\nit")], "completion": [said("a")]}),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": 7},
        {"prompt": [user("q")], "completion": [said("a")], "id": 7}),
    "preferences": ({**TEXT, "weight": 1}, {"prompt": "q", "completion": "a", "weight": 1.0}),
    "transcript": ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " a"}),
    "ShareGPT preferences": (CASES["ShareGPT"][1], {"prompt": [system("s"), user("q")], "completion": [said("yes")]}),
    "instruction preferences": ({"instruction": "q", "output": "o", "chosen": "a", "rejected": "b"},
        {"prompt": [user("q")], "completion": [said("a")], "output": "o"}),
}  # fmt: skip


@pytest.mark.parametrize("case", EXAMPLES)
def test_examples_come_from_every_layout(case):
    raw, expected = EXAMPLES[case]
    [row], _ = read_examples([raw])
    assert row == expected


def test_a_conversation_that_does_not_end_with_an_answer_teaches_nothing():
    with pytest.raises(BadRow, match=r"field 'messages' must end with an assistant turn, ends with one of the user"):
        read_examples([{"messages": [user("q")]}])


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "1", "yes"])
def test_single_answers_come_with_their_label(label):
    for raw, prompt, completion in (
        ({"prompt": "q", "completion": "a"}, "q", "a"),
        ({"prompt": [user("q")], "completion": [said("a")]}, [user("q")], [said("a")]),
        ({"messages": [user("q"), said("a")]}, [user("q")], [said("a")]),
    ):
        row, report = one(raw | {"label": label, "source": 3})
        assert row == {"prompt": prompt, "completion": completion, "label": True, "source": 3}
        assert report.layouts == {"unpaired": 1}
    assert [one({"prompt": "q", "completion": "a", "label": bad})[0]["label"] for bad in (False, 0, "false")] == [
        False
    ] * 3


def test_an_answer_marked_as_bad_is_not_an_example():
    with pytest.raises(BadRow, match=r"field 'label' marks the answer as bad, got False, and examples are imitated"):
        read_examples([{"prompt": "q", "completion": "a", "label": False}])
    assert read_examples([{"prompt": "q", "completion": "a", "label": True}])[0][0]["completion"] == "a"


def test_an_unknown_layout_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="layout 'hh' is not known; choose one of explicit, messages"):
        read_preferences([TEXT], layout="hh")


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": True}, True),
        ({"instruction": "q", "output": "a", "label": 0}, False),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "kto_tag": False},
            False,
        ),
    ],
)
def test_a_single_answer_of_any_layout_may_have_a_label(raw, label):
    [row], _ = read_preferences([raw])
    assert (row["prompt"][-1]["content"], row["completion"][0]["content"], row["label"]) == ("q", "a", label)
    if not label:
        with pytest.raises(BadRow, match=r"marks the answer as bad, got (0|False), and examples are imitated"):
            read_examples([raw])


def test_a_single_answer_without_its_fields_is_refused_with_the_columns_to_name():
    with pytest.raises(BadRow, match=r"--columns prompt=NAME completion=NAME takes others"):
        read_preferences([{"prompt": "q", "response": "a", "label": 1}])
    with pytest.raises(BadRow, match=r"field 'label' is null"):
        read_preferences([{"prompt": "q", "completion": "a", "label": None}])
    with pytest.raises(BadRow, match=r"--columns prompt=NAME completion=NAME takes others"):
        read_examples([{"input": "q", "response": "a"}])
    [row], _ = read_examples([{"prompt": "q", "completion": "a", "label": "sports"}])
    assert row["label"] == "sports", "a label of another kind takes no part"
