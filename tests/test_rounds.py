"""DPO in rounds: against `train_dpo` round by round, killed at random moments, online and offline."""

from __future__ import annotations

import ast
import copy
import json
import logging
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from dpo_lab import DPOConfig, Run, load_preferences, train_dpo
from dpo_lab.course.rlhf import LearntReward, RewardModel
from dpo_lab.loop import Checkpoint, Evaluation, Finished, Step
from dpo_lab.models.lora import add_lora
from dpo_lab.preferences import TokenData
from dpo_lab.preferences.chat import completion_text
from dpo_lab.sampling import generate_ids
from dpo_lab.storage.checkpoints import latest_checkpoint, read_manifest
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.workbench.rounds import ImplicitReward, Round, RoundsConfig, make_pairs, train_rounds
from dpo_lab.worlds.learning import one_thread
from tests.command_line import without_seconds
from tests.conftest import ROOT, tiny_llama
from tests.faults import forked, kill_after
from tests.tiny import tiny_tokenizer

SETTINGS: dict[str, Any] = {
    "rounds": 3, "prompts": 6, "answers": 3, "steps": 2, "batch_size": 4, "max_new_tokens": 6, "max_length": 32,
    "learning_rate": 1e-3, "device": "cpu",
}  # fmt: skip
PROMPTS = [f"the {one} {other}" for one in ("cat", "dog", "mat", "tree") for other in ("sat", "ran")]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def low_tokens(prompts, answers) -> list[float]:
    """Some reward of token ids, of which no two answers have the same by chance."""
    return [float(np.sum(answer.ids < 20) + 0.01 * np.sum(answer.ids)) for answer in answers]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rounds(judge=low_tokens, model=None, rows=PROMPTS, *, options: dict[str, Any] | None = None, **changed):
    model = tiny_llama() if model is None else model
    config = RoundsConfig(**SETTINGS | changed)
    return model, list(train_rounds(model, tiny_tokenizer(), rows, judge, config, **(options or {})))


def of(kind, events) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ── what a round does ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("follows", [False, True])
def test_rounds_are_train_dpo_on_the_pairs_of_each_round(follows, tmp_path):
    """One pass of plain gradient descent a round, so that each call of `train_dpo` begins where the last one ended."""
    settings = {"optimizer": "sgd", "adam_beta1": 0.0, "schedule": "constant", "warmup": 0.0, "batch_size": 99}
    model, _ = rounds(steps=1, reference_follows=follows, options={"folder": tmp_path}, **settings)
    by_hand, start, tokenizer = tiny_llama(), tiny_llama(), tiny_tokenizer()
    config = DPOConfig(**settings, learning_rate=1e-3, max_steps=1, max_length=32, device="cpu")
    for number in range(3):
        folder, rows = tmp_path / "rounds" / f"{number + 1:04d}", []
        prompts = [tokenizer(PROMPTS[line["row"]])["input_ids"] for line in lines(folder / "answers.jsonl")]
        seed = int(np.random.SeedSequence([0, number]).generate_state(1)[0])
        answers = generate_ids(by_hand, tokenizer, prompts, max_new_tokens=6, num_samples=3, seed=seed)
        for prompt, own in zip(prompts, answers, strict=True):
            order = sorted((answer for answer in own if answer.text), key=lambda one: low_tokens(None, [one])[0])
            if low_tokens(None, [order[-1]]) > low_tokens(None, [order[0]]):
                rows.append((prompt, (order[-1].ids, order[0].ids)))
        reference = copy.deepcopy(by_hand) if follows else start
        for _ in train_dpo(by_hand, tokenizer, TokenData.from_rows(rows), config, reference=reference):
            pass
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=1e-4)
    assert not torch.equal(weights(model), weights(start))


def test_the_optimiser_keeps_its_state_over_the_rounds(tmp_path):
    """A schedule and Adam's moments span the run: its rates are those of one training of all steps."""
    _, events = rounds(schedule="linear", warmup=0.0, options={"checkpoints": tmp_path})
    rates = [event.metrics["learning_rate"] for event in of(Step, events)]
    np.testing.assert_allclose(rates, 1e-3 * np.arange(6, 0, -1) / 6)
    state = torch.load(tmp_path / "step-00000006" / "state.pt", weights_only=True)["optimizer"]["state"]
    assert {int(own["step"]) for own in state.values()} == {6}


def test_what_is_measured_of_a_round(tmp_path):
    start, judged = tiny_llama(), []

    def judge(prompts, answers) -> list[float]:
        judged.extend(answers)
        return low_tokens(prompts, answers)

    model, events = rounds(judge, options={"folder": tmp_path, "held_out": PROMPTS[:3]})
    found = of(Round, events)
    assert [(event.round, event.num_rounds, event.step) for event in found] == [(1, 3, 0), (2, 3, 2), (3, 3, 4)]
    assert [type(event) for event in events[:4]] == [Evaluation, Round, Step, Step]
    assert found[0].metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert found[2].metrics["kl"] != pytest.approx(0, abs=1e-3)
    assert [event.metrics["cost/judged_answers"] for event in found] == [18, 36, 54]
    assert len(judged) == 54 + 2 * 3  # held-out answers are judged too, and are no cost of training
    for event in found:
        folder = tmp_path / "rounds" / f"{event.round:04d}"
        answers = [answer for line in lines(folder / "answers.jsonl") for answer in line["answers"]]
        scores = np.array([line["scores"] for line in lines(folder / "verdicts.jsonl")])
        assert event.metrics["reward"] == pytest.approx(scores.mean())
        assert event.metrics["answer_length"] == pytest.approx(np.mean([len(answer["ids"]) for answer in answers]))
        assert event.metrics["finished"] == pytest.approx(np.mean([answer["finished"] for answer in answers]))
        assert event.metrics["mixed"] == np.mean([len(set(own)) > 1 for own in scores.tolist()])
        assert event.metrics["pairs"] == len(lines(folder / "pairs.jsonl"))
    last = of(Evaluation, events)[-1].metrics
    prompts = [tiny_tokenizer()(text)["input_ids"] for text in PROMPTS[:3]]
    seed = int(np.random.SeedSequence([0, 2**31]).generate_state(1)[0])
    own = generate_ids(model, tiny_tokenizer(), prompts, max_new_tokens=6, seed=seed)
    exact = kl_of_samples(model, start, prompts, [[answer.ids for answer in row] for row in own]).mean
    assert last["eval_kl"] == pytest.approx(exact, abs=1e-4)
    assert last["eval_reward"] == pytest.approx(np.mean(low_tokens(None, [row[0] for row in own])))


def test_the_files_of_pairs_are_data(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": text}], "system": "be good", "chosen": "x", "rejected": "y",
             "mark": i} for i, text in enumerate(PROMPTS)]  # fmt: skip
    rounds(rows=rows, options={"folder": tmp_path}, pair_by="all")
    path = tmp_path / "rounds" / "0002" / "pairs.jsonl"
    loaded, written = list(load_preferences(path)), lines(path)
    assert len(loaded) == len(written) > 6
    for row, line in zip(loaded, written, strict=True):
        assert row["prompt"] == rows[line["mark"]]["prompt"]
        assert row["system"] == "be good"
        answers = lines(path.with_name("answers.jsonl"))[line["places"][0]]["answers"]
        for side, place in zip(("chosen", "rejected"), line["places"][1:], strict=True):
            assert completion_text(row, side) == answers[place]["text"]
        assert line["score_chosen"] > line["score_rejected"]


def test_every_prompt_comes_once_before_any_comes_twice(tmp_path):
    rounds(options={"folder": tmp_path})
    seen = [line["row"] for number in (1, 2, 3) for line in lines(tmp_path / "rounds" / f"000{number}/answers.jsonl")]
    assert len(seen) == 18
    for start in (0, 8):
        assert set(seen[start : start + 8]) == set(range(8))


# ── online, semi-online, offline ─────────────────────────────────────────────────────────────────────────────────────


def test_online_is_semi_online_with_a_round_for_each_step():
    online, events = rounds(sampler="step")
    semi, others = rounds(sampler="round", rounds=6, prompts=3, steps=1)
    assert torch.equal(weights(online), weights(semi))
    assert [event.metrics for event in of(Step, events)] == [event.metrics for event in of(Step, others)]
    assert len(of(Round, events)) == 6
    assert not torch.equal(weights(online), weights(rounds()[0]))


def test_offline_never_samples_from_what_it_has_learnt(tmp_path):
    _, events = rounds(sampler="never", options={"folder": tmp_path})
    base, tokenizer = tiny_llama(), tiny_tokenizer()
    for number in range(3):
        saved = lines(tmp_path / "rounds" / f"{number + 1:04d}" / "answers.jsonl")
        prompts = [tokenizer(PROMPTS[line["row"]])["input_ids"] for line in saved]
        seed = int(np.random.SeedSequence([0, number]).generate_state(1)[0])
        answers = generate_ids(base, tokenizer, prompts, max_new_tokens=6, num_samples=3, seed=seed)
        assert [[a["ids"] for a in line["answers"]] for line in saved] == [[a.ids.tolist() for a in r] for r in answers]
    assert of(Round, events)[-1].metrics["kl"] != pytest.approx(0, abs=1e-3)  # the policy's, all the same


def test_offline_samples_from_the_policy_as_it_was_and_not_from_another_reference(tmp_path):
    rounds(sampler="never", options={"folder": tmp_path, "reference": tiny_llama(seed=5)})
    rounds(sampler="never", options={"folder": tmp_path / "own"})
    for number in (1, 3):
        name = Path("rounds") / f"000{number}" / "answers.jsonl"
        assert (tmp_path / name).read_text() == (tmp_path / "own" / name).read_text()


def test_semi_online_samples_from_the_policy_as_it_stands(tmp_path):
    rounds(options={"folder": tmp_path})
    rounds(sampler="never", options={"folder": tmp_path / "off"})
    texts = [[(folder / "rounds" / f"000{n}" / "answers.jsonl").read_text() for n in (1, 3)]
             for folder in (tmp_path, tmp_path / "off")]  # fmt: skip
    assert texts[0][0] == texts[1][0]
    assert texts[0][1] != texts[1][1]


def test_an_adapter_has_its_base_as_reference_and_as_offline_sampler(tmp_path):
    for sampler in ("round", "never"):
        model = add_lora(tiny_llama(), rank=4)
        before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        _, events = rounds(model=model, sampler=sampler, learning_rate=1e-2, options={"folder": tmp_path / sampler})
        assert of(Round, events)[-1].metrics["kl"] != pytest.approx(0, abs=1e-4)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if not p.requires_grad)
    rounds(sampler="never", learning_rate=1e-2, options={"folder": tmp_path / "whole"})
    name = Path("rounds") / "0003" / "answers.jsonl"
    ids = lambda path: [[answer["ids"] for answer in line["answers"]] for line in lines(path)]
    assert ids(tmp_path / "never" / name) == ids(tmp_path / "whole" / name)


# ── pairs from scores ────────────────────────────────────────────────────────────────────────────────────────────────


def pairs_of(scores, *, texts=None, seed=0, **settings):
    texts = texts or [[f"{p} {i}" for i in range(len(own))] for p, own in enumerate(scores)]
    config = RoundsConfig(**settings)
    return [tuple(pair) for pair in make_pairs(np.array(scores, float), texts, config, np.random.default_rng(seed))]


def test_pairs_by_hand():
    scores = [[1, 3, 2, 1], [5, 5, 5, 5], [0, 0, 4, 4]]
    assert pairs_of(scores) == [(0, 1, 0), (2, 2, 0)]
    assert pairs_of(scores, pair_by="all") == [
        (0, 1, 2), (0, 1, 0), (0, 1, 3), (0, 2, 0), (0, 2, 3), (2, 2, 0), (2, 2, 1), (2, 3, 0), (2, 3, 1),
    ]  # fmt: skip
    assert pairs_of(scores, pair_by="all", margin=1) == [(0, 1, 0), (0, 1, 3), (2, 2, 0), (2, 2, 1), (2, 3, 0),
                                                         (2, 3, 1)]  # fmt: skip
    drawn = {pairs_of(scores, pair_by="best_random", seed=seed)[0] for seed in range(30)}
    assert drawn == {(0, 1, 0), (0, 1, 2), (0, 1, 3)}


@pytest.mark.parametrize("pair_by", ["best_worst", "best_random", "all", "bradley_terry"])
def test_ties_give_no_pair(pair_by):
    assert pairs_of([[2, 2, 2], [0.5, 0.5, 0.5]], pair_by=pair_by) == []
    assert pairs_of([[2, 2.5]], pair_by=pair_by, margin=0.5) == []


def test_neither_does_the_same_text_nor_an_empty_one():
    assert pairs_of([[1, 2, 3]], texts=[["a", "b", "a"]]) == [(0, 2, 1)]
    assert pairs_of([[1, 2, 3]], texts=[["", "b", "c"]]) == [(0, 2, 1)]
    assert pairs_of([[1, 2]], texts=[["", "b"]]) == []


def test_a_bradley_terry_draw_prefers_the_better_answer_as_often_as_it_should():
    draws = [pairs_of([[0, 1]], pair_by="bradley_terry", label_temperature=0.5, seed=seed)[0] for seed in range(2000)]
    share = np.mean([pair == (0, 1, 0) for pair in draws])
    assert share == pytest.approx(1 / (1 + np.exp(-2)), abs=0.03)


def test_prompts_whose_answers_all_score_alike_are_counted():
    mixed = lambda prompts, answers: [
        float(a.ids[0]) if "cat" in row["prompt"] else 1.0 for row, a in zip(prompts, answers, strict=True)
    ]
    _, events = rounds(mixed, prompts=8, rounds=1)
    (found,) = of(Round, events)
    assert 0 < found.metrics["mixed"] <= 2 / 8  # two of the eight prompts have a cat
    assert found.metrics["pairs"] <= 2


def test_a_round_without_pairs_moves_nothing_and_is_logged(caplog):
    with caplog.at_level(logging.WARNING, logger="dpo_lab"):
        model, events = rounds(lambda prompts, answers: [1.0] * len(answers))
    assert torch.equal(weights(model), weights(tiny_llama()))
    assert {event.metrics["grad_norm"] for event in of(Step, events)} == {0.0}
    assert [event.metrics["pairs"] for event in of(Round, events)] == [0, 0, 0]
    assert sum("gives no pair" in record.message for record in caplog.records) == 3


def test_replayed_pairs_are_of_earlier_rounds():
    _, events = rounds(replay=0.5, steps=4)
    found = [event.metrics for event in of(Round, events)]
    assert found[0]["replayed"] == 0
    assert all(own["replayed"] == min(own["pairs"], sum(other["pairs"] for other in found[:i]))
               for i, own in enumerate(found))  # fmt: skip
    assert found[2]["replayed"] > 0


# ── killed and gone on ───────────────────────────────────────────────────────────────────────────────────────────────

HARD = {"replay": 0.4, "reference_follows": True, "pair_by": "bradley_terry", "keep_checkpoints": 2}


def recorded(folder: Path, *, resume: bool = True, **options: Any) -> tuple[Any, Any]:
    """Begin a run in a folder, or go on with it, as the command does."""
    is_begun = (folder / "config.json").is_file()
    run = Run.create(folder, {"command": "rounds"}, resume=is_begun)
    checkpoint = latest_checkpoint(run.checkpoints) if is_begun else None
    model = tiny_llama()
    events = train_rounds(model, tiny_tokenizer(), PROMPTS, low_tokens, RoundsConfig(**SETTINGS, **HARD),
                          folder=folder, checkpoints=run.checkpoints, resume=checkpoint, held_out=PROMPTS[:2],
                          **options)  # fmt: skip
    if is_begun:
        run.rewind(read_manifest(checkpoint)["step"] if checkpoint else 0)
    *_, end = run.follow(events)  # pyright: ignore[reportArgumentType]
    return model, end


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for the clock."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "rounds").rglob("*.jsonl"))}
    last = folder / "checkpoints" / "step-00000006"
    sums = json.loads((last / "manifest.json").read_text())["sha256"]
    return files | {"sums": sums, "metrics": without_seconds(lines(folder / "metrics.jsonl"))}


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(tmp_path):
    recorded(tmp_path / "first")  # what is slow once is no part of the measure
    _, end = recorded(tmp_path / "calm")
    calm, seconds, draw = contents(tmp_path / "calm"), end.seconds, Random(1)
    kills = 0
    for number in range(4):
        folder = tmp_path / f"run-{number}"
        for moment in (*(draw.uniform(0, 0.7 * seconds) for _ in range(3)), 300.0):
            child = forked(lambda folder=folder: recorded(folder) and None)
            was_killed = kill_after(child, moment)
            kills += was_killed
            if not was_killed:
                break
        assert contents(folder) == calm
    assert kills >= 4


def test_a_stop_waits_for_the_end_of_the_round_and_the_run_goes_on(tmp_path):
    recorded(tmp_path / "calm")
    _, stopped = recorded(tmp_path / "run", stop=lambda: True)
    assert isinstance(stopped, Finished)
    assert (stopped.step, stopped.is_complete) == (2, False)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["kind"] == "finished"
    _, done = recorded(tmp_path / "run")
    assert done.is_complete
    assert contents(tmp_path / "run") == contents(tmp_path / "calm")


def test_checkpoints_stand_where_rounds_begin(tmp_path):
    for sampler in ("round", "step"):
        _, events = rounds(sampler=sampler, options={"checkpoints": tmp_path / sampler})
        assert [event.step for event in of(Checkpoint, events)] == [2, 4, 6]


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path):
    rounds(options={"checkpoints": tmp_path})
    with pytest.raises(ValueError, match=r"rounds\.temperature was 1\.0 and is 0\.5"):
        rounds(temperature=0.5, options={"resume": tmp_path / "step-00000004"})
    with pytest.raises(ValueError, match="belongs to another run: prompts was"):
        rounds(rows=PROMPTS[:6], options={"resume": tmp_path / "step-00000004"})
    with pytest.raises(ValueError, match="the folder that holds them is missing"):
        rounds(replay=0.5, options={"resume": tmp_path / "step-00000004"})


def test_missing_pairs_that_are_to_be_replayed_are_named(tmp_path):
    options = {"folder": tmp_path, "checkpoints": tmp_path / "checkpoints"}
    rounds(replay=0.5, options=options)
    (tmp_path / "rounds" / "0001" / "pairs.jsonl").unlink()
    with pytest.raises(ValueError, match=r"0001/pairs\.jsonl is missing, and its pairs are replayed"):
        rounds(replay=0.5, options=options | {"resume": tmp_path / "checkpoints" / "step-00000004"})


# ── judges and mistakes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_learnt_reward_model_judges():
    reward = LearntReward(RewardModel.on(tiny_llama(seed=1), seed=0), tiny_tokenizer(), max_length=32)
    _, events = rounds(reward)
    assert all(event.metrics["mixed"] > 0.5 for event in of(Round, events))


def test_the_policy_judges_itself_by_its_implicit_reward():
    policy, reference = tiny_llama(seed=2), tiny_llama()
    judge = ImplicitReward(policy, reference, tiny_tokenizer(), beta=0.1, max_length=32)
    _, events = rounds(judge, model=policy, options={"reference": reference})
    first, last = of(Round, events)[0].metrics, of(Round, events)[-1].metrics
    assert first["reward"] == pytest.approx(0.1 * first["kl"], abs=1e-4)  # the same sum over the same answers
    assert last["pairs"] > 0
    dear = ImplicitReward(policy, reference, tiny_tokenizer(), beta=0.1, length_price=2.0, max_length=32)
    rows = [{"prompt": PROMPTS[0]}]
    (answers,) = generate_ids(policy, tiny_tokenizer(), rows, max_new_tokens=5)
    assert judge(rows, answers) - dear(rows, answers) == pytest.approx(2.0 * len(answers[0].ids))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"answers": 1}, "answers must be at least 2, got 1"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"temperature": 0.0}, r"temperature must be positive and finite, got 0\.0"),
        ({"replay": 1.0}, r"replay is a share of the pairs and must lie in \[0, 1\), got 1\.0"),
        ({"margin": -1.0}, r"margin must be finite and not negative, got -1\.0"),
        ({"sampler": "often"}, "sampler is not known, got 'often'; choose one of step, round, never"),
        ({"sampler": "step", "prompts": 5}, "prompts must be a multiple of the 2 steps where each step samples, got 5"),
        ({"checkpoint_every": 3}, "checkpoint_every must be a multiple of the 2 steps a round, got 3"),
        ({"epochs": 2}, "epochs has no say here, got 2; set rounds and steps"),
        ({"sync_reference": 4}, "sync_reference moves the reference by steps"),
        ({"loss": "kto"}, "loss must be a loss of pairs, got 'kto'"),
        ({"max_new_tokens": 32}, "max_new_tokens must be at least 1 and below max_length, got 32"),
    ],
)
def test_a_wrong_setting_names_value_rule_and_remedy(changed, words):
    with pytest.raises(ValueError, match=words):
        RoundsConfig(**SETTINGS | changed)


def test_mistakes_are_reported_at_the_call():
    model = tiny_llama()
    with pytest.raises(ValueError, match="there are no prompts"):
        train_rounds(model, tiny_tokenizer(), [], low_tokens)
    with pytest.raises(ValueError, match=r"a judge takes \(prompts, answers\) or \(prompt, first, second\), got 3"):
        train_rounds(model, tiny_tokenizer(), PROMPTS, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="reference is the model that is trained"):
        train_rounds(model, tiny_tokenizer(), PROMPTS, low_tokens, reference=model)
    with pytest.raises(ValueError, match="prompts must be texts or rows with a prompt, got list"):
        train_rounds(model, tiny_tokenizer(), [[1, 2]], low_tokens)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="a prompt's field 'mark' cannot be written as JSON"):
        train_rounds(model, tiny_tokenizer(), [{"prompt": "the cat", "mark": {1, 2}}], low_tokens)


def test_every_setting_has_its_line_of_documentation():
    tree = ast.parse((ROOT / "dpo_lab" / "workbench" / "rounds" / "config.py").read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    for field, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(following, ast.Expr), ast.unparse(field)
