"""Text that nobody meant: what stands twice is taken once, markers are taken off, and the report counts it."""
# ruff: noqa: E501  tables of cases read best with one case on a line

import csv
import json

import numpy as np
import pandas
import pytest

from dpo_lab.preferences import (
    BadRow,
    read_examples,
    read_preferences,
    render_prompt,
    tokenize_examples,
    tokenize_pairs,
    tokenize_unpaired,
)
from dpo_lab.preferences.chat import render_whole
from tests.small_tokenizers import CHATML, bpe


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


PAIR = {"prompt": [user("a river?")], "chosen": [said("Rhine.")], "rejected": [said("A lake.")]}
TEXT = {"prompt": "Name a river:", "chosen": " Rhine.", "rejected": " A lake."}
BEGUN = [user("a river?"), said("It is the ", prefix=True)]

# raw row, the row that must come out, the remark on it
CASES = {
    "messages as JSON": ({name: json.dumps(value) for name, value in PAIR.items()}, PAIR, "text_messages"),
    "messages as Python": ({name: repr(value) for name, value in PAIR.items()}, PAIR, "text_messages"),
    "messages as numpy prints them": ({"prompt": "a river?", "chosen": "[{'role': 'user', 'content': 'a river?'}\n {'role': 'assistant', 'content': 'Rhine.'}]",
        "rejected": "[{'role': 'user', 'content': 'a river?'}\n {'role': 'assistant', 'content': 'A lake.'}]"}, PAIR, "text_messages"),
    "one answer that shows messages": (TEXT | {"chosen": json.dumps(PAIR["chosen"])}, TEXT | {"chosen": json.dumps(PAIR["chosen"])}, "text_kept"),
    "the chosen answer at the end": (PAIR | {"prompt": [user("a river?"), said("Rhine. ")]}, PAIR, "answer_in_prompt"),
    "the rejected answer at the end": (PAIR | {"prompt": [user("a river?"), said("A lake.")]}, PAIR, "answer_in_prompt"),
    "a beginning that the answers repeat": (PAIR | {"prompt": [user("a river?"), said("It is the ")], "chosen": "It is the Rhine.", "rejected": "It is the sea."},
        {"prompt": BEGUN, "chosen": [said("Rhine.")], "rejected": [said("sea.")]}, "prefill"),
    "a beginning that the answers go on from": (PAIR | {"prompt": [user("a river?"), said("It is the ")]}, PAIR | {"prompt": BEGUN}, "prefill"),
    "a beginning that says so": (PAIR | {"prompt": [user("a river?"), said("Yes!", prefix=True)]}, PAIR | {"prompt": [user("a river?"), said("Yes!", prefix=True)]}, "prefill"),
    "answers that repeat the prompt": (TEXT | {"chosen": "Name a river: Rhine.", "rejected": "Name a river: A lake."}, TEXT, "repeated_prompt"),
    "one answer that repeats the prompt": (TEXT | {"chosen": "Name a river: Rhine."}, TEXT | {"chosen": "Name a river: Rhine."}, "restates"),
    "an answer that repeats the question": (PAIR | {"chosen": [said("a river? Rhine.")]}, PAIR | {"chosen": [said("a river? Rhine.")]}, "restates"),
    "an end marker": (TEXT | {"chosen": " Rhine.</s>", "rejected": " A lake. <|im_end|>\n"}, TEXT, "end_marker"),
    "an end marker in a turn": (PAIR | {"chosen": [said("Rhine.<|endoftext|>")]}, PAIR, "end_marker"),
    "HTML": (TEXT | {"chosen": " <s>Rhone</s>"}, TEXT | {"chosen": " <s>Rhone</s>"}, "marker_inside"),
    "a marker inside": (TEXT | {"chosen": " Rhine.<|im_end|> Yes."}, TEXT | {"chosen": " Rhine.<|im_end|> Yes."}, "marker_inside"),
    "a prompt rendered by hand": ({"prompt": "<|im_start|>user\nq<|im_end|>\n", "chosen": "a<|im_end|>", "rejected": "b<|im_end|>"},
        {"prompt": "<|im_start|>user\nq<|im_end|>\n", "chosen": "a<|im_end|>", "rejected": "b<|im_end|>"}, "marker_inside"),
    "a line end after the end, rendered by hand": (
        {"prompt": "<|im_start|>user\nq<|im_end|>\n", "chosen": "a<|im_end|>\n", "rejected": "b<|im_end|>\n"},
        {"prompt": "<|im_start|>user\nq<|im_end|>\n", "chosen": "a<|im_end|>", "rejected": "b<|im_end|>"}, "marker_inside"),
    "a picture that is not there": (TEXT | {"prompt": "A <image>?"}, TEXT | {"prompt": "A <image>?"}, "media_marker"),
    "a question repeated in the answers": ({"question": "A river, please?", "chosen": "A river, please? Rhine.", "rejected": "No."},
        {"prompt": [user("A river, please?")], "chosen": [said("A river, please? Rhine.")], "rejected": [said("No.")]}, "restates"),
    "a field that may belong to the prompt": (TEXT | {"input": "Good morning"}, TEXT | {"input": "Good morning"}, "unused"),
    "a human's turn inside an answer": (TEXT | {"chosen": " a\n\nHuman: b\n\nAssistant: c"},
        TEXT | {"chosen": " a\n\nHuman: b\n\nAssistant: c"}, "human_inside"),
    "a column of pictures": (TEXT | {"images": ["a.png"]}, TEXT | {"images": ["a.png"]}, "media"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_stands_twice_or_too_much_is_taken_once_and_counted(case):
    raw, expected, remark = CASES[case]
    [row], report = read_preferences([raw])
    assert row == expected
    assert {name: len(places) for name, places in report.remarks.items()} == {remark: 1}
    assert report.is_remarkable
    assert ": 1 (row 0)" in report.summary()


@pytest.mark.parametrize("raw", [PAIR, TEXT, TEXT | {"prompt": "The", "images": []}, TEXT | {"chosen": " [{'x': 1}]"}])
def test_rows_without_any_of_this_stay_as_they_are(raw):
    [row], report = read_preferences([raw])
    assert row == raw
    assert not report.is_remarkable


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_beginning_of_an_answer_belongs_to_the_prompt_and_is_not_learnt(template):
    tokenizer = bpe(template=template)
    [row], _ = read_preferences([PAIR | {"prompt": [user("a river?"), said("It is the ")]}])
    assert render_prompt(row, tokenizer).endswith("It is the ")
    assert render_whole(row, "chosen", tokenizer).count("It is the Rhine.") == 1
    data, report = tokenize_pairs([row], tokenizer)
    assert report.unstable_prompts == 0
    ids = data.row(0)
    assert "It is" not in tokenizer.decode(ids.completions[0])
    assert "It is the Rhine." in tokenizer.decode([*ids.prompt, *ids.completions[0]])
    short, _ = tokenize_pairs([row], tokenizer, max_length=len(ids.prompt) + max(map(len, ids.completions)) - 3)
    assert tokenizer.decode(short.row(0).prompt).endswith(tokenizer.decode(ids.prompt[-8:])), "its end is kept"


def test_two_answers_in_a_row_of_a_whole_conversation_are_two_turns():
    [row], report = read_examples([{"messages": [user("q"), said("One moment"), said("Rhine.")]}])
    assert row["prompt"] == [user("q"), said("One moment")]
    assert not report.is_remarkable
    assert render_prompt(row, bpe(template=CHATML)).endswith("One moment<|im_end|>\n<|im_start|>assistant\n")


def test_data_frames_and_dicts_of_columns_are_read():
    frame = pandas.DataFrame([PAIR | {"weight": 2.0}, PAIR])
    rows, _ = read_preferences(frame)
    assert rows == [PAIR | {"weight": 2.0}, PAIR]
    assert read_preferences({name: [value] for name, value in PAIR.items()})[0] == [PAIR]
    with pytest.raises(
        ValueError, match=r"a dict of columns needs lists of one length, got prompt: 'q', chosen: 2; give"
    ):
        read_preferences({"prompt": "q", "chosen": ["a", "b"]})


def test_tables_are_read_with_the_separator_of_their_header(tmp_path):
    for name, separator in (("rows.tsv", "\t"), ("rows.csv", ";"), ("bars.csv", "|")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, TEXT, delimiter=separator)
            writer.writeheader()
            writer.writerow(TEXT | {"chosen": " Rhine, or; so\n."})
        assert read_preferences(tmp_path / name)[0] == [TEXT | {"chosen": " Rhine, or; so\n."}]
    (tmp_path / "rows.ndjson").write_text(json.dumps(TEXT) + "\n")
    assert read_preferences(tmp_path / "rows.ndjson")[0] == [TEXT]
    frame = pandas.DataFrame([PAIR])
    frame.to_csv(tmp_path / "frame.csv")
    [row], _ = read_preferences(tmp_path / "frame.csv")
    assert {name: row[name] for name in PAIR} == PAIR


def test_bytes_that_are_not_utf8_are_shown_as_they_may_be_meant(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(TEXT | {"chosen": "Café"}, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(ValueError, match=r"byte 0xe9 .* save the file as UTF-8; where '.*Café.*' reads right, iconv"):
        read_preferences(tmp_path / "a.jsonl")


def test_columns_are_found_under_other_names():
    raw = {"question": "q", "good": "yes", "bad": "no", "prompt": "an id", "note": 1}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    [row], _ = read_preferences([raw], columns=names)
    assert row == {"prompt": "q", "chosen": "yes", "rejected": "no", "note": 1}
    with pytest.raises(
        ValueError, match=r"row index 0: field 'better' is to be the chosen, and the row has question, "
    ):
        read_preferences([raw], columns=names | {"chosen": "better"})
    with pytest.raises(ValueError, match=r"columns can't say where 'best' is; it knows prompt, chosen"):
        read_preferences([raw], columns={"best": "good"})
    with pytest.raises(ValueError, match=r"pairing must be one of best_worst, best_each, all, got 'some'"):
        read_preferences([raw], pairing="some")


REASONED = PAIR | {"chosen": [said("<think>long</think>Rhine.")], "rejected": [said("<think>short</think>A lake.")]}


def test_a_template_that_leaves_out_text_of_answers_is_reported_with_places():
    tokenizer = bpe(template=CHATML.replace("m.content", "m.content.split('</think>')[-1]"))
    _, report = tokenize_pairs([PAIR, REASONED, REASONED | {"rejected": [said("No.")]}], tokenizer)
    assert (report.num_left_out, [place.row for place in report.leaving_out]) == (3, [1, 2])
    assert (
        "leaves out text of 3 answers, such as '<think>long</think>Rhine.'; rows: 2 (row 1, row 2)" in report.summary()
    )
    same = {name: [said(f"<think>{name}</think>Rhine.")] for name in ("chosen", "rejected")}
    _, report = tokenize_pairs([PAIR, PAIR | same], tokenizer)
    assert [place.row for place in report.alike_by_template] == [1]
    assert "alike since the chat template leaves out where they differ: 1 (row 1)" in report.summary()
    tokenizer = bpe(template=CHATML.replace("{{ m.content }}", "{{ m.content | replace('think', 'b') }}"))
    assert tokenize_pairs([PAIR], tokenizer)[1].num_left_out == 0


def test_training_from_python_warns_of_what_a_template_leaves_out(caplog):
    from dpo_lab import DPOConfig, train_dpo
    from tests.conftest import tiny_llama

    tokenizer = bpe(template=CHATML.replace("m.content", "m.content.split('</think>')[-1]"))
    train_dpo(tiny_llama(400), tokenizer, [REASONED], DPOConfig(device="cpu"))
    assert "preferences: 1 row tokenised" in caplog.text
    assert "leaves out text of 2 answers" in caplog.text
    with pytest.raises(
        ValueError, match=r"preferences holds no usable rows:(.|\n)*alike since they are cut at max_length"
    ):
        train_dpo(tiny_llama(400), tokenizer, [{"prompt": "q", "chosen": "the" * 9, "rejected": "the" * 8}],
                  DPOConfig(device="cpu", max_length=4))  # fmt: skip
    with pytest.raises(ValueError, match=r"got a str; load_preferences or load_examples reads a path"):
        train_dpo(tiny_llama(400), tokenizer, "pairs.jsonl", DPOConfig(device="cpu"))


def test_a_template_that_only_moves_spaces_leaves_nothing_out():
    tokenizer = bpe(template=CHATML.replace("m.content", "m.content.replace('</think>', '\n</think>\n\n')"))
    assert tokenize_pairs([REASONED], tokenizer)[1].num_left_out == 0


def test_calls_and_reasoning_that_a_template_does_not_know_are_left_out_too():
    calls = [said("", tool_calls=[{"name": "clock", "arguments": {}}])]
    reasoned = [said("Rhine.", reasoning_content="the longest")]
    _, report = tokenize_pairs([PAIR | {"chosen": calls}, PAIR | {"chosen": reasoned}, PAIR], bpe(template=CHATML))
    assert [place.row for place in report.leaving_out] == [0, 1]
    assert tokenize_pairs([PAIR | {"chosen": calls}], bpe())[1].num_left_out == 0, "our own template knows calls"


def test_answers_that_cutting_makes_alike_are_named_with_the_length():
    row = {"prompt": "the", "chosen": " aaaa bbbb abab" * 5 + " cat", "rejected": " aaaa bbbb abab" * 5 + " dog"}
    _, report = tokenize_pairs([row, TEXT], bpe(), max_length=12)
    assert [place.row for place in report.alike_by_cutting] == [0]
    assert "alike since they are cut at max_length = 12, raise it: 1 (row 0)" in report.summary()


@pytest.mark.parametrize("rows", ["pairs.jsonl", {"prompt": ["q"]}, pandas.DataFrame([TEXT])], ids=str)
def test_what_is_no_list_of_rows_is_refused_with_the_way_to_read_it(rows):
    with pytest.raises(
        ValueError, match=r"rows must be a list of dicts .*; load_preferences or load_examples reads a path"
    ):
        tokenize_pairs(rows, bpe())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (PAIR | {"prompt": [user("q"), said("Rhi")]}, "only one of the answers repeats"),
        (PAIR | {"prompt": [user("q"), said("Hello there 🙂")]}, "an assistant turn that is none of the answers"),
        (PAIR | {"prompt": [user("q"), said("```py\nx = 1\n```")]}, "an assistant turn that is none of the answers"),
        (PAIR | {"chosen": [said("a"), user("thanks")]}, "ends with a turn of the user"),
        (PAIR | {"chosen": [said("a", weight=0)]}, "marked as one not to be learnt"),
        (PAIR | {"chosen": [said("a", loss=False)]}, "marked as one not to be learnt"),
        ({"prompt": "A river?", "chosen": "A river?", "rejected": "A river? No."}, "only repeats the prompt"),
    ],
)
def test_what_is_not_plain_is_refused(raw, message):
    with pytest.raises(BadRow, match=message):
        read_preferences([raw])


def test_what_a_template_leaves_out_of_a_prompt_is_reported():
    silent = CHATML.partition("{% endif -%}")[2].replace("in messages", "in messages if m.role != 'system'")
    row = PAIR | {"prompt": [{"role": "system", "content": "Speak French."}, user("a river?")]}
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    for rows, left_out in (([row], "Speak French."), ([PAIR | {"tools": tools}], "clock")):
        _, report = tokenize_pairs(rows, bpe(template=silent))
        assert len(report.prompts_left_out) == 1
        assert f"the chat template leaves out a part of the prompt, such as '{left_out}'; rows: 1" in report.summary()
    assert not tokenize_pairs([row], bpe(template=CHATML))[1].prompts_left_out


def test_answers_whose_scored_tokens_are_the_same_state_no_preference():
    rows = [{"prompt": [user("q")], "chosen": [said("a"), user(text)], "rejected": [said("a"), user("no")]}
            for text in ("thanks", "yes")]  # fmt: skip
    data, report = tokenize_pairs(rows, bpe(template=CHATML))
    assert not len(data)
    assert len(report.identical) == 2


@pytest.mark.parametrize(
    "change", [{"prompt": [user("q"), {"role": "human", "content": "r"}]}, {"chosen": [user("q"), said("a")]}]
)
def test_rows_that_were_not_read_are_not_tokenised(change):
    with pytest.raises(BadRow, match="read the rows with load_preferences"):
        tokenize_pairs([PAIR | change], bpe(template=CHATML))


def test_labels_are_read_as_data_has_them_and_none_is_missing():
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (True, 0, "False", np.False_, "yes", "no")]
    data, _ = tokenize_unpaired(rows, bpe())
    assert np.sign(data.weights).tolist() == [1, -1, -1, -1, 1, -1]
    for label in (None, "perhaps"):
        with pytest.raises(BadRow, match="row index 1: field 'label' must be true or false"):
            tokenize_unpaired([rows[0], rows[0] | {"label": label}], bpe())


def test_pairs_and_single_answers_may_stand_in_one_file():
    rows = [TEXT, {"prompt": "q", "completion": "a", "label": False}]
    for both in (rows, rows[::-1]):
        data, report = tokenize_unpaired(both, bpe())
        assert sorted(np.sign(data.weights)) == [-1, -1, 1]
        assert report.kept == 3


def test_usual_rows_are_not_refused_for_what_takes_no_part():
    called = {"role": "tool", "content": '{"t": 3}', "loss": False}
    several = [said("", tool_calls=[{"name": "f", "arguments": {}}]), called, said("Three.")]
    assert read_preferences([PAIR | {"chosen": several}])[0][0]["chosen"] == several
    short = PAIR | {"prompt": [user("q"), said("R", prefix=True)]}
    assert read_preferences([short])[1].remarks.keys() == {"prefill"}
    assert not read_preferences([TEXT | {"question": "Name a river:"}])[1].is_remarkable
    [row], _ = read_examples([PAIR | {"label": "math"}])
    assert "label" not in row
    data, _ = tokenize_examples([{"prompt": "q", "completion": "a", "label": "math"}], bpe())
    assert data.weights.tolist() == [1]
    as_json = CHATML.replace("m.content", "(m.content | tojson if m.role == 'tool' else m.content)")
    row = PAIR | {"prompt": [user("q"), said("<think>\nx\n</think>\n\nB"), called, user("r")]}
    stripping = as_json.replace("else m.content)", "else m.content.split('</think>')[-1])")
    assert not tokenize_pairs([row], bpe(template=stripping))[1].prompts_left_out
