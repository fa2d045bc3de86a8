"""Two processes train as one: the same curve, each pair scored once, one run folder, and none that waits for ever."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.engine.processes import ALONE, Processes, ProcessLost, join, make_accelerator
from dpo_lab.models import pick_device
from dpo_lab.storage.checkpoints import latest_checkpoint, list_checkpoints
from dpo_lab.workbench.cli import main
from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, some_rows, without_seconds, write_rows
from tests.conftest import ROOT
from tests.process_workers import run_scenario, wait_until

needs_minutes = pytest.mark.skipif("not config.getoption('--run-slow')", reason="a minute; --run-slow runs it")
slow = lambda test: pytest.mark.slow(needs_minutes(test))
TWO = [Processes(index, 2) for index in range(2)]


def metrics_of(told: dict[str, Any], kind: str = "Step") -> list[dict[str, float]]:
    return [event["metrics"] for event in told["events"] if event["kind"] == kind]


def assert_close(one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float = 1e-5) -> None:
    """Every metric of every step, to a relative tolerance. Rewards are differences of log-probs, so 1e-5 nats too, and
    the loss of a pair that is all but learnt is e to the minus its margin: what the margin may be off, it is too. The
    norm of a gradient, a root of sums of squares, rounds ten times as far."""
    assert len(one) == len(other) > 0
    nats = lambda name: 2e-5 if "reward" in name else 5e-6 if "loss" in name else 1e-9
    for step, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=tolerance * (10 if "norm" in name else 1), abs=nats(name)), (
                step,
                name,
            )


# ── shares of a batch ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num", [1, 2, 5, 8])
def test_every_example_of_a_batch_counts_once_and_all_make_as_many_passes(num):
    rows = np.arange(10, 10 + num)
    passes = [list(engine_of(one).passes(rows, np.ones(100))) for one in TWO]
    assert len(passes[0]) == len(passes[1])
    counted = np.concatenate([part for own in passes for (part,), weight in own if weight])
    assert sorted(counted) == list(rows)
    assert {weight for own in passes for _, weight in own} <= {2.0, 0.0}  # the mean over two processes is taken
    assert all(len(part) == 1 for own in passes for (part,), weight in own if not weight)


def test_one_process_cuts_a_batch_as_it_is():
    passes = engine_of(ALONE).passes(np.arange(5), np.ones(5))
    assert [([part.tolist() for part in parts], weight) for parts, weight in passes] == [
        ([[0, 1, 2]], 1.0),
        ([[3, 4]], 1.0),
    ]


def engine_of(processes: Processes) -> Engine:
    """An engine that cuts a batch into passes of three rows."""
    engine = Engine(torch.device("cpu"), processes)
    engine.config, engine.is_halved = DPOConfig(micro_batch_size=3), False
    engine.shards = object()  # split weights meet in every pass
    return engine


def test_one_process_asks_nobody():
    values = np.array([1.0, 2.0])
    assert ALONE.sum(values) is values
    assert (ALONE.any_process(True), ALONE.any_process(False), ALONE.broadcast_from_main(lambda: 3)) == (True, False, 3)
    ALONE.check_same({"data": "any"})
    assert join(torch.device("cpu")).count == 1
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234",
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 3000ms for recv operation",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:457] writev [127.0.0.1]:1234: Broken pipe",
        "NCCL error: remote process exited or there was a network error",
    ],
)
def test_a_lost_process_is_told_in_plain_words_and_other_errors_pass(message):
    lost = r"lost the other processes \(.+\): one of the 2 was killed.*last checkpoint"
    with pytest.raises(ProcessLost, match=lost), TWO[1].explain_lost_peer():
        raise RuntimeError(message)
    for error in (RuntimeError("shapes do not match"), ValueError(message)):
        with pytest.raises(type(error)) as caught, TWO[1].explain_lost_peer():
            raise error
        assert caught.value is error
    with pytest.raises(RuntimeError, match="gloo"), ALONE.explain_lost_peer():
        raise RuntimeError("gloo: Connection closed")


def test_the_first_fsdp_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="--fsdp_version 2"):
        make_accelerator(TWO[0], scale_loss=False)


def test_a_launcher_s_accumulation_does_not_scale_the_gradient_again(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator(ALONE, scale_loss=False).gradient_accumulation_steps == 1


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: device)  # there is none to try it on
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.delenv("LOCAL_RANK")
    assert [str(pick_device(name)) for name in ("auto", "cuda")] == ["cuda", "cuda"]


@pytest.mark.parametrize("arguments", [["sweep"], ["sample", "hello"], ["demo"], ["compare", "a"]])
def test_commands_for_one_process_refuse_several(arguments, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(arguments) == 2
    assert re.search(r"dpo-lab, process 1 of 2: dpo-lab \w+ is for one process", capsys.readouterr().err)


# ── the same curve ───────────────────────────────────────────────────────────────────────────────────────────────────


def assert_same_curves(told: dict[str, Any], kind: str, way: str, num_steps: int, tolerance: float = 1e-5) -> None:
    one, *several = (told[name] for name in (f"{kind}-one-0", f"{kind}-{way}-0", f"{kind}-{way}-1"))
    assert several[0]["events"] == several[1]["events"]  # all processes tell the same
    assert several[0]["weights"] == several[1]["weights"]
    assert len(metrics_of(one)) == num_steps
    for events in ("Step", "Evaluation"):
        assert_close(metrics_of(one, events), metrics_of(several[0], events), tolerance)


@slow
def test_fifty_steps_of_dpo_and_sft_are_the_same_in_one_process_in_two_and_with_split_weights(tmp_path):
    told = run_scenario("all_curves", tmp_path)
    for kind in ("dpo", "sft"):
        for way in ("ddp", "fsdp"):
            assert_same_curves(told, kind, way, 50)


@slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing can be compiled without a C++ compiler")
def test_compiled_models_train_the_same_in_one_process_in_two_and_with_split_weights(tmp_path):
    told = run_scenario("compiled_curves", tmp_path / "compiled")
    plain = run_scenario("curves", tmp_path / "plain")
    assert_close(metrics_of(plain["dpo-one-0"]), metrics_of(told["dpo-one-0"]))
    for way in ("ddp", "fsdp"):
        assert_same_curves(told, "dpo", way, 12, tolerance=1e-4)  # fused sums round in another order for other shapes


# ── what processes must agree on ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    return folder, run_scenario("agreement", folder)


def test_the_cache_is_filled_by_both_and_no_pair_is_scored_twice(agreed):
    _, told = agreed
    shares = [told[f"fill-{index}"]["wrote"] for index in range(2)]
    assert [*map(len, shares)] == [11 + 4, 10 + 3]  # 21 pairs to train on and 7 held out
    assert len(set(shares[0]) | set(shares[1])) == 28
    assert [told[f"found-{index}"]["wrote"] for index in range(2)] == [[], []]
    more = [told[f"more-{index}"]["wrote"] for index in range(2)]
    assert (len(more[0]), len(more[1])) == (5, 4)  # 9 new ones of 30
    assert not set(more[0] + more[1]) & set(shares[0] + shares[1])
    assert told["found-0"]["events"] == told["fill-0"]["events"]


def test_processes_with_other_data_are_refused_by_all(agreed):
    _, told = agreed
    for index in range(2):
        kind, text = told[f"mixed-{index}"]["error"]
        assert kind == "ValueError"
        assert re.search("do not train the same: data is .* in process 0 and .* in process 1; start all", text)
        assert told[f"mixed-{index}"]["wrote"] == []


def test_one_process_that_is_asked_to_stop_stops_all(agreed):
    folder, told = agreed
    ends = [told[f"stopped-{index}"]["events"][-1] for index in range(2)]
    assert ends[0] == ends[1]
    assert (ends[0]["kind"], ends[0]["step"], ends[0]["is_complete"]) == ("Finished", 3, False)
    assert [path.name for path in list_checkpoints(folder / "stopped")] == ["step-00000003"]


def test_a_checkpoint_that_cannot_be_written_ends_all(agreed):
    _, told = agreed
    (kind, text), (other_kind, other_text) = (told[f"unwritable-{index}"]["error"] for index in range(2))
    assert (kind, other_kind) == ("OSError", "MainFailed")
    assert "cannot be written" in text
    assert text == other_text


def test_divergence_of_one_is_noticed_by_all_at_the_same_step(agreed):
    """Process 1 breaks its weights after step 2, and steps are looked at in twos."""
    _, told = agreed
    errors = [told[f"diverged-{index}"]["error"] for index in range(2)]
    assert errors[0] == errors[1]
    assert errors[0][0] == "TrainingDiverged"
    assert re.match(r"step 3: the loss is nan and the gradient norm nan", errors[0][1])


# ── killed, hanging, resumed ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("survival")
    return folder, run_scenario("survival", folder)


@slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_others_soon_and_with_a_message(survived, way):
    folder, told = survived
    kind, text = told[f"{way}-broken-0"]["error"]
    assert kind == "ProcessLost"
    assert re.search("lost the other processes .* go on from the last checkpoint", text)
    latest = latest_checkpoint(folder / f"{way}-broken")
    assert latest is not None
    assert latest.name == "step-00000004"


@slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_resumed_in_two_processes_it_equals_the_uninterrupted_run(survived, way):
    _, told = survived
    whole, resumed = told[f"{way}-whole-0"], told[f"{way}-resumed-0"]
    assert metrics_of(resumed) == metrics_of(whole)[4:]
    assert resumed["weights"] == whole["weights"]


@slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_resumed_in_one_process_it_goes_on_to_the_same_result(survived, way):
    _, told = survived
    assert_close(metrics_of(told[f"{way}-alone-0"]), metrics_of(told["one-0"])[4:])


@slow
def test_a_process_that_hangs_is_given_up_after_a_while(survived):
    _, told = survived
    kind, text = told["hung-0"]["error"]
    assert kind == "ProcessLost"
    assert re.search(r"lost the other processes \(timed out\)", text, re.IGNORECASE)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def commanded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    run_scenario("command", folder)
    return folder, {path.stem: path.read_text() for path in folder.glob("*.txt")}


@slow
def test_the_command_leaves_one_run_folder_that_is_that_of_one_process(commanded):
    folder, said = commanded
    one, two = Run.load(folder / "one"), Run.load(folder / "two")
    assert two.config["processes"] == 2
    assert "processes" not in one.config
    assert sorted(path.name for path in one.folder.iterdir()) == sorted(path.name for path in two.folder.iterdir())
    rows = [[row for row in without_seconds(run.metrics) if row["kind"] != "result"] for run in (one, two)]
    assert [row["kind"] for row in rows[0]] == [row["kind"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        numbers = [{name: value for name, value in row.items() if isinstance(value, float)} for row in (a, b)]
        assert_close([numbers[0]], [numbers[1]], 1e-4)
    assert [row["prompt"] for row in one.samples] == [row["prompt"] for row in two.samples]
    assert "2 processes train together" in said["two-0"]
    assert said["two-1"] == ""


@slow
def test_a_folder_that_is_taken_is_told_once(commanded):
    _, said = commanded
    assert "already holds a run" in said["taken-0"]
    assert said["taken-1"] == ""


@slow
def test_ctrl_c_keeps_a_checkpoint_and_both_leave(commanded):
    folder, said = commanded
    stopped = r"stopping after this step.*stopped after step \d+ of \d+; a checkpoint is saved"
    assert re.search(stopped, said["broken-0"],
                     re.DOTALL)  # fmt: skip
    assert said["broken-1"] == ""
    assert list_checkpoints(folder / "broken" / "checkpoints")


@slow
def test_a_worker_killed_under_the_command_ends_it_and_one_process_finishes_it(commanded):
    folder, said = commanded
    assert re.search("dpo-lab, process 0 of 2: lost the other processes", said["resumed-0"])
    assert "go on with: dpo-lab train --run" in said["resumed-0"]
    steps = [row["step"] for row in Run.load(folder / "broken").metrics if row["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert Run.load(folder / "broken").summary()["is_complete"]


# ── the launchers ────────────────────────────────────────────────────────────────────────────────────────────────────

ACCELERATE = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--main_process_port",
              "0", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip
# torchrun has options that begin with --run; on Python 3.11 it takes ours for a short form of them, but for the --.
LAUNCHERS = {
    "accelerate": [*ACCELERATE, "--multi_gpu", "-m"],
    "fsdp": [*ACCELERATE, "--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true", "-m"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"],
}


@pytest.fixture
def sources(tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", some_rows(40))
    return ["--model", str(chat_model(tmp_path / "model")), "--pairs", str(pairs), *QUICK]


def started(launcher: str, *arguments: str, output: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "FSDP"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", *LAUNCHERS[launcher], "dpo_lab", "train", *arguments]
    with output.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"dpo_lab" in Path(f"/proc/{child}/cmdline").read_bytes()]


def num_steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


@slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launched_processes_leave_the_run_of_one(launcher, sources, tmp_path):
    assert main(["train", *sources, "--run", str(tmp_path / "one")]) == 0
    process = started(launcher, *sources, "--run", str(tmp_path / "two"), output=tmp_path / "said.txt")
    assert process.wait(timeout=240) == 0, (tmp_path / "said.txt").read_text()
    one, two = Run.load(tmp_path / "one"), Run.load(tmp_path / "two")
    assert two.config["processes"] == 2
    np.testing.assert_allclose(two.series("loss")[1], one.series("loss")[1], rtol=1e-5)
    weights = [torch.cat([p.flatten() for p in load(run)]) for run in (one, two)]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-3)


def load(run: Run) -> list[torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return list(AutoModelForCausalLM.from_pretrained(run.model_folder).parameters())


@slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_a_worker_killed_under_a_launcher_ends_all_within_a_bounded_time(launcher, sources, tmp_path):
    run, said = tmp_path / "run", tmp_path / "said.txt"
    process = started(launcher, *sources, "--run", str(run), "--epochs", "400", "--checkpoint-every", "2", output=said)
    wait_until(lambda: num_steps(run) > 3, 200)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 45
    assert "lost the other processes" in said.read_text() or "Signal 9" in said.read_text()
    assert latest_checkpoint(run / "checkpoints") is not None
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_ctrl_c_at_a_launcher_keeps_a_checkpoint(launcher, sources, tmp_path):
    run, said = tmp_path / "run", tmp_path / "said.txt"
    process = started(launcher, *sources, "--run", str(run), "--epochs", "400", output=said)
    wait_until(lambda: num_steps(run) > 3, 200)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all, and the launcher passes it on once more
    process.wait(timeout=60)
    assert "a checkpoint is saved" in said.read_text()
    assert latest_checkpoint(run / "checkpoints") is not None
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["kind"] == "finished"
    assert math.isfinite(rows[-2]["loss"])
