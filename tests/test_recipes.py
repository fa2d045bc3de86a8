"""A recipe: said as a command and as Python it is the same run; carried out, it can be stopped at any moment."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import pytest

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Checkpoint, Evaluation, Finished, Step, TrainingDiverged
from dpo_lab.models import load_policy
from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.cli.inputs import settled
from dpo_lab.workbench.cli.options import TrainOptions
from dpo_lab.workbench.recipes import (
    Answers,
    Prepared,
    Recipe,
    carry_out,
    command_line,
    next_folder,
    planned_steps,
    python_code,
    session,
    true_reward,
)
from dpo_lab.workbench.runs import Run
from tests.command_line import chat_model, dpo_lab, some_rows, without_seconds, write_rows
from tests.conftest import ROOT

ODD = Recipe(
    model="a model/with 'quotes'", pairs="-dash $HOME.json", limit=300, validation=0.2, samples=3,
    sample_temperature=0.0, max_new_tokens=9,
    config=DPOConfig(
        loss="simpo", beta=1.5, knobs={"gamma": 0.5}, learning_rate=1e-4, epochs=0.5, max_grad_norm=None, dropout=True,
        group_by_length=False, seed=7, evaluate_every=4, optimizer="rmsprop",
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recipe that trains in a second: nine steps on a tiny model."""
    folder = tmp_path_factory.mktemp("small")
    config = DPOConfig(batch_size=4, evaluate_every=3, learning_rate=1e-3, beta=0.3, device="cpu")
    return Recipe(
        model=str(chat_model(folder / "model")), pairs=str(write_rows(folder / "pairs.jsonl", some_rows(40))),
        samples=2, max_new_tokens=4, config=config,
    )  # fmt: skip


# ── the same run, written down ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("recipe", [Recipe(), ODD], ids=["default", "odd"])
def test_the_command_line_gives_the_same_settings(recipe):
    import shlex

    program, *arguments = shlex.split(command_line(recipe))
    assert program == "dpo-lab"
    options = settled(parse(arguments))
    assert isinstance(options, TrainOptions)
    assert {name: getattr(options, name) for name in recipe.settings} == recipe.settings


def test_a_recipe_starts_with_the_defaults_of_the_command_line():
    usual = settled(TrainOptions())
    assert {name: getattr(usual, name) for name in Recipe().settings} == Recipe().settings
    assert command_line(Recipe()) == "dpo-lab train"


@pytest.mark.parametrize("recipe", [Recipe(), ODD, replace(ODD, validation=0.0)], ids=["default", "odd", "none held"])
def test_the_python_code_gives_the_same_settings(recipe, monkeypatch):
    import dpo_lab as package
    from dpo_lab import preferences

    seen = {}

    def stub(name, value=None):
        return lambda *args, **kwargs: seen.setdefault(name, []).append((args, kwargs)) or value

    class Nothing:
        model_folder = "folder"
        __enter__ = lambda self: self
        __exit__ = lambda self, *_: None
        save_pretrained = follow = write_report = lambda self, *_: []

    for name, value in (("load_policy", (Nothing(), Nothing())), ("load_preferences", "rows"), ("train_dpo", []),
                        ("ReferenceCache", Nothing())):  # fmt: skip
        monkeypatch.setattr(package, name, stub(name, value), raising=False)
    monkeypatch.setattr(package, "Run", type("Run", (), {"create": staticmethod(stub("create", Nothing()))}))
    monkeypatch.setattr(preferences, "split_rows", stub("split_rows", ("rows", "held")))
    exec(python_code(recipe, "runs/x"), {})
    (arguments, options), *_ = seen["train_dpo"]
    assert arguments[3] == recipe.config
    assert seen["load_policy"][0][0] == (recipe.model,)
    source, given = seen["load_preferences"][0]
    assert source == (recipe.pairs,)
    assert given.get("limit") == recipe.limit
    if recipe.pairs != "embedded" and recipe.validation:
        assert seen["split_rows"] == [(("rows", recipe.validation), {"seed": recipe.config.seed})]
    assert (options["held_out"] is None) == (recipe.validation == 0.0)


def test_what_is_no_recipe_is_refused():
    for wrong, told in (
        ({"model": " "}, "model must name a source"), ({"limit": 1}, "limit must be at least 2"),
        ({"validation": 1.0}, r"validation is a share and must lie in \[0, 1\)"), ({"samples": -1}, "samples must not"),
        ({"sample_temperature": -0.1}, "0 is greedy"), ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            Recipe(**wrong)


def test_every_field_of_a_recipe_is_documented():
    from dpo_lab.workbench.widgets.controls import field_docs

    assert set(field_docs(Recipe)) == {entry.name for entry in fields(Recipe)}


# ── carried out ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_told_and_kept(small, tmp_path):
    told = []
    events = list(carry_out(small, tmp_path / "run", progress=lambda *now: told.append(now)))
    first, last = events[0], events[-1]
    assert isinstance(first, Prepared)
    assert (first.num_pairs, first.num_held_out, first.num_scored) == (36, 4, 40)
    assert len(first.prompts) == 2
    assert isinstance(last, Finished)
    assert last.is_complete
    assert last.num_steps == planned_steps(small.config, 36) == 9
    assert [event.step for event in events if isinstance(event, Step)] == list(range(1, 10))
    for event in events:  # answers follow their evaluation
        if isinstance(event, Evaluation):
            assert isinstance(events[events.index(event) + 1], Answers)
    assert [event.step for event in events if isinstance(event, Answers)] == [0, 3, 6, 9]
    assert {what for what, _, _ in told} >= {"loading the model", "reading the pairs", "scoring the reference, pairs"}

    run = Run.load(tmp_path / "run")
    assert run.summary()["is_complete"]
    assert run.config["settings"] == json.loads(json.dumps(small.settings))
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "curves.png").is_file()
    load_policy(run.model_folder, device="cpu")
    sample, answers = run.samples[0], [event for event in events if isinstance(event, Answers)]
    assert sample["prompt"] == first.prompts[0]
    assert (sample["before"], sample["after"]) == (answers[0].texts[0], answers[-1].texts[0])
    assert sample["after_step"] == 9
    assert "reward_after" not in sample  # nobody knows the true reward of these


def of_training(metrics: list[dict]) -> list[dict]:
    """Rows without seconds and without what is measured of answers on the way, which only the panel's way does."""
    of_answers = {"eval_answer_length", "eval_kl", "eval_well_formed", "eval_true_reward"}
    return [{name: value for name, value in row.items() if name not in of_answers} for row in without_seconds(metrics)]


def test_the_command_and_the_python_code_give_the_same_numbers_and_answers(small, tmp_path, capsys, monkeypatch):
    import shlex

    small = replace(small, flip=0.25)
    list(carry_out(small, tmp_path / "cockpit"))
    ours = Run.load(tmp_path / "cockpit")
    arguments = shlex.split(command_line(small))[1:]
    assert dpo_lab(capsys, *arguments, "--run", tmp_path / "command", "--kl-prompts", 0).status == 0
    theirs = Run.load(tmp_path / "command")
    assert of_training(ours.metrics) == of_training(theirs.metrics)
    assert [(s["before"], s["after"]) for s in ours.samples] == [(s["before"], s["after"]) for s in theirs.samples]
    exec(python_code(small, str(tmp_path / "python")), {})
    by_hand = Run.load(tmp_path / "python")
    assert of_training(ours.metrics) == of_training(by_hand.metrics)
    load_policy(by_hand.model_folder, device="cpu")


def test_a_second_run_at_another_beta_makes_no_reference_pass(small, tmp_path):
    list(carry_out(small, tmp_path / "one"))
    told = []
    other = replace(small, config=replace(small.config, beta=1.0, max_steps=1))
    events = carry_out(other, tmp_path / "two", progress=lambda *now: told.append(now))
    assert next(events).num_scored == 0
    assert not [what for what, _, total in told if "scoring" in what]
    assert isinstance(list(events)[-1], Finished)


def test_labels_are_flipped_on_purpose_by_the_seed_and_a_job_is_taken_alone():
    from dpo_lab.preferences import flip_labels, of_job

    rows = [{"chosen": f"good {i}", "rejected": f"bad {i}", "job": "ab"[i % 2]} for i in range(20)]
    noisy = flip_labels(rows, 0.25, seed=1)
    assert [row["chosen"].startswith("bad") for row in noisy].count(True) == 5
    assert all({row["chosen"], row["rejected"]} == {f"good {i}", f"bad {i}"} for i, row in enumerate(noisy))
    assert flip_labels(rows, 0.25, seed=1) == noisy != flip_labels(rows, 0.25, seed=2)
    assert flip_labels([{"label": True}], 1.0) == [{"label": False}]
    assert rows[0]["chosen"] == "good 0"
    assert len(of_job(rows, "a")) == 10
    with pytest.raises(ValueError, match="no row is of the job 'c'"):
        of_job(rows, "c")
    with pytest.raises(ValueError, match=r"flip is a share and must lie in \[0, 1\], got 2"):
        Recipe(flip=2)


def test_kl_and_length_are_measured_of_answers_at_temperature_1(small, tmp_path):
    list(carry_out(replace(small, sample_temperature=1.0), tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    steps, kl = run.series("eval_kl")
    assert steps.tolist() == [0, 3, 6, 9]
    assert abs(kl[0]) < 1e-4
    assert run.series("eval_answer_length")[1].max() <= 4
    assert not len(run.series("eval_well_formed")[0])  # nobody knows what these rows demand


def test_the_true_reward_is_measured_where_a_judge_knows(small, tmp_path):
    recipe = replace(small, config=replace(small.config, max_steps=2, evaluate_every=1))
    score = lambda row, answer: float(len(row["prompt"]))
    run_events = list(carry_out(recipe, tmp_path / "run", score=score))
    answers = [event for event in run_events if isinstance(event, Answers)]
    run = Run.load(tmp_path / "run")
    steps, values = run.series("eval_true_reward")
    assert steps.tolist() == [0, 1, 2]
    for event, value in zip(answers, values, strict=True):
        assert value == pytest.approx(sum(event.rewards) / len(event.rewards))
    assert run.samples[0]["reward_after"] == answers[-1].rewards[0]


def test_the_pocket_worlds_judge_scores_its_own_rows_and_no_others():
    from random import Random

    from dpo_lab.worlds.pocket import judge, sample_conversation, write_answer

    conversation = sample_conversation(Random(1))
    answer = write_answer(conversation, Random(2))
    assert true_reward(conversation.row(), answer) == judge(conversation, answer).reward
    assert true_reward({"prompt": "hello"}, "there") is None


# ── stopped, failed, killed ──────────────────────────────────────────────────────────────────────────────────────────


def test_stopped_in_the_middle_the_run_is_usable_and_can_be_gone_on_with(small, tmp_path, capsys):
    stop, events = threading.Event(), []
    for event in carry_out(small, tmp_path / "run", stop=stop):
        events.append(event)
        if isinstance(event, Step) and event.step == 4:
            stop.set()
    assert isinstance(events[-1], Finished)
    assert (events[-1].step, events[-1].is_complete) == (5, False)  # the step in hand is not thrown away
    assert any(isinstance(event, Checkpoint) for event in events)
    run = Run.load(tmp_path / "run")
    assert not run.summary()["is_complete"]
    assert [sample["after_step"] for sample in run.samples] == [3, 3]
    assert (tmp_path / "run" / "report.html").is_file()
    load_policy(run.model_folder, device="cpu")
    assert dpo_lab(capsys, "train", "--run", tmp_path / "run", "--resume", "--kl-prompts", 0).status == 0
    list(carry_out(small, tmp_path / "whole"))
    of_answers = {
        "eval_true_reward",
        "eval_answer_length",
        "eval_well_formed",
        "eval_kl",
    }  # a recipe's, not the command's
    metrics = [
        [{name: value for name, value in row.items() if name not in of_answers} for row in without_seconds(run.metrics)]
        for run in (Run.load(tmp_path / "run"), Run.load(tmp_path / "whole"))
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("phase", ["loading the model", "reading the pairs", "scoring the reference, pairs"])
def test_stopped_before_the_first_step_it_leaves_no_folder(small, tmp_path, phase):
    stop = threading.Event()

    def tell(what, done, total):
        if what == phase:
            stop.set()

    events = list(carry_out(small, tmp_path / "run", stop=stop, progress=tell, cache=tmp_path / "cache"))
    assert not [event for event in events if isinstance(event, Step | Finished)]
    assert not (tmp_path / "run").exists()


def test_stopped_while_it_answers_the_evaluation_is_kept(small, tmp_path):
    stop, seen = threading.Event(), []

    def tell(what, done, total):
        seen.append(what)
        if seen.count("answering prompts") == 2:
            stop.set()

    events = list(carry_out(small, tmp_path / "run", stop=stop, progress=tell))
    assert events[-1].is_complete is False
    run = Run.load(tmp_path / "run")
    assert run.series("eval_loss")[0].tolist() == [0, 3]
    assert run.samples[0]["after_step"] == 0


def test_a_long_evaluation_is_broken_off_and_the_weights_are_those_of_the_last_step(small, tmp_path, monkeypatch):
    """Stopped within the passes of an evaluation, where the loop does not ask."""
    from dpo_lab.objectives import base

    stop, calls = threading.Event(), []
    own = base.score

    def slow(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:  # the evaluation after step 3; before the first step none is needed
            stop.set()
        return own(*args, **kwargs)

    monkeypatch.setattr(base, "score", slow)
    events = list(carry_out(small, tmp_path / "run", stop=stop))
    assert (events[-1].step, events[-1].num_steps, events[-1].is_complete) == (3, 9, False)
    run = Run.load(tmp_path / "run")
    assert run.metrics[-1]["kind"] == "finished"
    load_policy(run.model_folder, device="cpu")


def test_a_long_step_is_broken_off_after_a_moment(small, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "GRACE", 0.0)
    recipe = replace(small, config=replace(small.config, micro_batch_size=1, batch_size=12))
    stop, events = threading.Event(), []
    for event in carry_out(recipe, tmp_path / "run", stop=stop):
        events.append(event)
        if isinstance(event, Step):
            stop.set()
    assert (events[-1].step, events[-1].is_complete) == (1, False)
    load_policy(Run.load(tmp_path / "run").model_folder, device="cpu")


def test_a_failure_is_raised_and_what_was_measured_is_kept(small, tmp_path):
    recipe = replace(small, config=replace(small.config, learning_rate=1000.0, max_grad_norm=None, epochs=5))
    with pytest.raises((TrainingDiverged, FloatingPointError)):
        list(carry_out(recipe, tmp_path / "run"))
    run = Run.load(tmp_path / "run")
    assert run.metrics
    assert (tmp_path / "run" / "report.html").is_file()
    assert not run.model_folder.exists()


def test_a_slip_in_the_sources_leaves_no_folder(small, tmp_path):
    with pytest.raises(ValueError, match="no model folder"):
        list(carry_out(replace(small, model="./nowhere"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="the loss orpo has no knob 'beta'"):
        carry_out(replace(small, config=DPOConfig(loss="orpo", beta=0.1)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_process_loses_nothing_that_was_told(small, tmp_path):
    """SIGKILL in the middle of a run: every step that was told stands in the record."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dpo_lab.config import DPOConfig
from dpo_lab.loop import Step
from dpo_lab.workbench.recipes import Recipe, carry_out
recipe = Recipe(model={small.model!r}, pairs={small.pairs!r}, samples=1, max_new_tokens=2,
                config=DPOConfig(batch_size=4, epochs=1000, device="cpu"))
for event in carry_out(recipe, {str(tmp_path / "run")!r}):
    if isinstance(event, Step):
        print(event.step, flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = 0
        while told < 5:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split())])
    run = Run.load(tmp_path / "run")
    steps = [row["step"] for row in run.metrics if row["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= told
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["epochs"] == 1000


def test_folders_are_numbered_and_never_given_twice(tmp_path):
    assert [next_folder(tmp_path / "runs").name for _ in range(2)] == ["run-01", "run-02"]
    (tmp_path / "runs" / "run-17").mkdir()
    (tmp_path / "runs" / "run-x").mkdir()
    found = []
    threads = [threading.Thread(target=lambda: found.append(next_folder(tmp_path / "runs"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in found) == ["run-18", "run-19", "run-20", "run-21"]


def test_planned_steps_are_those_of_the_training():
    assert planned_steps(DPOConfig(batch_size=32), 33) == 2
    assert planned_steps(DPOConfig(batch_size=32, epochs=0.5), 100) == 2
    assert planned_steps(DPOConfig(batch_size=32, epochs=3, max_steps=4), 100) == 4
    assert planned_steps(DPOConfig(batch_size=32, epochs=0.01), 10) == 1


def test_the_hook_is_gone_afterwards(small, tmp_path):
    from dpo_lab.sampling import generate
    from dpo_lab.workbench.recipes.session import Stopped, interruptible

    model, tokenizer = load_policy(small.model, device="cpu")
    stop = threading.Event()
    stop.set()
    began = time.perf_counter()
    with pytest.raises(Stopped), interruptible(model, stop):
        generate(model, tokenizer, ["the cat"], max_new_tokens=2)
    assert time.perf_counter() - began < 2
    assert generate(model, tokenizer, ["the cat"], max_new_tokens=2)
