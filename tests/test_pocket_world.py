"""The pocket world's prompts and answers: from seeds alone, plentiful, and honest about what is held back."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from random import Random

import pytest

from dpo_lab.worlds.pocket import (
    JOBS,
    Conversation,
    flaw_names,
    judge,
    sample_conversation,
    words,
    write_answer,
)
from dpo_lab.worlds.pocket.english import ENGLISH
from dpo_lab.worlds.pocket.judge import SPECS

# Changes only when the world itself changes; the embedded model and pairs must then be built again.
FIRST_THOUSAND = "425cc29fdd87e4736b2c0a1f17c897155c5a53369155a37219bc88621022d515"


def conversations(num: int, seed: int = 0, **knobs) -> list[Conversation]:
    rng = Random(seed)
    return [sample_conversation(rng, **knobs) for _ in range(num)]


def test_the_same_seed_gives_the_same_bytes():
    rng = Random(0)
    digest = hashlib.sha256()
    for _ in range(1000):
        conversation = sample_conversation(rng)
        answer = write_answer(conversation, rng)
        digest.update(json.dumps([conversation.row(), answer]).encode())
    assert digest.hexdigest() == FIRST_THOUSAND


def test_rows_survive_json():
    for split in ("train", "test"):
        for conversation in conversations(400, split=split):
            row = json.loads(json.dumps(conversation.row()))
            back = Conversation.from_row(row)
            assert back == conversation
            answer = write_answer(conversation, Random(1))
            assert judge(back, answer) == judge(conversation, answer)


def test_each_split_has_over_twenty_thousand_prompts():
    for split in ("train", "test"):
        shown = {(c.shown, json.dumps(c.tools)) for c in conversations(30_000, split=split)}
        assert len(shown) > 20_000


def test_prompts_of_the_test_split_never_occur_in_training():
    train = {(c.shown, json.dumps(c.tools)) for c in conversations(30_000, split="train")}
    test = [(c.shown, json.dumps(c.tools)) for c in conversations(2_000, seed=1, split="test")]
    seen = sum(prompt in train for prompt in test)
    # What has no name in it (small talk, a fact) is asked in both.
    assert seen / len(test) < 0.15


def test_names_and_things_of_the_test_split_are_held_out():
    assert not set(words.TEST_FIRST_NAMES) & set(words.FIRST_NAMES)
    rng = Random(0)
    drawn = {}
    for split in ("train", "test"):
        names = {draw(rng, split) for draw in (words.person, words.place, words.thing) for _ in range(5000)}
        drawn[split] = names | {food for _ in range(2000) for food in words.foods(rng, split, 3)}
    assert drawn["train"] & drawn["test"] == {*words.THINGS, *words.FOODS}
    held_out = drawn["test"] - drawn["train"]
    assert len(held_out) > 1000
    for conversation in conversations(5000, split="train"):
        shown = re.findall(r"\w+|[^\w ]", conversation.shown)
        assert not held_out & {*shown, *map(" ".join, pairwise(shown))}


def test_held_out_words_are_made_of_parts_seen_in_training():
    train, test = ({words.thing(Random(k), split) for k in range(5000)} for split in ("train", "test"))
    for word in test - train:
        assert any(word.startswith(stem) and any(other.startswith(stem) for other in train)
                   for stem in words.THING_STEMS), word  # fmt: skip
    seen = "".join(c.shown for c in conversations(2000, split="train"))
    pairs = {seen[k : k + 2] for k in range(len(seen) - 1)}
    for word in words.TEST_FIRST_NAMES:
        assert sum(word[k : k + 2] not in pairs for k in range(len(word) - 1)) <= 1, word


@pytest.mark.parametrize("job", JOBS)
def test_good_answers_succeed_and_padding_costs_a_little(job):
    rng = Random(2)
    padded = 0
    for k in range(3000):
        conversation = sample_conversation(rng, job, "train" if k % 2 else "test")
        verdict = judge(conversation, write_answer(conversation, rng, "good"))
        assert verdict.success, (conversation.shown, verdict.reason)
        assert verdict.reward == pytest.approx(3.0)
        longer = judge(conversation, write_answer(conversation, rng, "padded"))
        assert longer.success, (conversation.shown, longer.reason)
        assert 2.4 <= longer.reward <= 3.0
        padded += longer.reward < 3.0
    assert job == "format" or padded > 20


@pytest.mark.parametrize("job", JOBS)
def test_each_flaw_fails_in_its_own_part(job):
    rng = Random(3)
    seen: set[str] = set()
    for k in range(2000):
        conversation = sample_conversation(rng, job, "train" if k % 2 else "test")
        for flaw, part in flaw_names(conversation).items():
            answer = write_answer(conversation, rng, flaw)
            verdict = judge(conversation, answer)
            scores = {found.name: found.score for found in SPECS[job].assess(conversation, answer).parts}
            assert verdict.well_formed, (flaw, answer, verdict.reason)
            assert not verdict.success, (flaw, conversation.shown, answer)
            assert scores[part] < 1, (flaw, answer, scores)
            seen.add(flaw)
    assert len(seen) >= 6


@pytest.mark.parametrize("job", JOBS)
def test_the_mixture_is_well_formed_and_about_half_right(job):
    rng = Random(4)
    verdicts = []
    for _ in range(2000):
        conversation = sample_conversation(rng, job)
        verdicts.append(judge(conversation, write_answer(conversation, rng)))
    assert sum(v.well_formed for v in verdicts) == len(verdicts)
    assert 0.45 <= sum(v.success for v in verdicts) / len(verdicts) <= 0.62


def test_the_good_share_is_a_knob():
    conversation = sample_conversation(Random(0), "safety")
    answers = [write_answer(conversation, Random(k), good_share=1.0) for k in range(50)]
    assert all(judge(conversation, answer).success for answer in answers)
    answers = [write_answer(conversation, Random(k), good_share=0.0) for k in range(50)]
    assert not any(judge(conversation, answer).success for answer in answers)


def test_unknown_choices_are_refused_with_the_ones_that_exist():
    with pytest.raises(ValueError, match="job 'poetry' is not known; choose one of safety, system, format, tools"):
        sample_conversation(Random(0), "poetry")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split 'dev' is not known; choose train or test"):
        sample_conversation(Random(0), split="dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quality 'lazy' is not known here; choose good, padded, mixed or one of"):
        write_answer(sample_conversation(Random(0)), Random(0), "lazy")


def test_the_word_list_is_lower_case():
    assert all(word == word.lower() for word in ENGLISH)
