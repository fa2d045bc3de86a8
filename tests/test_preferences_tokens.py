"""Border, end token and truncation, with real BPE tokenizers trained on the spot."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_lab.batching import make_batch
from dpo_lab.logprobs import score
from dpo_lab.metrics import scored_lengths
from dpo_lab.preferences import (
    BadRow,
    encode_prompt,
    end_token_id,
    render_prompt,
    tokenize_examples,
    tokenize_pairs,
)
from dpo_lab.preferences.token_cache import DataSettings, prepare
from dpo_lab.preferences.token_data import plain
from dpo_lab.preferences.tokens import shorten
from tests.conftest import tiny_llama
from tests.small_tokenizers import CHATML, bpe
from tests.test_logprobs import by_hand

TEXT = st.text(alphabet="ab the?.\n", min_size=0, max_size=30)
ANSWER = st.text(alphabet="ab the?.\n", min_size=1, max_size=30)
QUICK = settings(max_examples=60, deadline=None)


def pair(prompt="What is the answer?", chosen=" The answer is forty-two.", rejected=" The dog.", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def chat_pair(*, system=None, user="What is the answer?", chosen="Forty-two.", rejected="The cat.", **more):
    turns = [{"role": "user", "content": user}]
    turns = [{"role": "system", "content": system}, *turns] if system else turns
    answers = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {"prompt": turns, **dict(zip(("chosen", "rejected"), answers, strict=True)), **more}


def whole(row, k):
    return np.concatenate([row.prompt, row.completions[k]]).tolist()


@QUICK
@given(prompt=TEXT, chosen=ANSWER, rejected=ANSWER)
def test_prompt_and_completion_reassemble_to_the_tokenisation_of_the_whole(prompt, chosen, rejected):
    tokenizer = bpe(bos=True)
    data, report = tokenize_pairs([pair(prompt, chosen, rejected)], tokenizer)
    if chosen == rejected:
        assert [place.row for place in report.identical] == [0]
        assert len(data) == 0
        return
    row = data.row(0)
    for k, answer in enumerate((chosen, rejected)):
        assert whole(row, k) == [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
        assert len(row.completions[k]) > 0
    assert row.prompt.tolist() == tokenizer(prompt)["input_ids"][: len(row.prompt)]


@QUICK
@given(prompt=TEXT, chosen=ANSWER, rejected=ANSWER, max_length=st.integers(2, 24))
def test_the_length_limit_is_kept_and_what_is_kept_is_the_newest_prompt_and_the_oldest_answer(
    prompt, chosen, rejected, max_length
):
    tokenizer = bpe(bos=True)
    full, _ = tokenize_pairs([pair(prompt, chosen, rejected)], tokenizer)
    short, report = tokenize_pairs([pair(prompt, chosen, rejected)], tokenizer, max_length=max_length)
    assert report.kept + len(report.identical) == 1
    if not len(short):
        return
    long_row, row = full.row(0), short.row(0)
    assert row.prompt[0] == tokenizer.bos_token_id
    kept = row.prompt[1:].tolist()
    assert kept == long_row.prompt.tolist()[len(long_row.prompt) - len(kept) :]
    for k in range(2):
        got, had = row.completions[k].tolist(), long_row.completions[k].tolist()
        assert 1 <= len(got) <= max_length - len(row.prompt)
        assert got == had[: len(got)]
        assert len(got) == len(had) or not kept  # the completion is cut only when the prompt has given all
        assert (got[-1] == tokenizer.eos_token_id) == (len(got) == len(had))


@QUICK
@given(user=TEXT, chosen=ANSWER, rejected=ANSWER, template=st.sampled_from([None, CHATML]))
def test_conversations_reassemble_to_the_rendered_text(user, chosen, rejected, template):
    tokenizer = bpe(bos=True, template=template)
    data, _ = tokenize_pairs([chat_pair(user=user, chosen=chosen + "!", rejected=rejected + "?")], tokenizer)
    start = "" if template else "<bos>"
    prompt = render_prompt(chat_pair(user=user), tokenizer)
    end = "<|im_end|>" if template else "<eos>"
    for k, answer in enumerate((chosen + "!", rejected + "?")):
        assert tokenizer.decode(whole(data.row(0), k)) == start + prompt + answer + end


def test_a_merge_across_the_border_goes_to_the_completion_and_is_counted():
    tokenizer = bpe(bos=True)
    row = pair("the cat", " sat on the mat.", " and the dog")
    alone = tokenizer("the cat")["input_ids"]
    assert tokenizer("the cat sat on the mat.")["input_ids"][: len(alone)] != alone, "the case needs a merge"
    data, report = tokenize_pairs([row], tokenizer)
    assert len(data.row(0).prompt) < len(alone)
    assert whole(data.row(0), 0) == [*tokenizer("the cat sat on the mat.")["input_ids"], tokenizer.eos_token_id]
    assert report.border_moved == 1
    assert "merges with the completion" in report.summary()


def test_words_that_both_answers_begin_with_stay_in_the_completions():
    tokenizer = bpe(bos=True)
    data, _ = tokenize_pairs([pair("Human: how are you?\n", "I am fine.", "I am fine, and you?")], tokenizer)
    assert tokenizer.decode(data.row(0).completions[0]) == "I am fine.<eos>"
    assert tokenizer.decode(data.row(0).completions[1]) == "I am fine, and you?<eos>"


@pytest.mark.parametrize("prompt", ["the cat", "<bos>the cat"])
def test_bos_stands_once_even_where_the_text_has_it_already(prompt):
    tokenizer = bpe(bos=True)
    data, _ = tokenize_pairs([pair(prompt)], tokenizer)
    assert data.row(0).prompt.tolist().count(tokenizer.bos_token_id) == 1
    assert encode_prompt(pair(prompt), tokenizer) == tokenizer("the cat")["input_ids"]


def test_no_bos_where_the_tokenizer_adds_none():
    tokenizer = bpe()
    data, _ = tokenize_pairs([pair()], tokenizer)
    assert tokenizer.bos_token_id not in data.ids


@pytest.mark.parametrize("answer", [" The cat.", " The cat.<eos>"])
def test_the_end_token_stands_once_even_where_the_text_has_it_already(answer):
    tokenizer = bpe(bos=True)
    data, _ = tokenize_pairs([pair(chosen=answer)], tokenizer)
    assert data.row(0).completions[0].tolist().count(tokenizer.eos_token_id) == 1
    assert data.row(0).completions[0][-1] == tokenizer.eos_token_id


def test_a_turn_marker_is_the_end_token_and_the_line_end_behind_it_is_not_learnt():
    tokenizer = bpe(template=CHATML)  # closes turns with <|im_end|>\n, while eos is <eos>
    data, report = tokenize_pairs([chat_pair(chosen="The cat.\n")], tokenizer)
    assert tokenizer.decode(data.row(0).completions[0]) == "The cat.\n<|im_end|>"
    assert tokenizer.eos_token_id not in data.ids
    assert report.end_tokens == ["<|im_end|>"]
    assert end_token_id(tokenizer, is_chat=True) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_token_id(tokenizer, is_chat=False) == tokenizer.eos_token_id


def test_a_template_with_two_special_tokens_at_the_end_of_a_turn_ends_at_the_first():
    tokenizer = bpe(
        template=CHATML.replace("{%- if add_gen", "{%- if not add_generation_prompt %}<eos>{% endif -%}{%- if add_gen")
    )
    data, _ = tokenize_pairs([chat_pair()], tokenizer)
    assert tokenizer.decode(data.row(0).completions[1]) == "The cat.<|im_end|>"


def test_a_template_without_special_tokens_gets_the_end_token_behind_its_visible_marker():
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer = bpe(template=template)
    data, _ = tokenize_pairs([chat_pair()], tokenizer)
    assert tokenizer.decode(data.row(0).completions[1]).endswith("The cat. [end]<eos>")


def test_bos_that_the_template_writes_is_not_doubled():
    tokenizer = bpe(bos=True, template="{{ bos_token }}" + CHATML)
    data, _ = tokenize_pairs([chat_pair()], tokenizer)
    assert data.row(0).prompt.tolist().count(tokenizer.bos_token_id) == 1


def test_without_an_end_token_none_is_added_and_the_report_says_so():
    tokenizer = bpe(eos=None)
    data, report = tokenize_pairs([pair("aaaa", "The cat.", "The dog.")], tokenizer)
    assert tokenizer.decode(data.row(0).completions[0]) == "The cat."
    assert "no end token" in report.summary()


def test_a_text_prompt_is_never_wrapped_in_a_template():
    tokenizer = bpe(bos=True, template=CHATML)
    data, report = tokenize_pairs([pair("the cat", " sat.", " ran.")], tokenizer)
    assert tokenizer.decode(whole(data.row(0), 0)) == "<bos>the cat sat.<eos>"
    assert report.template == "none"


def test_the_pair_keeps_one_prompt_as_long_as_the_longer_completion_allows():
    ids = np.arange(10, dtype=np.int32)
    prompt, (one, other) = shorten(ids, (ids[:2], ids[:5]), 9, head=1, tail=0)
    assert prompt.tolist() == [0, 7, 8, 9]
    assert (len(one), len(other)) == (2, 5)


def test_completions_are_cut_only_when_the_prompt_is_down_to_head_and_tail():
    ids = np.arange(10, dtype=np.int32)
    prompt, (one, other) = shorten(ids, (ids[:2], ids), 8, head=2, tail=2)
    assert prompt.tolist() == [0, 1, 8, 9]
    assert (one.tolist(), other.tolist()) == ([0, 1], [0, 1, 2, 3])


def test_head_and_tail_that_fill_the_limit_are_refused_with_the_remedy():
    ids = np.arange(10, dtype=np.int32)
    with pytest.raises(BadRow, match=r"'prompt' has 6 tokens that must be kept .* max_length = 6; raise max_length"):
        shorten(ids, (ids,), 6, head=3, tail=3)


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_system_turn_and_the_header_of_the_answer_survive_truncation(template):
    tokenizer = bpe(bos=True, template=template)
    row = chat_pair(system="that dog", user="aaaa bbbb " * 40 + "the end?")
    full, _ = tokenize_pairs([row], tokenizer)
    size = len(full.row(0).prompt)
    data, report = tokenize_pairs([row], tokenizer, max_length=90)
    text = tokenizer.decode(data.row(0).prompt)
    assert report.prompts_shortened == 1
    assert report.completions_cut == 0
    assert len(data.row(0).prompt) < size
    rendered = render_prompt(row, tokenizer)
    head = ("" if template else "<bos>") + rendered[: rendered.index("aaaa")]
    assert text.startswith(head)
    assert text.endswith(rendered[rendered.index("the end?") :])
    assert encode_prompt(row, tokenizer, max_length=len(data.row(0).prompt)) == data.row(0).prompt.tolist()


def test_a_system_turn_longer_than_the_limit_is_refused_or_counted_as_dropped():
    tokenizer = bpe(bos=True)
    rows = [chat_pair(system="aaaa bbbb " * 20), chat_pair()]
    with pytest.raises(BadRow, match=r"the rows, row index 0: field 'prompt' has \d+ tokens that must be kept"):
        tokenize_pairs(rows, tokenizer, max_length=40)
    data, report = tokenize_pairs(rows, tokenizer, max_length=40, on_bad_row="skip")
    assert data.source_rows.tolist() == [1]
    assert len(report.dropped) == 1
    assert "left out, unusable: 1" in report.summary()


def test_answers_that_truncation_makes_equal_are_left_out_and_counted():
    tokenizer = bpe(bos=True)
    rows = [pair("the", " aaaa bbbb abab" * 5 + " cat", " aaaa bbbb abab" * 5 + " dog"), pair()]
    data, report = tokenize_pairs(rows, tokenizer, max_length=12)
    assert [place.row for place in report.identical] == [0]
    assert data.source_rows.tolist() == [1]
    assert report.rows == report.kept + len(report.identical) == 2
    assert "both answers have the same tokens: 1 (row 0)" in report.summary()


def test_an_empty_prompt_is_kept_and_reported_as_having_no_predictor():
    data, report = tokenize_pairs([pair("", "the cat", "the dog")], bpe())
    assert data.prompt_lengths.tolist() == [0]
    assert report.empty_prompts == 1
    assert "nothing predicts the first completion token" in report.summary()
    with_bos, report = tokenize_pairs([pair("", "the cat", "the dog")], bpe(bos=True))
    assert with_bos.prompt_lengths.tolist() == [1]
    assert report.empty_prompts == 0


def test_a_template_that_rewrites_earlier_turns_is_split_where_the_texts_part_and_counted():
    template = "{% if messages[-1].role == 'assistant' %}done {% else %}open {% endif %}" + CHATML
    tokenizer = bpe(template=template)
    data, report = tokenize_pairs([chat_pair()], tokenizer)
    assert data.row(0).prompt.tolist() == []
    assert report.unstable_prompts == 1
    assert tokenizer.decode(data.row(0).completions[1]).endswith("The cat.<|im_end|>")


def test_what_a_template_refuses_is_refused_with_the_row():
    tokenizer = bpe(template="{{ raise_exception('roles must alternate') if messages | length == 3 }}" + CHATML)
    rows = [chat_pair(), chat_pair(system="x")]
    with pytest.raises(BadRow, match=r"row index 1: does not go through .* roles must alternate"):
        tokenize_pairs(rows, tokenizer)


SEVERAL_TURNS = [
    {"role": "assistant", "content": "the clock"},
    {"role": "tool", "content": "noon"},
    {"role": "assistant", "content": "It is noon."},
]


@pytest.mark.parametrize(
    ("score_turns", "scored"),
    [
        ("assistant", "the clock<|im_end|>It is noon.<|im_end|>"),
        ("last", "It is noon.<|im_end|>"),
        ("all", "the clock<|im_end|>\n<|im_start|>tool\nnoon<|im_end|>\n<|im_start|>assistant\nIt is noon.<|im_end|>"),
    ],
)
def test_of_several_turns_those_are_scored_that_the_setting_names(score_turns, scored):
    tokenizer = bpe(template=CHATML, eos="<|im_end|>")
    row = chat_pair() | {"chosen": SEVERAL_TURNS}
    data, report = tokenize_pairs([row], tokenizer, score_turns=score_turns)
    completion = data.row(0).completions[0]
    assert tokenizer.decode(completion[completion >= 0]) == scored
    whole = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in SEVERAL_TURNS)
    assert tokenizer.decode(plain(completion)) == whole.removeprefix("<|im_start|>assistant\n").removesuffix("\n")
    assert report.foreign_turns == 1
    assert ("which is scored too: 1" if score_turns == "all" else "which is not scored: 1") in report.summary()
    assert data.unscored().tolist() == [[int((completion < 0).sum()), 0]]


def test_what_is_not_scored_is_seen_and_not_learnt():
    """The same tokens as the plain log-probs of the whole answer, less those of the tool's turn."""
    tokenizer = bpe(template=CHATML, eos="<|im_end|>")
    model = tiny_llama(400)
    rows = [chat_pair() | {"chosen": SEVERAL_TURNS}, chat_pair(user="How are you?")]
    whole, _ = tokenize_pairs(rows, tokenizer, score_turns="all")
    data, _ = tokenize_pairs(rows, tokenizer)
    expected = []
    for every, own in zip(map(whole.row, range(2)), map(data.row, range(2)), strict=True):
        for complete, completion in zip(every.completions, own.completions, strict=True):
            expected.append(float(by_hand(model, every.prompt, complete)[completion >= 0].sum()))
    for layout in ("shared", "separate"):
        np.testing.assert_allclose(score(model, data, layout=layout).ravel(), expected, atol=1e-4)
        batch = make_batch(data, [0, 1], layout)
        assert batch.lengths.tolist() == scored_lengths(data).tolist()
    heads = data.heads()
    assert (scored_lengths(heads)[:, 0] == scored_lengths(heads)[:, 1]).all()


def test_an_answer_of_which_nothing_is_scored_is_refused():
    row = chat_pair() | {"chosen": [SEVERAL_TURNS[1] | {"content": "noon " * 9}, SEVERAL_TURNS[2]]}
    row["chosen"] = [SEVERAL_TURNS[0], *row["chosen"]]
    with pytest.raises(BadRow, match="nothing is scored within max_length = 40; raise max_length"):
        tokenize_pairs([row], bpe(template=CHATML), score_turns="last", max_length=40)


def test_rows_that_were_not_read_first_are_refused_with_the_way_to_read_them():
    with pytest.raises(
        BadRow, match=r"row index 0: field 'prompt' must be text .* got None; read the rows with load_pref"
    ):
        tokenize_pairs([{"chosen": "a", "rejected": "b"}], bpe())
    with pytest.raises(BadRow, match="is a list of messages after a prompt that is text"):
        tokenize_pairs([pair(chosen=[{"role": "assistant", "content": "x"}])], bpe())


def test_weights_and_source_rows_come_along():
    rows = [pair(weight=0.5), pair(rejected=" The answer is forty-two."), pair(rejected=" No.")]
    data, report = tokenize_pairs(rows, bpe())
    assert data.weights.tolist() == [0.5, 1.0]
    assert data.source_rows.tolist() == [0, 2]
    assert [place.row for place in report.identical] == [1]


def test_preference_rows_are_examples_by_their_chosen_answer():
    tokenizer = bpe()
    data, _ = tokenize_examples([pair()], tokenizer)
    both, _ = tokenize_pairs([pair()], tokenizer)
    assert data.num_completions == 1
    assert whole(data.row(0), 0) == whole(both.row(0), 0)


def test_examples_have_one_completion_and_the_same_rules():
    tokenizer = bpe(bos=True)
    data, report = tokenize_examples([{"prompt": "the cat", "completion": " sat."}], tokenizer)
    assert data.num_completions == 1
    assert tokenizer.decode(whole(data.row(0), 0)) == "<bos>the cat sat.<eos>"
    assert report.kept == 1


def test_no_rows_give_empty_data_of_the_right_width():
    for tokenize, width in ((tokenize_pairs, 2), (tokenize_examples, 1)):
        data, report = tokenize([], bpe())
        assert (len(data), data.num_completions, report.kept) == (0, width, 0)


def test_the_report_counts_lengths_in_tokens():
    data, report = tokenize_pairs([pair(), pair("the", " cat", " dog")], bpe(bos=True))
    assert report.longest_prompt == data.prompt_lengths.max()
    assert report.mean_prompt == pytest.approx(data.prompt_lengths.mean())
    assert report.longest == max(len(whole(data.row(i), k)) for i in range(2) for k in range(2))
    assert "2 rows tokenised, 2 kept" in report.summary()


def test_chunks_do_not_change_the_result(monkeypatch):
    rows = [pair(f"the cat {n}", f" sat {n}.", " no.") for n in range(20)]
    at_once, _ = tokenize_pairs(rows, bpe())
    monkeypatch.setattr("dpo_lab.preferences.tokens._CHUNK", 3)
    in_parts, _ = tokenize_pairs(rows, bpe())
    assert np.array_equal(at_once.ids, in_parts.ids)
    assert np.array_equal(at_once.bounds, in_parts.bounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"on_bad_row": "drop"}, "on_bad_row must be 'raise'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenize_pairs([pair()], bpe(), **arguments)


def test_a_row_that_fails_at_tokenisation_is_named_by_its_line_in_the_file(tmp_path):
    rows = [chat_pair(user=f"What is {n}?", system="x" if n == 2 else None) for n in range(4)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = bpe(template="{{ raise_exception('no system turn') if messages[0].role == 'system' }}" + CHATML)
    chosen = DataSettings(pairs=str(path), validation=0.5, on_bad_row="skip")
    notes = []
    data = prepare(chosen, tokenizer, log=notes.append)
    assert len(data.train) + len(data.held) == 3
    assert len(data.held_rows) == len(data.held)
    assert any("pairs.jsonl, line 3: does not go through" in note for note in notes)
    with pytest.raises(BadRow, match=r"pairs\.jsonl, line 3: does not go through .* no system turn"):
        prepare(replace(chosen, on_bad_row="raise"), tokenizer)
