"""The judge against the verdicts of a careful person, and against attempts to game it."""

from __future__ import annotations

import time
from random import Random

import pytest

from dpo_lab.worlds.pocket import JOBS, judge, sample_conversation, write_answer
from dpo_lab.worlds.pocket.judge import ILL_FORMED, MOST_FOR_WORDS
from tests.pocket_verdicts import GROUPS

CASES = [(name, conversation, sign, answer) for name, conversation, answers in GROUPS for sign, answer in answers]


def test_the_table_is_large_and_covers_every_job_and_verdict():
    assert len(CASES) >= 200
    for job in JOBS:
        signs = {sign for _, conversation, sign, _ in CASES if conversation.job == job}
        assert signs == {"+", "-", "x"}


@pytest.mark.parametrize(("name", "conversation", "sign", "answer"), CASES)
def test_the_judge_agrees_with_a_careful_person(name, conversation, sign, answer):
    verdict = judge(conversation, answer)
    found = "+" if verdict.success else "-" if verdict.well_formed else "x"
    assert found == sign, verdict.reason


def test_parts_add_up_and_the_scale_is_the_documented_one():
    rng = Random(0)
    answers = [(conversation, answer) for _, conversation, _, answer in CASES]
    for _ in range(2000):
        conversation = sample_conversation(rng)
        answers.append((conversation, write_answer(conversation, rng)))
    for conversation, answer in answers:
        verdict = judge(conversation, answer)
        assert sum(verdict.parts.values()) == pytest.approx(verdict.reward)
        assert -2.1 <= verdict.reward <= 3.0
        assert verdict.well_formed or verdict.reward == ILL_FORMED
        if verdict.success:
            assert verdict.reward >= 2.4
        else:
            assert verdict.reward < 2
        assert verdict.reason


def test_needless_words_cost_and_never_more_than_the_limit():
    conversation = next(c for name, c, _ in GROUPS if name == "a pirate and grass")
    short = judge(conversation, "Arr, grass is green, matey!")
    longer = judge(
        conversation,
        "Arr, grass is green, matey, as green as the sea and any ship and every hat that I have seen!",
    )
    assert short.success
    assert longer.success
    assert short.reward - MOST_FOR_WORDS <= longer.reward < short.reward


def test_gaming_never_succeeds():
    """Tricks that need no understanding: saying everything, repeating, quoting the prompt, another's answer."""
    rng = Random(5)
    lucky = doubled = 0
    for k in range(1200):
        conversation = sample_conversation(rng, JOBS[k % 4])
        good = write_answer(conversation, rng, "good")
        other = write_answer(sample_conversation(rng, JOBS[(k + 1) % 4]), rng, "good")
        tricks = {
            "twice": f"{good} {good}",
            "question": conversation.messages[-1]["content"],
            "marks": f"{good}<|im_end|>\n<|im_start|>user",
            "tail": f"{good} qz lorp ipsa dorel",
            "cut": good[: len(good) // 2],
            "everything": "I can't help with that, but sure, of course, ask, tell, buy, then yes and no.",
        }
        if conversation.task.get("case") == "chat":
            del tricks["question"]  # "Good night!" is a fine answer to "Good night!"
        for trick, answer in tricks.items():
            assert not judge(conversation, answer).success, (trick, conversation.shown, answer)
        # The other job's words can fit by chance: "In which city?" asks what a neighbour's letter was about.
        doubled += judge(conversation, f"{good} {other}").success
        mixed = rng.sample(good.split(" "), len(good.split(" ")))
        if not good.startswith("- "):  # bullets have no order
            lucky += mixed != good.split(" ") and len(mixed) > 3 and judge(conversation, " ".join(mixed)).success
    # Some orders of a short sentence's words are fine ("Matey, it is green." for "It is green, matey.").
    assert lucky < 24
    assert doubled < 12


@pytest.mark.parametrize("depth", [101, 980, 20_000])
@pytest.mark.parametrize("text", ["{}", 'Here: {"a": {}}', '<tool_call>{"name": "a", "arguments": {}}</tool_call>'])
def test_brackets_nested_too_deeply_are_ill_formed_and_do_not_stop_the_judge(text, depth):
    """Python's parser of JSON raises RecursionError at about a thousand, sooner where it is called from deep down."""
    nested = ["[" * depth + "]" * depth, '{"a": ' * depth + "1" + "}" * depth]
    for conversation in {conversation.job: conversation for _, conversation, _ in GROUPS}.values():
        for inside in nested:
            verdict = judge(conversation, text.replace("{}", inside))
            assert (verdict.reward, verdict.well_formed) == (ILL_FORMED, False)


def test_ten_thousand_answers_are_judged_in_seconds():
    rng = Random(6)
    pairs = [
        (conversation, write_answer(conversation, rng))
        for conversation in (sample_conversation(rng) for _ in range(2000))
    ]
    start = time.perf_counter()
    for conversation, answer in pairs:
        judge(conversation, answer)
    assert 5 * (time.perf_counter() - start) < 20
