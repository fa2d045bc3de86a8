"""The pocket world's training files: equal bytes from equal seeds, names tokenized alike, labels as noisy as asked."""

from __future__ import annotations

import hashlib
import json
import math
from random import Random

import pytest

from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import Conversation, judge, write_answer
from dpo_lab.worlds.pocket.tools import definition

FIRST_ROWS = "c42f9426c9097ead0a1a16f390b60caa0f82b1d2e962841f558a04e8131b3ba8"


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.train_tokenizer(corpus.training_texts(corpus.sft_rows(3000)), 1200)


def test_texts_are_equal_bytes_from_equal_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        corpus.write_texts(tmp_path / name, 500, seed=seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second != other
    rows = list(corpus.read_rows(tmp_path / "a"))
    assert len(rows) == 500
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == FIRST_ROWS


def test_the_template_renders_turns_and_tools(tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    tools = [definition("forecast", "weather"), definition("send", "message")]
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe kind.\nTools:\nforecast(city)\nsend(to, text)<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )
    call = {"type": "function", "function": {"name": "forecast", "arguments": {"city": "Loberg"}}}
    turns = [*messages, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "{}"}]
    structured = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    turns[2] = {
        "role": "assistant",
        "content": '<tool_call>{"name": "forecast", "arguments": {"city": "Loberg"}}</tool_call>',
    }
    assert structured == tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)


def test_every_text_survives_the_tokenizer(tokenizer):
    for row in corpus.sft_rows(500, seed=7):
        turns = [*row["prompt"], *row["completion"]]
        text = tokenizer.apply_chat_template(turns, tools=row.get("tools"), tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) <= corpus.CONTEXT


def test_a_name_is_the_same_tokens_wherever_it_stands(tokenizer):
    name = tokenizer.tokenize("Kelaruston")
    for text in ("I live in Kelaruston.", '{"city": "Kelaruston"}', "| Kelaruston | 3 |", "Kelaruston's kite"):
        found = tokenizer.tokenize(text)
        assert any(found[k : k + len(name)] == name for k in range(len(found)))


def test_calls_survive_when_special_tokens_are_left_out(tokenizer):
    ids = tokenizer("<tool_call>{}</tool_call><|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool_call>{}</tool_call>"


def test_labels_follow_bradley_terry():
    rng = Random(0)
    share = sum(corpus.prefers(1.0, 0.5, 0.5, rng) for _ in range(20_000)) / 20_000
    assert share == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.01)
    assert all(corpus.prefers(1.0, 0.5, 0.0, rng) for _ in range(100))
    assert not any(corpus.prefers(0.5, 1.0, 0.0, rng) for _ in range(100))


def test_pairs_keep_true_rewards_and_the_judges_task():
    conversations = corpus.prompts(60, split="test", seed=3)
    answers = [["Grass is green.", "I can't help with that.", "Grass is green."], ["Done.", "Done."]] * 30
    rows, without = corpus.pair_answers(conversations, answers, temperature=0.5, seed=0)
    assert without >= 30
    assert len(rows) + without == 60
    for row in rows:
        conversation = Conversation.from_row(row)
        assert row["split"] == "test"
        for side in ("chosen", "rejected"):
            assert judge(conversation, row[side][0]["content"]).reward == row[f"reward_{side}"]
        assert row["reward_chosen"] != row["reward_rejected"]


def test_the_best_answer_meets_each_of_the_others():
    conversation = corpus.prompts(1, split="train", seed=3)[0]
    answers = [write_answer(conversation, Random(n)) for n in range(12)] + ["", " ", "Grass is green."]
    worth = {text: judge(conversation, text).reward for text in answers if text.strip()}
    best = max(worth.values())
    rows, without = corpus.pair_answers([conversation] * 300, [answers] * 300, temperature=0.0, seed=0)
    assert without == 0
    assert {row["reward_chosen"] for row in rows} == {best}
    assert {row["rejected"][0]["content"] for row in rows} == {text for text in worth if worth[text] < best}


def test_relabelling_turns_noise_off_and_on():
    conversations = corpus.prompts(200, split="train", seed=3)
    answers = [["Grass is green.", "I can't help with that.", "x"]] * 200
    rows, _ = corpus.pair_answers(conversations, answers, temperature=2.0, seed=0)
    clean = corpus.relabel(rows, temperature=0)
    assert all(row["reward_chosen"] > row["reward_rejected"] for row in clean)
    assert corpus.relabel(rows, temperature=5.0) == corpus.relabel(rows, temperature=5.0)
    noisy = corpus.relabel(clean, temperature=5.0)
    assert 0.2 < sum(row["reward_chosen"] < row["reward_rejected"] for row in noisy) / len(noisy) < 0.6
    with pytest.raises(ValueError, match="temperature must not be negative, got -1"):
        corpus.relabel(rows, temperature=-1)
