"""`dpo-lab rounds`: what it leaves, its judges, going on, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_lab import Run, load_policy, load_preferences
from dpo_lab.reference import fingerprint
from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.cli.options import RoundsOptions
from dpo_lab.workbench.rounds.endpoint import KEY_VARIABLE
from tests.chat_server import Chat, chat_server
from tests.command_line import chat_model, dpo_lab, some_rows, without_seconds, write_rows

SHORT = ("--rounds", "2", "--prompts", "6", "--answers", "3", "--steps", "2", "--max-new-tokens", "6", "--device",
         "cpu", "--held-prompts", "4", "--learning-rate", "1e-3")  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("inputs")
    model, pairs = chat_model(folder / "model"), write_rows(folder / "pairs.jsonl", some_rows())
    return ["--model", str(model), "--pairs", str(pairs), *SHORT]


@pytest.fixture
def own_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Functions in a module of the working folder."""
    (tmp_path / "ours_of_rounds.py").write_text(
        "def short(prompts, answers):\n    return [-len(answer.text) for answer in answers]\n\n"
        "def longer(prompt, first, second):\n    return float(len(first) > len(second))\n\n"
        "def broken(prompts, answers):\n    raise RuntimeError('the judge is out to lunch')\n"
    )
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("ours_of_rounds", None)


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in Run.load(folder).metrics if row["kind"] == kind]


def test_a_run_of_rounds_and_what_it_leaves(inputs, own_judges, tmp_path, capsys):
    done = dpo_lab(capsys, "rounds", *inputs, "--judge", "ours_of_rounds:short", "--run", tmp_path / "run")
    assert done.status == 0, done.err
    assert "data: 20 prompts to learn from, 4 held out" in done.out
    assert "round 1/2: reward" in done.out
    assert "mean score" in done.out
    assert "KL from the reference, in nats" in done.out
    run = Run.load(tmp_path / "run")
    assert run.summary()["is_complete"]
    assert [row["round"] for row in rows_of(run.folder, "round")] == [1, 2]
    assert len(rows_of(run.folder, "evaluation")) == 2
    held = {json.loads(line)["prompt"] for line in Path(inputs[3]).read_text().splitlines()[:4]}
    for number in ("0001", "0002"):
        pairs = load_preferences(run.folder / "rounds" / number / "pairs.jsonl")
        assert len(pairs)
        assert not {row["prompt"] for row in pairs} & held
    assert (run.folder / "report.html").is_file()
    assert "preference tuning in rounds" in (run.model_folder / "README.md").read_text()
    model, _ = load_policy(run.model_folder, device="cpu")
    assert fingerprint(model) != fingerprint(load_policy(inputs[1], device="cpu")[0])


def test_a_judge_of_two_answers_and_an_adapter(inputs, own_judges, tmp_path, capsys):
    done = dpo_lab(
        capsys, "rounds", *inputs, "--judge", "ours_of_rounds:longer", "--run", tmp_path / "run", "--lora", "4"
    )
    assert done.status == 0, done.err
    assert rows_of(tmp_path / "run", "round")[0]["judge/comparisons"] > 0
    assert (tmp_path / "run" / "adapter").is_dir()


def test_an_endpoint_that_fails_stops_the_run_and_resume_goes_on(inputs, tmp_path, capsys, monkeypatch):
    key = "sk-secret-of-the-test"
    monkeypatch.setenv(KEY_VARIABLE, key)
    monkeypatch.setattr("dpo_lab.workbench.rounds.endpoint.LONGEST_PAUSE", 0.01)
    chat = Chat()
    with chat_server(chat) as url:
        judge = ("--judge", url, "--judge-model", "small")
        calm = dpo_lab(capsys, "rounds", *inputs, *judge, "--run", tmp_path / "calm")
        assert calm.status == 0, calm.err
        num = len(set(chat.sent))
        chat.sent.clear()
        chat.trouble = lambda before: 500 if chat.num_sent > num * 2 // 3 else None  # in the second round
        broken = dpo_lab(capsys, "rounds", *inputs, *judge, "--run", tmp_path / "run")
        assert broken.status == 2
        assert "no verdict is lost" in broken.err
        assert f"go on with: dpo-lab rounds --run {tmp_path / 'run'} --resume" in broken.err
        chat.trouble = lambda before: None
        done = dpo_lab(capsys, "rounds", "--run", tmp_path / "run", "--resume")
        assert done.status == 0, done.err
        assert "going on after step 2" in done.out
    own = lambda folder: [{name: value for name, value in row.items() if name not in ("judge/cached", "judge/calls")}
                          for row in without_seconds(Run.load(folder).metrics)]  # fmt: skip
    assert own(tmp_path / "run") == own(tmp_path / "calm")
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (
        tmp_path / "calm/model/model.safetensors"
    ).read_bytes()
    assert sum(row["judge/cached"] for row in rows_of(tmp_path / "run", "round")) > 0
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(key.encode() in data for data in files)
    assert key not in calm.out + calm.err + broken.err + broken.out + done.out + done.err


def test_ctrl_c_ends_the_run_with_the_round_and_it_goes_on(inputs, own_judges, tmp_path, capsys):
    (tmp_path / "interrupting.py").write_text(
        "import os, signal\nfrom ours_of_rounds import short\n\ncalls = []\n\n\ndef judge(prompts, answers):\n"
        "    calls.append(1)\n    if len(calls) == 2:  # the first is of the held-out prompts\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n    return short(prompts, answers)\n"
    )
    run = ("--judge", "interrupting:judge", "--run", tmp_path / "run")
    stopped = dpo_lab(capsys, "rounds", *inputs, *run)
    assert stopped.status == 130, stopped.err
    assert "stopping after this round; Ctrl-C again stops at once" in stopped.err
    assert "stopped after step 2 of 4" in stopped.out
    done = dpo_lab(capsys, "rounds", "--run", tmp_path / "run", "--resume")
    assert done.status == 0, done.err
    calm = dpo_lab(capsys, "rounds", *inputs, "--judge", "ours_of_rounds:short", "--run", tmp_path / "calm")
    assert calm.status == 0
    own = lambda name: without_seconds(Run.load(tmp_path / name).metrics)
    assert own("run") == own("calm")


def test_the_policy_as_its_own_judge(inputs, tmp_path, capsys):
    other = chat_model(tmp_path / "other", seed=3)
    done = dpo_lab(capsys, "rounds", *inputs, "--judge", "implicit", "--reference", other, "--run", tmp_path / "run",
                   "--length-price", "0.01")  # fmt: skip
    assert done.status == 0, done.err
    assert all(row["pairs"] for row in rows_of(tmp_path / "run", "round"))
    assert rows_of(tmp_path / "run", "round")[0]["kl"] > 1  # from the reference that was given


def test_tasks_of_the_world_of_instructions(inputs, tmp_path, capsys):
    done = dpo_lab(capsys, "rounds", *inputs, "--tasks", "8", "--run", tmp_path / "run")
    assert done.status == 0, done.err
    assert "data: 8 prompts to learn from, 4 held out" in done.out
    assert rows_of(tmp_path / "run", "evaluation")[0]["eval_reward"] == -1  # of random words none is an answer


def test_a_slip_leaves_no_folder(inputs, own_judges, tmp_path, capsys):
    for judge, words in (
        ("ours_of_rounds:nobody", "ours_of_rounds has no function 'nobody'"),
        ("mine", "judge 'mine' is not known; take true, implicit"),
        ("true", "the true reward needs rows of the pocket world"),
    ):
        failed = dpo_lab(capsys, "rounds", *inputs, "--judge", judge, "--run", tmp_path / "run")
        assert failed.status == 2
        assert words in failed.message
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--judge", "implicit"], "--judge implicit needs --reference"),
        (["--judge", "http://127.0.0.1:1/v1"], "--judge-model names the model of an endpoint"),
        (["--judge-model", "small"], "--judge-model names the model of an endpoint"),
        (["--length-price", "1"], "--length-price 1.0 is for --judge implicit"),
        (["--held-prompts", "-1"], "--held-prompts must not be negative, got -1"),
        (["--lora-alpha", "8"], "lora_alpha is 8.0 without an adapter"),
        (["--answers", "1"], "answers must be at least 2, got 1"),
        (["--max-steps", "3"], "--max-steps"),
    ],
)
def test_a_wrong_option_is_refused_with_a_remedy(options, words, capsys):
    failed = dpo_lab(capsys, "rounds", *options)
    assert failed.status == 2
    assert words in failed.message


def test_every_setting_of_rounds_is_an_option():
    options = parse(["rounds", "--sampler", "step", "--pair-by", "bradley_terry", "--replay", "0.2", "--margin", "0.5",
                     "--reference-follows", "--temperature", "0.7", "--loss", "ipo"])  # fmt: skip
    assert isinstance(options, RoundsOptions)
    assert (options.sampler, options.pair_by, options.loss) == ("step", "bradley_terry", "ipo")
