"""Sweeps: the space as it is written, a study that processes share and survive, trials that end early, one cache."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dpo_lab.storage.locks import is_held, locked
from dpo_lab.workbench.sweeps import (
    Choice,
    Range,
    StoredStudy,
    SweepSettings,
    best_row,
    parse_space,
    run_sweep,
    train_line,
)
from dpo_lab.workbench.sweeps.settings import is_logarithmic
from tests.command_line import chat_model, some_rows, write_rows
from tests.conftest import ROOT

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """A tiny model and 24 pairs, as settings of a sweep."""
    folder = tmp_path_factory.mktemp("given")
    return {"model": str(chat_model(folder / "model")), "pairs": str(write_rows(folder / "pairs.jsonl", some_rows()))}


def settings(given, **changes) -> SweepSettings:
    """A quick sweep over β."""
    quick = {
        "batch_size": "6",
        "validation": 0.25,
        "device": "cpu",
        "evaluations": 2,
        "trials": 3,
        "beta": "0.05:1:log",
    }
    return SweepSettings(**given, **quick | changes)


def events_of(asked: SweepSettings, folder: Path, **options) -> list:
    return list(run_sweep(asked, folder, cache=folder.parent / "cache", **options))


def named(events: list, kind: str) -> list:
    return [event for event in events if type(event).__name__ == kind]


# ── the space ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_knob_is_a_value_a_list_or_a_range():
    space = parse_space({"beta": "0.05:1:log", "warmup": "0:0.3", "batch_size": "8:32", "loss": "dpo, ipo",
                         "max_grad_norm": "none,1", "epochs": "2"})  # fmt: skip
    assert space.searched == {
        "beta": Range(0.05, 1.0, is_log=True), "warmup": Range(0.0, 0.3), "batch_size": Range(8, 32, is_whole=True),
        "loss": Choice(("dpo", "ipo")), "max_grad_norm": Choice((None, 1.0)),
    }  # fmt: skip
    assert space.fixed == {"epochs": 2.0}


@pytest.mark.parametrize("text", ["0.05:1:log", "0.1,0.5", "0:0.3"])
def test_a_dimension_reads_as_it_is_written(text):
    (name,) = {"0:0.3": ["warmup"]}.get(text, ["beta"])
    (dimension,) = parse_space({name: text}).searched.values()
    assert str(dimension) == text


@pytest.mark.parametrize(
    ("texts", "rule"),
    [
        ({"beta": "1:0.1"}, "low below high"),
        ({"beta": "0.1:0.1"}, "low below high"),
        ({"beta": "0:1:log"}, "can't begin at 0 on a log scale"),
        ({"beta": "-1:1"}, r"the space beta -1:1 reaches too far: beta must be positive and finite, got -1.0"),
        ({"beta": "0.1:inf"}, "both finite"),
        ({"beta": "0.1:1:lin"}, "low:high or low:high:log"),
        ({"beta": "0.1:1:log:5"}, "low:high or low:high:log"),
        ({"beta": "some"}, "must be a number, got 'some'"),
        ({"beta": ""}, "must be a number"),
        ({"beta": "0.1,,0.5"}, "must be a number, got ''"),
        ({"beta": "0.1,0.1"}, "lists a value twice"),
        ({"beta": "0.5"}, "needs a knob to turn"),
        ({}, "needs a knob to turn"),
        ({"batch_size": "8.5,16"}, "must be a whole number, got '8.5'"),
        ({"loss": "dpo,nonsense"}, "loss is not known, got 'nonsense'"),
        ({"loss": "dpo:ipo"}, "names and no numbers"),
        ({"label_smoothing": "0:0.5"}, "reaches too far: label_smoothing must lie in"),
        ({"momentum": "0:1"}, "no knob that a sweep turns; choose among loss, beta"),
        ({"schedule": "none,linear"}, "schedule is not known, got 'none'"),
    ],
)
def test_a_space_that_cannot_be_is_refused_with_value_and_rule(texts, rule):
    with pytest.raises(ValueError, match=rule):
        parse_space(texts)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"objective": "happiness"}, "choose one of accuracy, loss, reward, success"),
        ({"objective": "loss", "loss": "dpo,ipo"}, "can't compare trials that differ in loss"),
        ({"sampler": "grid"}, "a grid needs listed values, got beta 0.05:1:log"),
        ({"sampler": "divine"}, "choose one of tpe, random, grid"),
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"validation": 0.0}, "must lie between 0 and 1, got 0.0"),
        ({"loss": "dpo,orpo"}, "orpo has no knob 'beta'"),
        ({"label_smoothing": "0:0.2"}, "dpo has no knob 'label_smoothing'"),
        ({"loss": "exo_pair", "label_smoothing": "0,0.1"}, r"must lie in \(0, 0.5\)"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_read(changes, rule, tmp_path):
    with pytest.raises(ValueError, match=rule):
        run_sweep(settings({"model": "nowhere", "pairs": "nowhere"}, **changes), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_loss_compares_across_beta_since_it_is_a_likelihood_at_every_beta(given):
    settings(given, objective="loss").check()


def test_a_grid_is_every_combination_once(given):
    asked = settings(given, sampler="grid", beta="0.1,0.5", loss="dpo,ipo,hinge", trials=None)
    space = asked.check()
    assert sorted(tuple(cell.values()) for cell in space.grid()) == sorted(
        itertools.product(("dpo", "ipo", "hinge"), (0.1, 0.5))
    )
    assert asked.num_trials(space) == 6
    assert replace(asked, trials=4).num_trials(space) == 4
    assert replace(asked, trials=40).num_trials(space) == 6


def test_axes_are_logarithmic_where_factors_are_meant():
    space = parse_space({"beta": "0.05,0.2,1", "warmup": "0,0.1", "learning_rate": "1e-4:1e-3:log", "loss": "dpo,ipo"})
    assert {name for name in space.searched if is_logarithmic(space, name)} == {"beta", "learning_rate"}


def test_the_line_that_trains_with_the_best_values_says_what_differs_from_the_defaults():
    asked = SweepSettings(beta="0.1:1", pairs="my pairs.jsonl", limit=100)
    line = train_line({"beta": 0.3, "epochs": 1.0, "max_grad_norm": None}, asked)
    assert line == "dpo-lab train --beta 0.3 --max-grad-norm None --pairs 'my pairs.jsonl' --limit 100"


# ── locks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_is_held_by_one_and_freed_by_death(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    code = ("import sys, time; from pathlib import Path; from dpo_lab.storage.locks import locked\n"
            "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)")  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert is_held(path)
    with pytest.raises(OSError, match="held by another process"), locked(path, patience=0.0):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    assert not is_held(path)
    with locked(path, patience=0.0):
        assert is_held(path)
    assert not is_held(path)


# ── one process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_trial_leaves_a_run_and_the_reference_is_scored_once(given, tmp_path):
    from dpo_lab import ReferenceCache, Run

    events = events_of(settings(given, prune=False), tmp_path / "study")
    (prepared,), (ended,) = named(events, "Prepared"), named(events, "SweepEnded")
    assert (prepared.num_pairs, prepared.num_validation, prepared.num_scored) == (18, 6, 24)
    assert [row["state"] for row in ended.rows] == ["complete"] * 3
    for row in ended.rows:
        run = Run.load(tmp_path / "study" / "trials" / f"{row['trial']:04d}")
        assert run.config["settings"]["beta"] == row["beta"]
        last = [line for line in run.metrics if line["kind"] == "evaluation"][-1]
        assert row["value"] == pytest.approx(last["eval_rewards/accuracies"])
        assert run.summary()["is_complete"]
    with ReferenceCache(tmp_path / "cache") as cache:
        assert len(cache) == 24  # no trial added a pair
    assert ended.best == best_row(ended.rows, is_larger_better=True)
    (again,) = named(events_of(settings(given, prune=False, trials=4), tmp_path / "study"), "Prepared")
    assert again.num_scored == 0


def test_interrupted_and_resumed_it_tries_what_the_uninterrupted_one_tries(given, tmp_path):
    asked = settings(given, trials=4, learning_rate="1e-4:1e-2:log", prune=False, evaluations=1)
    whole = events_of(asked, tmp_path / "whole")[-1].rows
    for trials in (1, 3, 4):
        events_of(replace(asked, trials=trials), tmp_path / "parts")
    parts = StoredStudy.load(tmp_path / "parts").rows()
    told = lambda rows: [(row["beta"], row["learning_rate"], row["value"]) for row in rows]
    assert told(parts) == told(whole)
    assert len({row["beta"] for row in whole}) == 4


def test_another_seed_searches_elsewhere(given, tmp_path):
    betas = []
    for seed in (0, 1):
        study = StoredStudy.begin(tmp_path / str(seed), settings(given, seed=seed))
        with study.worker():
            trial = study.take()
            assert trial is not None
            betas.append(trial.values["beta"])
            trial.end("complete", 0.5)
    assert betas[0] != betas[1]


def test_a_stopped_trial_is_given_back_and_tried_again_with_the_same_values(given, tmp_path):
    asked = settings(given, trials=2)
    seen = []
    stop = lambda: any(type(event).__name__ == "TrialStep" for event in seen)
    for event in run_sweep(asked, tmp_path / "study", cache=tmp_path / "cache", stop=stop):
        seen.append(event)
    assert not seen[-1].is_complete
    assert [(row["state"], row["why"]) for row in seen[-1].rows] == [("failed", "stopped"), ("waiting", "")]
    rows = events_of(asked, tmp_path / "study")[-1].rows
    assert [row["state"] for row in rows] == ["failed", "complete", "complete"]
    assert rows[0]["beta"] == rows[1]["beta"]


def test_a_stream_that_is_dropped_gives_its_trial_back(given, tmp_path):
    stream = run_sweep(settings(given), tmp_path / "study", cache=tmp_path / "cache")
    for event in stream:
        if type(event).__name__ == "TrialStep":
            break
    stream.close()
    assert [row["state"] for row in StoredStudy.load(tmp_path / "study").rows()] == ["failed", "waiting"]


def test_other_settings_are_refused_and_none_join(given, tmp_path):
    asked = settings(given, trials=1)
    events_of(asked, tmp_path / "study")
    with pytest.raises(ValueError, match=r"beta is '0.1:0.9', but the sweep in .* was begun with '0.05:1:log'"):
        run_sweep(replace(asked, beta="0.1:0.9"), tmp_path / "study")
    rows = events_of(SweepSettings(trials=2), tmp_path / "study")[-1].rows
    assert len(rows) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="not empty and holds no sweep"):
        run_sweep(asked, tmp_path / "other")
    with pytest.raises(ValueError, match="holds no sweep"):
        StoredStudy.load(tmp_path)


def test_a_grid_tries_each_cell_once_and_goes_on_where_it_was(given, tmp_path):
    asked = settings(given, sampler="grid", beta="0.1,0.5", loss="dpo,ipo", trials=None, prune=False, evaluations=1)
    rows = events_of(replace(asked, trials=3), tmp_path / "study")[-1].rows
    assert [row["state"] for row in rows] == ["complete"] * 3 + ["waiting"]
    rows = events_of(replace(asked, trials=4), tmp_path / "study")[-1].rows
    assert sorted((row["loss"], row["beta"]) for row in rows) == sorted(itertools.product(("dpo", "ipo"), (0.1, 0.5)))
    assert {row["state"] for row in rows} == {"complete"}


def test_values_that_diverge_end_their_trial_and_not_the_sweep(given, tmp_path):
    asked = settings(given, beta="0.1", learning_rate="1e-3,1e8", optimizer="sgd", max_grad_norm="none", sampler="grid",
                     trials=None, evaluations=1, loss="sppo_hard")  # fmt: skip
    rows = events_of(asked, tmp_path / "study")[-1].rows
    by_rate = {row["learning_rate"]: row for row in rows}
    assert by_rate[1e-3]["state"] == "complete"
    assert by_rate[1e8]["state"] == "pruned"
    assert "diverged" in by_rate[1e8]["why"]


def test_an_error_ends_the_sweep_and_is_told_in_the_trial(given, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr("dpo_lab.workbench.sweeps.sweep.train_dpo", broken)
    with pytest.raises(OSError, match="the disk is full"):
        events_of(settings(given), tmp_path / "study")
    (row,) = StoredStudy.load(tmp_path / "study").rows()
    assert (row["state"], row["why"]) == ("failed", "OSError: the disk is full")


def test_the_median_pruner_stops_a_bad_trial_early(given, tmp_path, monkeypatch):
    """Accuracies are made up, so that it is known which trial is bad: five good ones, then one far below."""

    def made_up(study, event, *_):
        is_bad = len(study.rows()) == 6
        return (0.1 if is_bad else 0.9) + event.step / 1000

    monkeypatch.setattr("dpo_lab.workbench.sweeps.sweep._measure", made_up)
    asked = settings(given, trials=6, evaluations=3, batch_size="2", sampler="random")
    events = events_of(asked, tmp_path / "study")
    rows = events[-1].rows
    assert [row["state"] for row in rows] == ["complete"] * 5 + ["pruned"]
    assert list(rows[5]["looks"]) == [1]
    assert list(rows[4]["looks"]) == [1, 2, 3]
    steps = {number: sum(event.number == number for event in named(events, "TrialStep")) for number in (4, 5)}
    assert steps[5] < steps[4] == 9
    kept = events_of(replace(asked, prune=False), tmp_path / "unpruned")
    assert [row["state"] for row in kept[-1].rows] == ["complete"] * 6


def test_the_true_reward_needs_the_judge(given, tmp_path):
    with pytest.raises(ValueError, match="prompts that the judge knows"):
        events_of(settings(given, objective="reward"), tmp_path / "study")


@pytest.mark.slow
def test_by_true_reward_on_the_embedded_pairs(tmp_path):
    asked = SweepSettings(beta="0.1,0.5", sampler="grid", objective="reward", limit=80, judged_prompts=8, evaluations=1,
                          max_new_tokens=40, device="cpu")  # fmt: skip
    rows = events_of(asked, tmp_path / "study")[-1].rows
    assert {row["state"] for row in rows} == {"complete"}
    assert all(math.isfinite(row["value"]) for row in rows)


def test_importance_points_to_the_knob_that_decides(given, tmp_path):
    study = StoredStudy.begin(tmp_path / "study", settings(given, warmup="0:0.5", trials=30, sampler="random"))
    assert study.importances() == {}
    with study.worker():
        while (trial := study.take()) is not None:
            trial.end("complete", -abs(math.log(trial.values["beta"] / 0.2)))
    importance = study.importances()
    assert sum(importance.values()) == pytest.approx(1)
    assert importance["beta"] > 0.7


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────────

WORK = """
import sys, time
from pathlib import Path
from dpo_lab.workbench.sweeps.study import StoredStudy
study = StoredStudy.load(Path(sys.argv[1]))
with study.worker():
    while (trial := study.take()) is not None:
        print(trial.number, flush=True)
        trial.report(1, trial.values["beta"])
        time.sleep(float(sys.argv[2]))
        trial.end("complete", trial.values["beta"])
"""


def worker(folder: Path, seconds: float) -> subprocess.Popen:
    """A process that takes trials without training anything, `seconds` each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", WORK, str(folder), str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_study_and_take_every_trial_once(given, tmp_path):
    StoredStudy.begin(tmp_path / "study", settings(given, trials=10))
    processes = [worker(tmp_path / "study", 0.05) for _ in range(2)]
    taken = [list(map(int, process.communicate(timeout=120)[0].split())) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(taken[0] + taken[1]) == list(range(10))
    rows = StoredStudy.load(tmp_path / "study").rows()
    assert [row["state"] for row in rows] == ["complete"] * 10
    assert all(row["value"] == row["beta"] for row in rows)
    assert not list((tmp_path / "study" / "locks").glob("worker-*"))


def test_a_killed_process_loses_its_trial_to_the_next_and_the_study_goes_on(given, tmp_path):
    study = StoredStudy.begin(tmp_path / "study", settings(given, trials=3))
    killed = worker(tmp_path / "study", 60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "0\n"
    deadline = time.monotonic() + 30
    while not study.rows()[0]["looks"] and time.monotonic() < deadline:
        time.sleep(0.05)
    with study.worker():
        living = study.take()  # the other process is alive: its trial stays its own
        assert living is not None
        assert [row["state"] for row in study.rows()] == ["running", "running"]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        living.end("complete", 0.5)
        again = study.take()
        assert again is not None
        rows = study.rows()
        assert (rows[0]["state"], rows[0]["why"]) == ("failed", "its process ended in the middle")
        assert again.values["beta"] == rows[0]["beta"]
        again.end("complete", 0.6)
        last = study.take()
        assert last is not None
        last.end("complete", 0.7)
        assert study.take() is None  # three that count; the one that was lost does not
    assert [row["state"] for row in study.rows()] == ["failed", "complete", "complete", "complete"]


def test_values_that_kill_their_process_twice_are_not_tried_a_third_time(given, tmp_path):
    study = StoredStudy.begin(tmp_path / "study", settings(given, trials=2))
    for _ in range(2):
        with study.worker():
            assert study.take() is not None  # and the process ends without a word
    with study.worker():
        third = study.take()
        assert third is not None
        rows = study.rows()
        assert rows[0]["beta"] == rows[1]["beta"] != third.values["beta"]
        assert rows[1]["why"] == "its process ended in the middle, for the second time"
        third.end("complete", 0.5)
        assert study.take() is None
