"""The suites of `run_suites`: numbers worked by hand, intervals against known truths, and all of it end to end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dpo_lab.logprobs import score
from dpo_lab.preferences import TokenData, tokenize_examples, tokenize_pairs
from dpo_lab.workbench.evaluation import measures, perplexity_of, run_suites, sample_answers, standard_text, text_blocks
from dpo_lab.workbench.evaluation.intervals import ratio, share
from dpo_lab.workbench.evaluation.suites import instruction_results, repetition_results
from dpo_lab.workbench.labels.results import wilson
from tests.command_line import some_rows
from tests.conftest import tiny_llama
from tests.small_tokenizers import CHATML, bpe
from tests.tiny import tiny_tokenizer


class Demand(NamedTuple):
    kind: str
    text: str = ""


class Verdict(NamedTuple):
    met: tuple[bool, ...]
    answers: bool
    reasons: tuple[str, ...] = ()

    @property
    def all_met(self) -> bool:
        return all(self.met)

    @property
    def score(self) -> float:
        return sum(self.met) / len(self.met)


@dataclass(frozen=True)
class Task:
    text: str
    section: str = "format"
    demands: tuple[Demand, ...] = (Demand("short"), Demand("letter"))
    kinds_seen: bool = True

    def row(self) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": self.text}], "tools": None}


TASKS = [Task(f"What does the cat say to dog {i}?", section=("format", "safety")[i % 2]) for i in range(6)]


def judge(task: Task, answer: str) -> Verdict:
    return Verdict((len(answer) < 20, "e" in answer), answers=bool(answer))


@pytest.fixture(scope="module")
def speaker():
    return tiny_llama(400), bpe(template=CHATML, eos="<|im_end|>")


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_share_of_single_things_has_wilsons_interval():
    found = share([1, 0, 1, 1, 0, 0, 1, 0, 0, 1], np.ones(10))
    expected = wilson(5, 10)
    assert (found["value"], found["low"], found["high"], found["n"]) == (0.5, expected.low, expected.high, 10)


def test_things_that_go_together_count_as_one():
    """Ten tasks of four answers that are all alike say no more than ten answers; independent ones say forty."""
    alike = share([4, 0, 4, 4, 0, 0, 4, 0, 0, 4], np.full(10, 4))
    alone = share([1, 0, 1, 1, 0, 0, 1, 0, 0, 1], np.ones(10))
    assert {**alike} == alone
    spread = share([2] * 10, np.full(10, 4))
    assert spread["low"] > alike["low"]


def test_where_all_pass_the_tasks_count_and_not_the_answers():
    found = share([4] * 10, np.full(10, 4))
    assert (found["value"], found["low"], found["high"]) == (1.0, wilson(10, 10).low, 1.0)
    nothing = share([0, 0], [0, 0])
    assert (nothing["value"], nothing["low"], nothing["high"], nothing["n"]) == (None, 0.0, 1.0, 0)


def test_the_share_and_the_bootstrap_hold_their_level():
    """Clusters of three with a common chance: 95 % intervals hold the truth about 95 times in 100."""
    generator, hits = np.random.default_rng(0), np.zeros(2)
    for trial in range(200):
        chance = generator.choice([0.3, 0.9], 60)
        passed = generator.binomial(3, chance)
        for place, one in enumerate((share(passed, [3] * 60), ratio(passed, [3] * 60, resamples=400, seed=trial))):
            hits[place] += one["low"] <= 0.6 <= one["high"]
    assert (hits >= 180).all(), hits
    assert (hits <= 199).all(), hits


def test_a_ratio_is_of_sums_and_its_bootstrap_has_the_known_spread():
    assert ratio([2, 6], [1, 3])["value"] == 2
    generator = np.random.default_rng(0)
    values = generator.normal(5, 2, 400)
    found = ratio(values, np.ones(400), resamples=4000)
    half = 1.96 * values.std() / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.03)
    as_exp = ratio(values, np.ones(400), of=np.exp, resamples=4000)
    assert [as_exp[name] for name in ("value", "low", "high")] == pytest.approx(
        [np.exp(found[name]) for name in ("value", "low", "high")], rel=1e-3
    )
    assert ratio([3.0], [1])["low"] is None, "one task has no spread"
    assert ratio([0], [0]) == {"value": None, "low": None, "high": None, "n": 0}


# ── perplexity ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_perplexity_is_exp_of_the_mean_nats_that_the_model_itself_gives():
    model, tokenizer = tiny_llama(), tiny_tokenizer(bos=False)
    text = " ".join(["the cat sat on the mat and the dog ran"] * 3)
    data = text_blocks(text, tokenizer, block=8, num_tokens=None)
    assert [len(data.row(i).completions[0]) for i in range(len(data))] == [8, 8, 8, 6]
    nats, count = 0.0, 0
    for i in range(len(data)):
        ids = torch.tensor(data.row(i).completions[0].astype(int))[None]
        logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        nats, count = nats - logps.sum().item(), count + len(logps)
    found = perplexity_of(model, data)
    assert found["num_tokens"] == count == 26
    assert found["nats_per_token"]["value"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"]["value"] == pytest.approx(np.exp(nats / count), rel=1e-4)


def test_an_even_model_is_as_perplexed_as_it_has_words_and_its_ratio_to_itself_is_one():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    data = text_blocks("the cat sat on the mat", tokenizer, block=4)
    found = perplexity_of(model, data, reference=model)
    assert found["perplexity"]["value"] == pytest.approx(64, rel=1e-5)
    assert {found["ratio_to_reference"][name] for name in ("value", "low", "high")} == {1.0}
    assert found["num_tokens"] == 6, "behind a start token every token is scored"


def test_the_ratio_is_of_the_two_perplexities():
    data = text_blocks("the cat sat on the mat and the dog ran " * 4, tiny_tokenizer(), block=8)
    found = perplexity_of(tiny_llama(), data, reference=tiny_llama(seed=1))
    assert found["ratio_to_reference"]["value"] == pytest.approx(
        found["perplexity"]["value"] / found["reference_perplexity"]["value"]
    )


def test_blocks_keep_to_the_models_positions_and_to_their_number_of_tokens():
    model, tokenizer = tiny_llama(max_position_embeddings=6), tiny_tokenizer()
    data = text_blocks("the cat sat on the mat and the dog ran", tokenizer, num_tokens=9, model=model)
    assert [len(row.completions[0]) for row in map(data.row, range(len(data)))] == [5, 4]
    assert all(row.prompt.tolist() == [1] for row in map(data.row, range(len(data))))
    with pytest.raises(ValueError, match=r"the text has 1 tokens, and perplexity needs at least 2; give a longer one"):
        text_blocks("cat", tiny_tokenizer(bos=False))
    with pytest.raises(ValueError, match=r"block must be at least 2 tokens, got 1; 512 is usual"):
        text_blocks("the cat", tokenizer, block=1)


def test_chosen_answers_are_scored_as_in_training(speaker):
    model, tokenizer = speaker
    rows = some_rows(5)
    pairs, _ = tokenize_pairs(rows, tokenizer)
    examples, _ = tokenize_examples(rows, tokenizer)
    found = perplexity_of(model, examples)
    lengths = pairs.completion_lengths[:, 0]
    assert found["nats_per_token"]["value"] == pytest.approx(-score(model, pairs)[:, 0].sum() / lengths.sum(), rel=1e-5)
    with pytest.raises(ValueError, match=r"rows of one completion, at least one row, got 5 of 2; make them with"):
        perplexity_of(model, pairs)
    with pytest.raises(ValueError, match="got 0 of 1"):
        perplexity_of(model, TokenData.from_rows([([1], ([2],))]).select([]))


def test_the_standard_text_is_english_prose_and_always_the_same():
    name, text = standard_text()
    assert name.startswith("reference of Python 3.")
    assert text == standard_text()[1]
    assert len(text.split()) > 20_000
    assert all(len(part.split()) >= 20 for part in text.split("\n\n"))
    assert sum(word in ("the", "of", "a", "is", "to") for word in text.split()) > 0.12 * len(text.split())


# ── instructions and repetition ──────────────────────────────────────────────────────────────────────────────────────


def record(task: int, answer: str = "", **others: Any) -> dict[str, Any]:
    return {"task": task, "answer": answer, "words": len(answer.split()), "tokens": 0, "is_cut": False} | others


def test_instruction_results_are_those_worked_by_hand():
    own = {"section": "format", "kinds": ["short", "letter"], "kinds_seen": True, "answers": True}
    other = {"section": "safety", "kinds": ["short"], "kinds_seen": False, "answers": False}
    records = [
        record(0, "a b", met=[True, True], all_met=True, log_ratio=1.0, **own),
        record(0, "a", met=[True, False], all_met=False, log_ratio=2.0, **own),
        record(1, "a b c", met=[False], all_met=False, log_ratio=6.0, **other),
    ]
    found = instruction_results(records)
    values = {path: one["value"] for path, one in measures(found) if path[0] != "per_novelty"}
    seen, new = found["per_novelty"].values()
    assert seen == found["per_section"]["format"]
    assert new == found["per_section"]["safety"]
    assert values == {
        ("demands_met",): 3 / 5, ("all_met",): 1 / 3, ("answers",): 2 / 3, ("words",): 2.0, ("kl",): 3.0,
        ("per_section", "format", "demands_met"): 3 / 4, ("per_section", "format", "all_met"): 1 / 2,
        ("per_section", "format", "answers"): 1.0, ("per_section", "safety", "demands_met"): 0.0,
        ("per_section", "safety", "all_met"): 0.0, ("per_section", "safety", "answers"): 0.0,
        ("per_kind", "short"): 2 / 3, ("per_kind", "letter"): 1 / 2,
    }  # fmt: skip
    assert {one["n"] for path, one in measures(found) if len(path) == 1} == {2}, "intervals are over tasks"
    assert found["per_kind"]["letter"]["n"] == 1


def test_repetition_is_that_worked_by_hand():
    records = [
        record(0, "A b c d a B c d", tokens=9),  # five 4-grams, the last as the first: 1/5 repeated; 7 pairs, 4 new
        record(1, "a b c", tokens=4, is_cut=True),  # no 4-gram; its pairs stand above
        record(2, "x y", tokens=2),  # one new pair
    ]
    found = repetition_results(records)
    assert found["repeated_4grams"]["value"] == pytest.approx(1 / 5)
    assert found["repeated_4grams"]["n"] == 1
    assert (found["distinct_2"]["value"], found["distinct_2"]["n"]) == (5 / 10, 10)
    assert found["cut_at_limit"]["value"] == pytest.approx(1 / 3)
    assert (found["words"]["value"], found["tokens"]["value"]) == (pytest.approx(13 / 3), 5)
    assert repetition_results([record(0, "hi")])["distinct_2"]["value"] is None


def test_all_suites_end_to_end(speaker):
    model, tokenizer = speaker
    run = lambda *suites, **others: run_suites(
        model, tokenizer, suites or ("instructions,perplexity, repetition"), tasks=TASKS, judge=judge,
        num_samples=2, max_new_tokens=6, text=("mine", "the cat sat on the mat " * 30), **others,
    )  # fmt: skip
    found = run(reference=tiny_llama(400, seed=1), chosen={"pairs": some_rows(4)})
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["conditions", "instructions", "repetition", "answers", "perplexity"]
    assert found["instructions"]["kl"]["value"] > 0
    assert [one["task"] for one in found["answers"]] == [i for i in range(6) for _ in range(2)]
    expected = [judge(TASKS[one["task"]], one["answer"]) for one in found["answers"]]
    assert found["instructions"]["demands_met"]["value"] == np.mean([one.met for one in expected])
    assert set(found["perplexity"]) == {"mine", "chosen of pairs"}
    assert len(found["perplexity"]["mine"]["sha256"]) == 64
    assert found["conditions"]["suites"] == ["instructions", "perplexity", "repetition"]
    again = run("repetition")
    assert "instructions" not in again
    assert again["repetition"] == found["repetition"], "the same answers for all suites"
    itself = run("instructions", reference=model, temperature=0.5)["instructions"]
    assert "kl" not in itself, "away from temperature 1 it is no KL"
    assert itself["log_ratio"]["value"] == 0


def test_the_suites_kl_is_that_of_the_kl_module(speaker):
    from dpo_lab.workbench.evaluation import kl_from_reference

    model, tokenizer = speaker
    reference = tiny_llama(400, seed=1)
    found = run_suites(
        model, tokenizer, "instructions", tasks=TASKS, judge=judge, reference=reference, max_new_tokens=6
    )
    rows = [{"prompt": task.row()["prompt"]} for task in TASKS]
    estimate = kl_from_reference(model, reference, tokenizer, rows, max_new_tokens=6)
    assert found["instructions"]["kl"]["value"] == pytest.approx(estimate.mean, rel=1e-4)


def test_mistakes_are_told(speaker):
    model, tokenizer = speaker
    say = r"suite 'perplexty' is not known; choose among instructions, perplexity, repetition"
    with pytest.raises(ValueError, match=say):
        run_suites(model, tokenizer, "instructions,perplexty")
    with pytest.raises(ValueError, match="limit must be at least 1 task, got 0; 200 are usual"):
        run_suites(model, tokenizer, "repetition", limit=0)
    with pytest.raises(ValueError, match="there are no tasks to answer"):
        run_suites(model, tokenizer, "repetition", tasks=[])


def test_a_shortened_prompt_is_counted(speaker):
    model, tokenizer = speaker
    long = [Task("the cat " * 60), TASKS[0]]
    answers, shortened = sample_answers(model, tokenizer, long, max_new_tokens=4, max_length=50)
    assert (len(answers), shortened) == (2, 1)
