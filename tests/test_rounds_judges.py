"""Judges: functions of both kinds, the worlds' own, and an endpoint that is slow, broken or of two minds."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_lab import load_preferences
from dpo_lab.sampling import Completion
from dpo_lab.workbench.rounds import EndpointJudge, InstructionReward, Round, judge_answers, train_rounds, true_reward
from dpo_lab.workbench.rounds.config import RoundsConfig
from dpo_lab.workbench.rounds.endpoint import KEY_VARIABLE
from dpo_lab.worlds.instructions import draw
from dpo_lab.worlds.learning import one_thread
from dpo_lab.worlds.pocket import Conversation, judge
from tests.chat_server import TOKENS, Chat, chat_server
from tests.conftest import tiny_llama
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": "the cat"}, {"prompt": "the dog"}]
KEY = "sk-very-secret-1234"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def said(*texts: str) -> list[Completion]:
    return [Completion(text, np.array([5]), True, np.zeros(1)) for text in texts]


ANSWERS = [said("a", "bb", "ccc"), said("dddd", "e", "ff")]
SCORES = [[0, 0.5, 1], [1, 0, 0.5]]
"""What a judge that prefers the longer answer makes of them."""


def endpoint(url: str, **options: Any) -> EndpointJudge:
    return EndpointJudge(url, "small", **{"pause": 0.01, "timeout": 5.0, "workers": 4} | options)


# ── functions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_judge_of_single_answers_gives_their_scores():
    seen = []

    def length(prompts, answers) -> list[int]:
        seen.extend((row["prompt"], answer.text) for row, answer in zip(prompts, answers, strict=True))
        return [len(answer.text) for answer in answers]

    found = judge_answers(length, ROWS, ANSWERS)
    assert found.scores.tolist() == [[1, 2, 3], [4, 1, 2]]
    assert found.counts == {}
    assert seen[:4] == [("the cat", "a"), ("the cat", "bb"), ("the cat", "ccc"), ("the dog", "dddd")]


def test_a_judge_of_two_answers_gives_the_share_that_each_beats():
    asked = []

    def longer(prompt, first, second) -> float:
        asked.append((prompt, first, second))
        return float(len(first) > len(second))

    found = judge_answers(longer, ROWS, ANSWERS)
    assert found.scores.tolist() == SCORES
    assert found.comparisons[0] == [[0, 1, 0.0, 0.0], [0, 2, 0.0, 0.0], [1, 2, 0.0, 0.0]]
    assert len(asked) == 12
    assert asked[:2] == [("the cat", "a", "bb"), ("the cat", "bb", "a")]
    assert found.counts == {"judge/comparisons": 6, "judge/disagreements": 0, "judge/without_verdict": 0}


def test_a_judge_that_prefers_a_place_says_nothing_and_is_counted():
    found = judge_answers(lambda prompt, first, second: 1.0, ROWS, ANSWERS)
    assert found.scores.tolist() == [[0.5] * 3] * 2
    assert found.counts["judge/disagreements"] == 6


def test_the_same_text_twice_is_a_tie_and_nobody_is_asked():
    asked = []
    found = judge_answers(lambda p, one, two: asked.append(one) or 1.0, ROWS[:1], [said("a", "a")])
    assert found.scores.tolist() == [[0.5, 0.5]]
    assert not asked


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda prompts, answers: [1.0], r"one number per answer, shape \(6,\), got \(1,\)"),
        (lambda prompts, answers: [float("nan")] * 6, "score of answer 0 must be finite, got nan for 'a'"),
        (lambda prompt, first, second: 2, "must return a number from 0 .* got 2; 0.5 is a tie"),
        (lambda prompt, first, second: "A", "must return a number from 0 .* got 'A'"),
        (lambda prompt: 1, r"a judge takes \(prompts, answers\) or \(prompt, first, second\)"),
    ],
)
def test_what_is_no_verdict_is_refused(function, words):
    with pytest.raises(ValueError, match=words):
        judge_answers(function, ROWS, ANSWERS)


def test_the_worlds_judge_their_own_prompts():
    rows = list(load_preferences("embedded", split="test", limit=3))
    answers = [said("No.", "Yes, of course.") for _ in rows]
    found = judge_answers(true_reward, rows, answers).scores
    assert found[1, 1] == judge(Conversation.from_row(rows[1]), "Yes, of course.").reward
    with pytest.raises(ValueError, match="needs rows of the pocket world, with job and task, got a row of prompt"):
        judge_answers(true_reward, ROWS, ANSWERS)
    tasks = draw("train", 3, seed=0)
    found = judge_answers(InstructionReward(tasks), [task.row() for task in tasks], answers).scores
    assert found.min() == -1  # "No." answers no task


# ── an endpoint ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_endpoint_is_asked_in_both_orders_and_what_it_costs_is_counted(tmp_path: Path):
    chat = Chat()
    with chat_server(chat) as url:
        found = judge_answers(endpoint(url, cache=tmp_path / "judged.jsonl"), ROWS, ANSWERS)
        assert found.scores.tolist() == SCORES
        assert chat.num_sent == len(set(chat.sent)) == 12
        assert found.counts["judge/calls"] == 12
        assert found.counts["judge/tokens"] == 12 * TOKENS
        again = judge_answers(endpoint(url, cache=tmp_path / "judged.jsonl"), ROWS, ANSWERS)
        assert chat.num_sent == 12  # nothing is paid for twice
        assert again.scores.tolist() == SCORES
        assert (again.counts["judge/cached"], again.counts["judge/calls"]) == (12, 0)
        assert again.counts["judge/tokens"] == 12 * TOKENS
        other = EndpointJudge(url, "large", cache=tmp_path / "judged.jsonl")
        judge_answers(other, ROWS, ANSWERS)
        assert chat.num_sent == 24  # another model is another judge
    assert "Authorization" not in chat.headers[0]


def test_an_endpoint_that_contradicts_itself_is_counted():
    with chat_server(Chat(says=lambda first, second: "A")) as url:
        found = judge_answers(endpoint(url), ROWS, ANSWERS)
    assert found.scores.tolist() == [[0.5] * 3] * 2
    assert found.counts["judge/disagreements"] == 6
    assert found.counts["judge/failed"] == 0


@pytest.mark.parametrize("trouble", [429, 500, 503, "drop", "garbage"])
def test_what_fails_once_is_tried_again(trouble):
    chat = Chat(trouble=lambda before: trouble if before == 0 else None)
    with chat_server(chat) as url:
        found = judge_answers(endpoint(url), ROWS, ANSWERS)
    assert found.scores.tolist() == SCORES
    assert found.counts["judge/retries"] == 12
    assert found.counts["judge/failed"] == 0
    assert chat.num_sent == 24


def test_a_slow_endpoint_is_not_waited_for():
    chat = Chat(trouble=lambda before: "slow" if before == 0 else None)
    began = time.monotonic()
    with chat_server(chat) as url:
        found = judge_answers(endpoint(url, timeout=0.3), ROWS[:1], ANSWERS[:1])
    assert found.scores.tolist() == SCORES[:1]
    assert found.counts["judge/retries"] == 6
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("trouble", [500, "drop", "garbage", "nothing"])
def test_an_endpoint_that_stays_broken_ends_the_round_and_loses_nothing(trouble, tmp_path: Path):
    chat, cache = Chat(), tmp_path / "judged.jsonl"
    with chat_server(chat) as url:
        judge_answers(endpoint(url, cache=cache), ROWS[:1], ANSWERS[:1])
        saved = cache.read_text()
        chat.trouble = lambda before: trouble
        with pytest.raises(OSError, match=r"no verdict on 12 of 12 questions; the last: .*no verdict is lost"):
            judge_answers(endpoint(url, tries=2), ROWS, ANSWERS)
        found = judge_answers(endpoint(url, cache=cache, tries=2), ROWS, ANSWERS)  # half of it was paid for before
        assert found.scores.tolist() == [SCORES[0], [0.5] * 3]
        assert found.counts["judge/failed"] == 6
        assert found.counts["judge/without_verdict"] == 3
        assert found.comparisons[1] == [[0, 1, None, None], [0, 2, None, None], [1, 2, None, None]]
        assert cache.read_text() == saved
        chat.trouble = lambda before: None
        assert judge_answers(endpoint(url, cache=cache), ROWS, ANSWERS).scores.tolist() == SCORES
    assert len(cache.read_text().splitlines()) == 12


def test_nonsense_is_no_verdict_and_is_shown(caplog):
    says = lambda first, second: "I like trains." if "dddd" in (first, second) else "**C**\n"
    with chat_server(Chat(says=says)) as url, caplog.at_level(logging.WARNING, logger="dpo_lab"):
        found = judge_answers(endpoint(url), ROWS, ANSWERS)
    assert found.counts["judge/failed"] == 4
    assert found.counts["judge/without_verdict"] == 2
    assert found.counts["judge/tokens"] == 12 * TOKENS  # nonsense costs as much
    assert (
        "no verdict on 4 of 12 questions, which count as ties; the last: a reply that is none of A, B, C" in caplog.text
    )
    assert "I like trains." in caplog.text


@pytest.mark.parametrize(
    ("reply", "value"), [("A", 1), ("b.", 0), ("**C**", 0.5), ("Answer: B", 0), ("Both are fine.\n\nVerdict: A", 1)]
)
def test_a_verdict_is_read_from_the_last_line(reply, value):
    with chat_server(Chat(says=lambda first, second: reply)) as url:
        assert endpoint(url).compare([(ROWS[0], "x", "y")]) == [value]


def test_the_key_stands_in_no_file_and_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    chat = Chat(trouble=lambda before: 401 if before else None)
    with chat_server(chat) as url, caplog.at_level(logging.DEBUG):
        judge_answers(endpoint(url, cache=tmp_path / "judged.jsonl"), ROWS, ANSWERS)
        assert chat.headers[0]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(ValueError, match="refuses with status 401; check the address") as refused:
            judge_answers(endpoint(url), ROWS, ANSWERS)
        monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\x07")
        with pytest.raises(ValueError, match=f"{KEY_VARIABLE} holds characters that no key has") as odd:
            judge_answers(endpoint(url), ROWS, ANSWERS)
    with pytest.raises(ValueError, match="put the key into DPO_LAB_JUDGE_KEY") as in_address:
        EndpointJudge(f"http://user:{KEY}@127.0.0.1/v1", "small")
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    texts += [caplog.text, *(str(error.value) for error in (refused, odd, in_address))]
    assert not any(KEY in text for text in texts)


def test_a_prompt_of_broken_bytes_is_asked_about(tmp_path: Path):
    with chat_server(Chat()) as url:
        assert endpoint(url, cache=tmp_path / "judged.jsonl").compare([({"prompt": "\ud800"}, "xx", "y")]) == [1]


def test_a_refusal_is_not_tried_again():
    chat = Chat(trouble=lambda before: 400)
    with chat_server(chat) as url, pytest.raises(ValueError, match=r"small at 127.0.0.1 refuses with status 400"):
        judge_answers(endpoint(url, workers=1), ROWS, ANSWERS)
    assert chat.num_sent <= 2  # those under way


def test_a_cache_that_a_kill_cut_off_is_mended(tmp_path: Path):
    cache = tmp_path / "judged.jsonl"
    with chat_server(chat := Chat()) as url:
        judge_answers(endpoint(url, cache=cache), ROWS, ANSWERS)
        cache.write_text(cache.read_text()[:-10])
        judge_answers(endpoint(url, cache=cache), ROWS, ANSWERS)
    assert chat.num_sent == 13
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 12


def test_rounds_with_an_endpoint(tmp_path: Path):
    config = RoundsConfig(rounds=2, prompts=3, answers=2, steps=1, max_new_tokens=5, max_length=32, device="cpu")
    with one_thread(), chat_server(Chat()) as url:
        judge = endpoint(url, cache=tmp_path / "judged.jsonl")
        events = list(train_rounds(tiny_llama(), tiny_tokenizer(), ["the cat", "the dog", "it was"], judge, config,
                                   folder=tmp_path, held_out=["the mat"]))  # fmt: skip
    found = [event.metrics for event in events if isinstance(event, Round)]
    assert all(own["judge/tokens"] == TOKENS * 2 * own["judge/comparisons"] for own in found)
    (line, *_) = (tmp_path / "rounds" / "0001" / "verdicts.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"row", "scores", "comparisons"}
