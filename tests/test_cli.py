"""Every command of `dpo-lab` from end to end: what it prints, what it leaves, how it stops and goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpo_lab.models.inside import bfloat16_gain
from dpo_lab.workbench.cli import inputs as cli_inputs
from dpo_lab.workbench.cli import parse, progress
from dpo_lab.workbench.cli.options import COMMANDS, LabOptions
from dpo_lab.workbench.runs import Run
from tests.command_line import (
    QUICK,
    chat_model,
    dpo_lab,
    dpo_lab_process,
    some_rows,
    without_seconds,
    write_rows,
)
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model and pairs for it, as arguments."""
    folder = tmp_path_factory.mktemp("inputs")
    return "--model", chat_model(folder / "model"), "--pairs", write_rows(folder / "pairs.jsonl", some_rows())


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path):
    """Call `dpo-lab` in an empty folder, at 80 columns and on one thread."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *arguments: dpo_lab(capsys, *arguments)
    torch.set_num_threads(threads)


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_within_a_second_and_loads_no_torch(command):
    spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    code = (
        "import sys\nfrom dpo_lab.workbench.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'datasets') if m in sys.modules], file=sys.stderr)"
    )
    before = spent()
    done = subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True)
    assert spent() - before < 1, "seconds of processor time"
    assert done.stderr.strip() == "[]"
    assert done.stdout.startswith("usage: dpo-lab")
    expected = list(COMMANDS) if not command else [(COMMANDS[command].__doc__ or "").split()[0]]
    assert all(word in done.stdout for word in expected)


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dpo_lab", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: dpo-lab")


# ── train ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_folder_holds_what_the_contract_says_and_the_output_what_happened(tell, inputs, tmp_path):
    seen = tell("train", *inputs, *QUICK, "--epochs", 1, "--run", "runs/one")
    assert (seen.status, seen.err) == (0, "")
    run = Run.load(tmp_path / "runs" / "one")
    assert {path.name for path in run.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "margins.jsonl", "samples.jsonl", "curves.png", "report.html", "checkpoints",
        "model", ".lock",
    }  # fmt: skip
    rows = run.metrics
    assert [row["kind"] for row in rows] == ["evaluation", *["step"] * 6, "evaluation", "finished", "result"]
    assert rows[0]["eval_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert rows[1]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.config["settings"]["batch_size"] == 4
    assert [set(row) >= {"prompt", "before", "after", "chosen", "rejected"} for row in run.samples] == [True]
    for line in (
        "pairs.jsonl: 24 rows read, 24 kept",
        "data: 22 rows to train on, 2 held out",
        "reference: 24 pairs scored, 0 found in the cache",
        "held-out after step 0: loss 0.6931  accuracy 0.500  margin +0.000",
        "step 1/6  loss 0.6931",
        "step 6/6",
        "KL from the reference: ",
        "report: runs/one/report.html",
        "model:  runs/one/model",
    ):
        assert line in seen.out
    assert "\x1b" not in seen.out, "no colours or cursor movements in a file"


def test_the_model_of_a_run_loads_in_plain_transformers_with_the_same_log_probs(tell, inputs, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dpo_lab.logprobs import score
    from dpo_lab.preferences import tokenize_pairs

    tell("train", *inputs, *QUICK, "--epochs", 1, "--run", "run")
    run = Run.load(tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(run.model_folder)
    tokenizer = AutoTokenizer.from_pretrained(run.model_folder)
    _, held = read_split(inputs)
    data, _ = tokenize_pairs(held, tokenizer)
    by_hand = torch.zeros(len(data), 2)
    for i in range(len(data)):
        row = data.row(i)
        for k, completion in enumerate(row.completions):
            ids = torch.tensor([*row.prompt, *completion])[None]
            with torch.no_grad():
                logps = plain(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
            by_hand[i, k] = logps[len(row.prompt) - 1 :].sum()
    assert torch.allclose(torch.from_numpy(score(plain, data)), by_hand, atol=1e-4)
    recorded = [row for row in run.metrics if row["kind"] == "evaluation"][-1]
    assert by_hand.mean(0).tolist() == pytest.approx(
        [recorded["eval_logps/chosen"], recorded["eval_logps/rejected"]], abs=1e-3
    )


def read_split(inputs):
    from dpo_lab.preferences import read_preferences, split_rows

    return split_rows(read_preferences(inputs[3])[0], 0.1, 0)


def test_another_beta_runs_the_reference_on_nothing(tell, inputs, monkeypatch):
    import dpo_lab.reference

    calls, score = [], dpo_lab.logprobs.score
    monkeypatch.setattr(dpo_lab.reference, "score", lambda *args, **kw: calls.append(1) or score(*args, **kw))
    options = ("--max-steps", 1, "--samples", 0, "--kl-prompts", 0)
    assert "reference: 24 pairs scored" in tell("train", *inputs, *options, "--run", "a").out
    assert len(calls) == 2  # what is trained on, and what is held out
    seen = tell("train", *inputs, *options, "--beta", 0.5, "--learning-rate", 1e-3, "--loss", "ipo", "--run", "b")
    assert seen.status == 0
    assert len(calls) == 2
    assert "reference: all 24 pairs found in the cache, none scored" in seen.out


def test_cache_fills_what_train_then_finds(tell, inputs):
    seen = tell("cache", *inputs, "--cache", "here")
    assert "24 pairs computed, 0 found" in seen.out
    assert "saved in here" in seen.out
    assert "0 pairs computed, 24 found" in tell("cache", *inputs, "--cache", "here").out
    seen = tell("train", *inputs, *QUICK, "--max-steps", 1, "--cache", "here", "--run", "r")
    assert "reference: all 24 pairs found in the cache, none scored" in seen.out


def test_a_loss_without_reference_scores_none(tell, inputs):
    seen = tell("train", *inputs, *QUICK, "--max-steps", 1, "--loss", "simpo", "--knobs", "gamma", 1, "--run", "r")
    assert seen.status == 0
    assert "reference" not in seen.out


def test_held_out_data_of_its_own_and_none(tell, inputs, tmp_path):
    other = write_rows(tmp_path / "other.jsonl", some_rows(5))
    seen = tell("train", *inputs, *QUICK, "--max-steps", 1, "--held-out", other, "--run", "a")
    assert "data: 24 rows to train on, 5 held out" in seen.out
    seen = tell("train", *inputs, *QUICK, "--max-steps", 1, "--validation", 0, "--run", "b")
    assert "data: 24 rows to train on, 0 held out" in seen.out
    assert "last step" in seen.out
    assert "KL" not in seen.out


def test_a_folder_with_a_test_split_is_evaluated_on_that(tell, inputs, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "train.jsonl", some_rows(9))
    write_rows(folder / "test.jsonl", some_rows(4))
    seen = tell("train", *inputs[:2], "--pairs", folder, "--held-out", folder, *QUICK, "--max-steps", 1, "--run", "a")
    assert "data: 9 rows to train on, 4 held out" in seen.out


def test_bad_rows_are_skipped_counted_and_listed_when_asked(tell, inputs, tmp_path):
    path = write_rows(tmp_path / "bad.jsonl", [*some_rows(8), {"prompt": "a", "chosen": "", "rejected": "b"}])
    seen = tell("train", *inputs[:2], "--pairs", path, *QUICK, "--max-steps", 1, "--on-bad-row", "skip", "--run", "a")
    assert seen.status == 0
    assert "9 rows read, 8 kept" in seen.out
    assert "bad.jsonl, line 9: field 'chosen' must not be empty" in seen.out


def test_a_terminal_shows_a_bar_and_a_file_shows_lines(tell, inputs, monkeypatch):
    from rich.console import Console

    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, highlight=False)
    for module in ("progress", "train", "inputs"):
        monkeypatch.setattr(f"dpo_lab.workbench.cli.{module}.console", terminal)
    seen = tell("train", *inputs, *QUICK, "--max-steps", 3, "--run", "r")
    assert seen.status == 0
    assert "scoring the reference: 22 of 22 pairs\n" in seen.err
    shown = screen.getvalue()
    assert "\x1b[" in shown
    for piece in ("step 3/3", "loss 0.", "margin ", "accuracy ", "pairs/s", "held-out after step 3"):
        assert piece in shown
    assert progress.console is terminal


# ── stopping and going on ────────────────────────────────────────────────────────────────────────────────────────────

STRIKE = """
import os, signal
from dpo_lab.workbench.cli.progress import Dashboard
follow = Dashboard.follow
def struck(self, events):
    for event in follow(self, events):
        yield event
        if type(event).__name__ == "Step" and event.step == {step}:
            os.kill(os.getpid(), signal.{signal})
Dashboard.follow = struck
"""
LONG = (*QUICK, "--epochs", 2, "--learning-rate", 1e-3, "--checkpoint-every", 3, "--evaluate-every", 4)


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
    """The run that no one stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    seen = dpo_lab_process("train", *inputs, *LONG, "--run", folder)
    assert seen.status == 0, seen.err
    return Run.load(folder)


def assert_same_run(run: Run, other: Run) -> None:
    ours, theirs = (load_file(one.model_folder / "model.safetensors") for one in (run, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert without_seconds(run.metrics) == without_seconds(other.metrics)
    assert run.margins == other.margins
    assert run.samples == other.samples


def test_ctrl_c_keeps_a_checkpoint_says_how_to_go_on_and_resuming_changes_nothing(
    tell, inputs, uninterrupted, tmp_path
):
    before = STRIKE.format(step=7, signal="SIGINT")
    seen = dpo_lab_process("train", *inputs, *LONG, "--run", "my run", before=before, cwd=tmp_path)
    assert seen.status == 130
    assert "stopping after this step; Ctrl-C again stops at once" in seen.err
    assert "stopped after step 8 of 12; a checkpoint is saved" in seen.out
    assert "go on with: dpo-lab train --run 'my run' --resume" in seen.out
    run = Run.load(tmp_path / "my run")
    assert not run.model_folder.exists()
    assert "--resume" in (run.folder / "report.html").read_text()

    seen = tell("train", "--run", "my run", "--resume", "--epochs", 5)
    assert seen.status == 2
    assert "--epochs is 5.0, but the run in my run was begun with 2.0; leave it out to go on" in seen.err

    seen = tell("train", "--run", "my run", "--resume")
    assert seen.status == 0
    assert "going on after step 8, with the settings in my run/config.json" in seen.out
    assert_same_run(run, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint_as_if_nothing_had_happened(
    tell, inputs, uninterrupted, tmp_path
):
    before = STRIKE.format(step=8, signal="SIGKILL")
    seen = dpo_lab_process("train", *inputs, *LONG, "--run", tmp_path / "run", before=before)
    assert seen.status == -9
    run = Run.load(tmp_path / "run")
    assert max(row["step"] for row in run.metrics) == 8
    seen = tell("train", "--run", tmp_path / "run", "--resume")
    assert seen.status == 0
    assert "going on after step 6" in seen.out
    assert_same_run(run, uninterrupted)


def test_a_second_ctrl_c_stops_at_once_and_the_run_can_go_on(inputs, tmp_path):
    before = STRIKE.format(step=5, signal="SIGINT").replace(
        "            os.kill", "            os.kill(os.getpid(), 2); os.kill"
    )
    seen = dpo_lab_process("train", *inputs, *LONG, "--run", "run", before=before, cwd=tmp_path)
    assert seen.status == 130
    assert "go on with: dpo-lab train --run run --resume" in seen.err
    assert seen.err.endswith("dpo-lab: interrupted\n")
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()


def test_two_runs_of_one_seed_keep_the_same_checkpoint_whatever_the_process(inputs, tmp_path):
    for name in ("first", "second"):  # in processes of their own: torch begins each with a state by chance
        seen = dpo_lab_process("train", *inputs, *QUICK, "--max-steps", 2, "--run", tmp_path / name)
        assert seen.status == 0, seen.err
    [one, other] = [next((tmp_path / name / "checkpoints").glob("step-*")) for name in ("first", "second")]
    for name in ("weights.safetensors", "state.pt"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_model_that_a_resumed_run_cannot_find_is_told_with_the_file_that_names_it(tell, inputs, tmp_path):
    tell("train", *inputs, *QUICK, "--max-steps", 2, "--run", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["model"] = str(tmp_path / "gone")
    path.write_text(json.dumps(config))
    seen = tell("train", "--run", tmp_path / "run", "--resume")
    assert seen.status == 2
    assert f"no model folder at '{tmp_path / 'gone'}'" in seen.err
    assert f"(as the run was begun, says {path})" in seen.err


def test_resuming_a_finished_run_changes_nothing(tell, inputs, tmp_path):
    tell("train", *inputs, *QUICK, "--max-steps", 3, "--run", "run")
    run = Run.load(tmp_path / "run")
    metrics, samples = run.metrics, run.samples
    seen = tell("train", "--run", "run", "--resume")
    assert seen.status == 0
    assert without_seconds(run.metrics) == without_seconds(metrics)
    assert run.samples == samples


def test_a_mistake_leaves_no_folder_so_the_same_run_can_be_given_again(tell, inputs, tmp_path):
    assert tell("train", "--model", tmp_path / "nowhere", *inputs[2:], "--run", "runs/one").status == 2
    assert not (tmp_path / "runs" / "one").exists()
    assert tell("train", *inputs, *QUICK, "--max-steps", 1, "--run", "runs/one").status == 0


# ── sft, evaluate, sample ────────────────────────────────────────────────────────────────────────────────────────────


def test_sft_learns_answers_and_dpo_goes_on_from_its_model(tell, inputs, tmp_path):
    quick = [*QUICK[:4], *QUICK[6:]]
    seen = tell("sft", *inputs, *quick, "--epochs", 3, "--run", "sft")
    assert (seen.status, seen.err) == (0, "")
    assert "perplexity" in seen.out
    evaluations = [row["eval_loss"] for row in Run.load(tmp_path / "sft").metrics if row["kind"] == "evaluation"]
    assert evaluations[-1] < evaluations[0]
    seen = tell("train", "--model", "sft/model", *inputs[2:], *QUICK, "--max-steps", 1, "--run", "dpo")
    assert seen.status == 0
    assert tell("sft", "--run", "dpo", "--resume").status == 2


def test_evaluate_prints_metrics_and_writes_a_line_per_pair(tell, inputs, tmp_path):
    tell("train", *inputs, *QUICK, "--max-steps", 4, "--learning-rate", 1e-3, "--run", "run")
    common = ("evaluate", "--model", "run/model", "--reference", *inputs[1:], "--kl-prompts", 4, "--max-new-tokens", 4)
    seen = tell(*common, "--table", "out/pairs.csv")
    assert seen.status == 0
    for title in ("pairs", "loss", "accuracy", "reward margin", "KL from the reference, nats", "reference: "):
        assert title in seen.out
    with open("out/pairs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 24
    right = sum(float(row["margin"]) > 0 for row in table) / 24
    assert f"accuracy {right:.4f}" in " ".join(seen.out.split())
    assert tell(*common, "--table", "pairs.jsonl").status == 0
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [{name: str(value) for name, value in row.items()} for row in lines] == table


def test_a_model_evaluated_against_itself_has_earned_nothing(tell, inputs):
    seen = tell("evaluate", *inputs, "--reference", inputs[1], "--kl-prompts", 0)
    words = seen.out.split()
    assert words[words.index("accuracy") + 1] == "0.5000"
    assert words[words.index("loss") + 1] == "0.6931"


def test_sample_answers_arguments_lines_of_standard_input_and_rows(tell, inputs, monkeypatch):
    short = ("--max-new-tokens", 5, "--temperature", 0)
    seen = tell("sample", "the cat?", "the dog?", *inputs[:2], *short)
    assert seen.status == 0
    assert seen.out.count("→") == 2
    assert seen.out.index("the cat?") < seen.out.index("the dog?")

    monkeypatch.setattr("sys.stdin", io.StringIO("the cat?\n\nthe dog?\n"))
    assert tell("sample", *inputs[:2], *short).out == seen.out, "empty lines are no prompts"

    seen = tell("sample", *inputs, *short, "--limit", 3)
    assert seen.out.count("→") == 3
    assert seen.out.count("What does the cat say") == 3

    several = tell("sample", "the cat?", *inputs[:2], "--num-samples", 4, "--temperature", 1, "--max-new-tokens", 8)
    assert several.out.count("→") == 4
    again = ("sample", "the cat?", *inputs[:2], "--num-samples", 4, "--temperature", 1, "--max-new-tokens", 8)
    assert tell(*again).out == several.out
    assert tell(*again, "--seed", 1).out != several.out


def test_a_system_turn_and_raw_text_reach_the_model_as_asked(tell, inputs, monkeypatch):
    from dpo_lab.workbench.cli import models

    asked = []
    monkeypatch.setattr(models, "generate", lambda model, tokenizer, rows, **_: asked.extend(rows) or [""] * len(rows))
    tell("sample", "hello", *inputs[:2], "--system", "be brief")
    tell("sample", "hello", *inputs[:2], "--raw")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert asked == [{"prompt": turns}, {"prompt": "hello"}]


def test_markup_in_prompts_is_printed_as_it_is(tell, inputs):
    assert "[bold]the[/bold] [/cat]" in tell("sample", "[bold]the[/bold] [/cat]", *inputs[:2]).out


# ── compare, losses, lab ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def two_runs(inputs, tmp_path_factory):
    """A folder with two runs that differ in β."""
    folder = tmp_path_factory.mktemp("compared")
    from dpo_lab.workbench.cli import main

    for beta in ("0.1", "0.5"):
        arguments = ("train", *inputs, *QUICK, "--max-steps", "2", "--beta", beta, "--run", folder / f"beta-{beta}")
        assert main([str(argument) for argument in arguments]) == 0
    return folder


def test_compare_shows_what_differs_within_80_columns_and_writes_table_and_figure(tell, two_runs, tmp_path):
    seen = tell("compare", two_runs, "--csv", "t/table.csv", "--figure", "curves.png")
    assert seen.status == 0
    assert max(map(len, seen.out.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in seen.out.splitlines() if line.split()}
    assert rows["beta"] == ["0.1000", "0.5000"]
    assert "learning_rate" not in rows, "only what differs is listed"
    assert len(rows["eval_loss"]) == 2
    with open(tmp_path / "t" / "table.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["beta"] for row in table] == ["0.1", "0.5"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_comparing_loads_no_torch(two_runs):
    before = "import atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
    seen = dpo_lab_process("compare", two_runs / "beta-0.1", two_runs / "beta-0.5", before=before)
    assert (seen.status, seen.err) == (0, "False\n")


def test_losses_lists_every_loss_with_its_knobs_and_source(tell):
    from dpo_lab.losses import LOSSES, UNPAIRED_LOSSES

    every = LOSSES | UNPAIRED_LOSSES
    seen = tell("losses")
    lines = seen.out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(every)
    assert max(map(len, lines)) <= 80
    text = " ".join(seen.out.split())
    for spec in every.values():
        assert " ".join(spec.summary.split()) in text
    assert "beta 0.5 · 2305.18290" in text


def test_the_lab_listens_on_the_loopback_address_behind_its_token(tell, monkeypatch, tmp_path):
    from dpo_lab.workbench.cli import lab

    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "README.md").write_text("# The course\n")
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "dpo_lab" / "workbench" / "cli" / "lab.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    options = parse(["lab", "--port", "9999", "--no-browser"])
    assert isinstance(options, LabOptions)
    command = lab.lab_command(options)
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "--ServerApp.port=9999" in command
    assert "--LabApp.default_url=/lab/tree/notebooks/README.md" in command
    assert command[-1] == "--no-browser"
    (tmp_path / "notebooks" / "student").mkdir()
    (tmp_path / "notebooks" / "student" / "README.md").write_text("# The course\n")
    assert "--LabApp.default_url=/lab/tree/notebooks/student/README.md" in lab.lab_command(options)
    assert not any("token" in part or "password" in part or "allow" in part for part in set(command) - {"--allow-root"})
    for user in (0, 1000):  # in a container people are root, which JupyterLab takes only with this option
        monkeypatch.setattr("os.geteuid", lambda user=user: user, raising=False)
        assert ("--allow-root" in lab.lab_command(options)) == (user == 0)
    monkeypatch.setattr(lab.os, "execve", lambda *_: sys.exit(7))  # this process becomes the server
    assert tell("lab").status == 7


@pytest.fixture
def server(monkeypatch):
    """The command line of the server that `dpo-lab lab` becomes, in place of the server."""
    from dpo_lab.workbench.cli import lab

    became = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(lab.os, "execve", lambda program, command, environment: became.append(command))
    monkeypatch.setattr(lab.subprocess, "call", lambda *_, **__: 0)
    return became


def test_a_checkouts_own_notebooks_are_opened_and_nothing_is_copied(tell, server, tmp_path):
    tell("lab")
    assert f"--ServerApp.root_dir={ROOT}" in server[0]
    assert "--LabApp.default_url=/lab/tree/notebooks/student/README.md" in server[0]
    assert not list(tmp_path.iterdir())


def test_a_copy_of_the_course_is_whole_and_renewed_but_for_what_the_reader_changed(tell, server, tmp_path, monkeypatch):
    from dpo_lab.workbench.cli import lab
    from tests.test_notebooks import NOTEBOOKS, broken_links

    mine = tmp_path / "mine"
    assert tell("lab", "--folder", "mine").out == "the course is in mine\n"
    assert f"--ServerApp.root_dir={mine}" in server[0], "an absolute path"
    for path in NOTEBOOKS:
        assert (mine / "notebooks" / path.name).read_bytes() == path.read_bytes()
        assert (mine / "notebooks/student" / path.name).is_file()
        quiz = Path("notebooks", "quizzes", f"{path.name.split('_')[0]}.json")
        assert (mine / quiz).read_bytes() == (ROOT / quiz).read_bytes()
    pages = [path for path in mine.rglob("*") if path.suffix in (".md", ".ipynb")]
    broken = {(path.relative_to(mine).as_posix(), link) for path in pages for link in broken_links(path)}
    # Two pages lead on to code that only a checkout has; nothing in a notebook or a map does.
    assert {page for page, _ in broken} == {"data/README.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert not list(mine.rglob("__init__.py")), "a folder named dpo_lab that Python would import"

    changed, deleted, old = (mine / "notebooks/student" / path.name for path in NOTEBOOKS[:3])
    changed.write_text("my answers")
    deleted.unlink()
    own = mine / "notebooks" / "mine.ipynb"
    own.write_text("{}")
    before = old.read_bytes()
    renewed = tmp_path / "renewed.ipynb"
    renewed.write_text("a later version")
    files = lab.course_files()
    names = [path.relative_to(mine).as_posix() for path in (changed, old)]
    monkeypatch.setattr(lab, "course_files", lambda: files | dict.fromkeys(names, renewed))
    for _ in range(2):
        assert f"left as you changed them: {names[0]}; rename one" in " ".join(
            tell("lab", "--folder", "mine").out.split()
        )
        assert (changed.read_text(), own.read_text()) == ("my answers", "{}")
        assert old.read_text() == "a later version" != before
        assert deleted.is_file()
    changed.rename(changed.with_name("answers.ipynb"))
    assert tell("lab", "--folder", "mine").out == "the course is in mine\n"
    assert changed.read_text() == "a later version"


def test_a_copy_that_was_cut_off_goes_on(tell, server, tmp_path, monkeypatch):
    from dpo_lab.workbench.cli import lab

    files, write, count = lab.course_files(), lab.write_whole, 0

    def failing(path, data, *, remedy):
        nonlocal count
        if (count := count + 1) > 9:
            raise OSError(28, "No space left on device")
        write(path, data, remedy=remedy)

    monkeypatch.setattr(lab, "write_whole", failing)
    assert tell("lab", "--folder", "mine").status == 2
    monkeypatch.setattr(lab, "write_whole", write)
    assert tell("lab", "--folder", "mine").out == "the course is in mine\n"
    assert all((tmp_path / "mine" / name).read_bytes() == path.read_bytes() for name, path in files.items())


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    code = f"{sys.executable} -m dpo_lab losses | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 141), "0 where all was written before head left"
    assert done.stderr == ""


# ── real input ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_polite_instructions_are_learnt_to_at_least_88_percent(tell, real, tmp_path):
    seen = tell(
        "train", "--model", real / "models/stories260k", "--pairs", real / "preferences/instruction-polite.json",
        "--epochs", 1, "--learning-rate", 1e-4, "--beta", 0.1, "--run", "runs/polite", "--samples", 2,
        "--kl-prompts", 8, "--max-new-tokens", 32,
    )  # fmt: skip
    assert seen.status == 0
    assert "985 rows to train on, 109 held out" in seen.out
    run = Run.load(tmp_path / "runs" / "polite")
    assert f"{run.series('loss')[1][0]:.4f}" == "0.6931"
    assert run.series("eval_rewards/accuracies")[1][-1] >= 0.88


def test_hh_transcripts_are_trained_on_and_early_splits_reported(tell, real, tmp_path):
    seen = tell(
        "train", "--model", real / "models/stories260k", "--pairs", real / "preferences/hh-harmless-base-test.jsonl.gz",
        "--max-steps", 2, "--batch-size", 4, "--max-length", 64, "--run", "hh", "--samples", 0, "--kl-prompts", 0,
    )  # fmt: skip
    assert seen.status == 0
    assert "2,312 rows read, 2,312 kept" in seen.out
    assert "split early: the two conversations differ before the last assistant turn: 4 (line 1255" in seen.out
    assert "completions cut, which have no end token now" in seen.out
    assert Run.load(tmp_path / "hh").series("loss")[1][0] == pytest.approx(0.6931, abs=1e-4)


def test_sharegpt_conversations_are_trained_on(tell, real, tmp_path):
    seen = tell(
        "train", "--model", real / "models/stories260k", "--pairs", real / "preferences/sharegpt-dpo-en.json",
        "--limit", 40, "--max-steps", 2, "--batch-size", 4, "--max-length", 768, "--run", "sharegpt", "--samples", 1,
        "--kl-prompts", 0, "--max-new-tokens", 8,
    )  # fmt: skip
    assert seen.status == 0
    assert "chat template: default" in seen.out
    assert "40 kept" in seen.out
    assert Run.load(tmp_path / "sharegpt").series("loss")[1][0] == pytest.approx(0.6931, abs=1e-4)


def test_minimind_renders_its_conversations_for_a_tiny_model_of_its_vocabulary(tell, real, tmp_path):
    from transformers import AutoTokenizer

    from tests.conftest import tiny_llama
    from tests.tiny import saved_model

    tokenizer = AutoTokenizer.from_pretrained(real / "tokenizers/minimind")
    folder = saved_model(tmp_path / "model", tiny_llama(len(tokenizer), max_position_embeddings=2048), tokenizer)
    seen = tell(
        "train", "--model", folder, "--pairs", real / "preferences/sharegpt-dpo-en.json", "--limit", 60,
        "--max-steps", 2, "--batch-size", 4, "--max-length", 256, "--run", "m", "--samples", 1, "--kl-prompts", 0,
        "--max-new-tokens", 8,
    )  # fmt: skip
    assert seen.status == 0
    assert "chat template: tokenizer; end token: <|im_end|>" in seen.out
    assert Run.load(tmp_path / "m").series("loss")[1][0] == pytest.approx(0.6931, abs=1e-4)


def test_the_lab_opens_pages_of_text_rendered(monkeypatch):
    from dpo_lab.workbench.cli.lab import lab_environment

    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/their/own")
    ours, theirs = lab_environment()["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert theirs == "/their/own"
    settings = json.loads((Path(ours) / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"] == {"markdown": "Markdown Preview"}


# ── precision ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("gain", "small", "precision", "why"),
    [
        (3.0, 1, "bfloat16", "bfloat16 multiplies 3.0 times as fast here"),
        (1.1, 1, "float32", "bfloat16 multiplies 1.1 times as fast here"),
        (3.0, 2**26, "float32", "the model is small"),
    ],
)
def test_auto_takes_bfloat16_for_a_large_model_where_it_is_faster(
    tell, inputs, tmp_path, monkeypatch, gain, small, precision, why
):
    monkeypatch.setattr(cli_inputs, "bfloat16_gain", lambda device: gain)
    monkeypatch.setattr(cli_inputs, "SMALL", small)
    seen = tell("train", *inputs, *QUICK, "--epochs", 1, "--run", "runs/one")
    assert seen.status == 0
    assert f"precision: {precision}, since {why}" in seen.out
    assert Run.load(tmp_path / "runs" / "one").config["settings"]["precision"] == precision
    said = tell("train", *inputs, *QUICK, "--epochs", 1, "--run", "runs/two", "--precision", "float32")
    assert "precision:" not in said.out


def test_a_trial_finds_how_much_faster_bfloat16_multiplies():
    assert 0 < bfloat16_gain(torch.device("cpu")) < 100


# ── learning rate ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("small", "arguments", "rate", "said"),
    [
        (2**26, (), 2e-4, "learning rate: 0.0002, usual for a small model"),
        (1, (), 2e-6, "learning rate: 2e-06, usual for full training of a pretrained model"),
        (1, ("--lora", 2), 2e-5, "learning rate: 2e-05, usual for an adapter"),
        (1, ("--learning-rate", 1e-5), 1e-5, None),
    ],
)
def test_the_learning_rate_suits_the_model(tell, inputs, tmp_path, monkeypatch, small, arguments, rate, said):
    monkeypatch.setattr(cli_inputs, "SMALL", small)
    seen = tell("train", *inputs, *QUICK, "--epochs", 1, "--run", "runs/one", *arguments)
    assert seen.status == 0
    assert Run.load(tmp_path / "runs" / "one").config["settings"]["learning_rate"] == rate
    assert (said or "") in seen.out
    assert said or "learning rate:" not in seen.out
