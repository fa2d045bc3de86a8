"""`dpo-lab sweep`: what it tells, joining a study, refusals, a kill in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.cli.options import SweepOptions
from dpo_lab.workbench.sweeps import SEARCHED, StoredStudy
from tests.command_line import chat_model, dpo_lab, dpo_lab_process, some_rows, write_rows
from tests.conftest import ROOT

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    model, pairs = chat_model(folder / "model"), write_rows(folder / "pairs.jsonl", some_rows())
    return ["--model", str(model), "--pairs", str(pairs), "--device", "cpu", "--batch-size", "6",
            "--validation", "0.25", "--evaluations", "1"]  # fmt: skip


def test_every_knob_of_a_sweep_is_an_option_with_the_name_of_the_training_option():
    options = parse(["sweep", *(part for name in SEARCHED for part in (f"--{name.replace('_', '-')}", "1,2"))])
    assert isinstance(options, SweepOptions)
    assert {getattr(options, name) for name in SEARCHED} == {"1,2"}


def test_a_sweep_tells_its_trials_and_how_to_train_with_the_best(inputs, tmp_path, capsys):
    told = dpo_lab(capsys, "sweep", *inputs, "--beta", "0.05:1:log", "--loss", "dpo,ipo", "--trials", "2",
                   "--study", tmp_path / "study")  # fmt: skip
    assert told.status == 0
    assert "18 pairs to train on, 6 to compare trials on; reference: 24 scored, 0 found in the cache" in told.out
    assert "searching loss dpo,ipo, beta 0.05:1:log, by validation pairs ranked right" in told.out
    rows = StoredStudy.load(tmp_path / "study").rows()
    assert len(rows) == 2
    best = max(rows, key=lambda row: row["value"])
    line = next(line for line in told.out.splitlines() if line.startswith("best, on all of these pairs: "))
    assert f"--beta {best['beta']:.4g} " in line
    assert ("--loss ipo" in line) == (best["loss"] == "ipo")
    train = line.removeprefix("best, on all of these pairs: dpo-lab ").split()
    done = dpo_lab(capsys, *train, "--run", tmp_path / "run", "--max-steps", "1", "--samples", "0", "--kl-prompts", "0")
    assert done.status == 0, done.err


def test_the_study_alone_joins_it_and_its_runs_compare(inputs, tmp_path, capsys):
    dpo_lab(capsys, "sweep", *inputs, "--beta", "0.05:1:log", "--trials", "1", "--study", tmp_path / "study")
    told = dpo_lab(capsys, "sweep", "--study", tmp_path / "study", "--trials", "2", "--device", "cpu")
    assert told.status == 0
    assert "joining study" in told.out
    assert "reference: 0 scored, 24 found" in told.out
    assert len(StoredStudy.load(tmp_path / "study").rows()) == 2
    compared = dpo_lab(capsys, "compare", tmp_path / "study" / "trials")
    assert compared.status == 0
    assert re.search(r"beta +[\d.]+ +[\d.]+", compared.out)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (
            ["--beta", "0:1:log"],
            "beta can't begin at 0 on a log scale, got '0:1:log'; begin above 0, or leave out :log",
        ),
        (["--beta", "0.5"], "a sweep needs a knob to turn, got beta 0.5"),
        (["--loss", "dpo,orpo", "--beta", "0.1:1"], "orpo has no knob 'beta'"),
        (["--beta", "0.1:1", "--sampler", "grid"], "a grid needs listed values, got beta 0.1:1"),
    ],
)
def test_a_wrong_space_is_one_message_and_leaves_nothing(options, rule, tmp_path, capsys):
    told = dpo_lab(capsys, "sweep", *options, "--study", tmp_path / "study")
    assert told.status == 2
    assert rule in told.message
    assert not (tmp_path / "study").exists()


def test_without_optuna_the_remedy_is_named(inputs, tmp_path):
    told = dpo_lab_process("sweep", *inputs, "--beta", "0.1:1", "--study", tmp_path / "study",
                           before="sys.modules['optuna'] = None")  # fmt: skip
    assert told.status == 2
    assert "pip install 'dpo-lab[sweep]'" in told.message


def test_the_help_is_there_without_torch_and_optuna():
    told = dpo_lab_process("sweep", "--help", before="import atexit; atexit.register(lambda: print([m for m in "
                           "('torch', 'optuna', 'transformers') if m in sys.modules], file=sys.stderr))")  # fmt: skip
    assert told.status == 0
    assert told.err.strip() == "[]"
    assert "Price of drifting from the reference, as 0.05:1:log" in " ".join(told.out.split())


@pytest.mark.slow
def test_killed_in_the_middle_of_a_trial_it_goes_on(inputs, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "dpo_lab", "sweep", *inputs, "--beta", "0.05:1:log",
               "--trials", "3", "--epochs", "60", "--study", str(tmp_path / "study")]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)
    metrics = tmp_path / "study" / "trials" / "0000" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 500) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    told = dpo_lab_process("sweep", "--study", tmp_path / "study", cwd=tmp_path)
    assert told.status == 0, told.err
    rows = StoredStudy.load(tmp_path / "study").rows()
    assert [row["state"] for row in rows] == ["failed", "complete", "complete", "complete"]
    assert rows[0]["beta"] == rows[1]["beta"]
