"""What a run tells others: trackers, the model card, the Hub."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dpo_lab.config import TrackerName
from dpo_lab.loop import Checkpoint, Evaluation, Finished, Step
from dpo_lab.workbench.runs import Run, check_push, push_to_hub, tracked
from dpo_lab.workbench.runs.card import model_card
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, write_rows


def some_events(num: int = 3, start: int = 0) -> list[Any]:
    steps: list[Any] = [
        Step(step, num, {"loss": 0.7 - step / 10, "rewards/margins": step / 4}, float(step))
        for step in range(start + 1, num + 1)
    ]
    return [
        Evaluation(start, {"eval_loss": 0.69}),
        *steps,
        Evaluation(num, {"eval_loss": 0.25}),
        Checkpoint(num, "there"),
        Finished(num, num, True, {"loss": 0.4}, 3.0),
    ]


def a_run(folder: Path, **settings: Any) -> Run:
    asked = {"model": "embedded", "pairs": "embedded", "loss": "dpo", "beta": 0.5, "limit": None, "knobs": {"gamma": 1}}
    return Run.create(folder, {"command": "train", "settings": asked | settings})


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw: name → (step, value), read from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


# ── trackers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tensorboard_holds_what_the_record_holds(tmp_path):
    run, events = a_run(tmp_path / "run"), some_events()
    assert list(tracked(run.follow(events), "tensorboard", run)) == events
    found = scalars(run.folder / "tensorboard")
    assert set(found) == {"loss", "rewards/margins", "eval_loss"}
    for name, points in found.items():
        recorded = [(row["step"], row[name]) for row in run.metrics if name in row]
        assert [step for step, _ in points] == [step for step, _ in recorded]
        assert [value for _, value in points] == pytest.approx([value for _, value in recorded])
    (settings,) = (run.folder / "tensorboard").glob("*/hparams.yml")
    kept = yaml.safe_load(settings.read_text())
    assert kept["beta"] == 0.5
    assert kept["limit"] == "None"
    assert kept["knobs"] == "{'gamma': 1}"


def test_a_resumed_run_shows_each_step_once(tmp_path):
    run = a_run(tmp_path / "run")
    list(tracked(some_events(4)[:-3], "tensorboard", run))  # ends without its last checkpoint: it is taken up at step 2
    list(tracked(some_events(4, start=2)[1:], "tensorboard", run))
    assert [step for step, _ in scalars(run.folder / "tensorboard")["loss"]] == [1, 2, 3, 4]


def test_without_a_tracker_the_stream_is_the_same_one(tmp_path):
    run, events = a_run(tmp_path / "run"), some_events()
    assert list(tracked(events, None, run)) == events
    assert not (run.folder / "tensorboard").exists()


def test_the_names_are_those_of_accelerate():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(TrackerName.__args__) == set(LOGGER_TYPE_TO_CLASS)


def test_a_tracker_that_is_unknown_or_absent_is_told_at_the_call(tmp_path):
    run = a_run(tmp_path / "run")
    with pytest.raises(ValueError, match="tracker 'tensorbored' is not known; choose one of tensorboard, wandb"):
        tracked([], "tensorbored", run)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ImportError, match="wandb is not installed; install it with pip install wandb"):
        tracked([], "wandb", run)


class Recorder:
    """In the place of a tracker of accelerate: keeps what it is told; fails from step `fails_at` on."""

    requires_logging_directory = False
    fails_at = math.inf
    last: Recorder

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.told: list[Any] = [(arguments, named)]
        Recorder.last = self

    def start(self) -> None:
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log(self, values: dict[str, Any], step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the line is cut")
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.fixture
def recorder(monkeypatch):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setattr(Recorder, "fails_at", math.inf)
    return Recorder


def test_every_tracker_is_told_the_same(tmp_path, recorder):
    run, events = a_run(tmp_path / "first"), some_events()
    list(tracked(run.follow(events), "wandb", run))
    opened, start, settings, *logged, finish = recorder.last.told
    assert opened == (("dpo-lab",), {"name": "first"})
    assert (start, finish) == ("start", "finish")
    assert settings["loss"] == "dpo"
    assert logged == [
        (0, {"eval_loss": 0.69}),
        *((step, {"loss": 0.7 - step / 10, "rewards/margins": step / 4}) for step in (1, 2, 3)),
        (3, {"eval_loss": 0.25}),
    ]


def test_a_tracker_that_fails_does_not_cost_the_run(tmp_path, recorder, caplog):
    recorder.fails_at = 2
    run, events = a_run(tmp_path / "run"), some_events()
    with caplog.at_level(logging.WARNING, "dpo_lab"):
        assert list(tracked(run.follow(events), "wandb", run)) == events
    assert caplog.text.count("wandb failed at step 2 (ConnectionError: the line is cut) and is left alone") == 1
    assert len([row for row in run.metrics if row["kind"] == "step"]) == 3


# ── the model card ───────────────────────────────────────────────────────────────────────────────────────────────────


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_a_card_says_base_data_loss_settings_metrics_and_versions(tmp_path):
    run = a_run(
        tmp_path / "polite", model="HuggingFaceTB/SmolLM2-135M-Instruct", pairs="trl-lib/ultrafeedback_binarized",
        lora=16,
    )  # fmt: skip
    list(run.follow(some_events()))
    run.add_results({"kl": 3.14159, "kl_standard_error": 0.2})
    card = model_card("polite", run.config, run.metrics)
    head = front_matter(card)
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["datasets"] == ["trl-lib/ultrafeedback_binarized"]
    assert head["tags"] == ["dpo-lab", "preference-optimization"]
    for line in ("# polite", "| base | HuggingFaceTB/SmolLM2-135M-Instruct |", "| loss | dpo |", "| beta | 0.5 |",
                 "| adapter | LoRA of rank 16, merged into the base |", "| held-out data | step 0 | step 3 |",
                 "| loss | 0.69 | 0.25 |", "| kl | 3.142 |", "Training came to its end after 3 steps.",
                 f"| torch | {run.config['versions']['torch']} |"):  # fmt: skip
        assert line in card, line


def test_a_card_names_no_path_and_lets_no_text_out_of_its_cell(tmp_path):
    base = tmp_path / "private" / "a|b<script>`x`"
    base.mkdir(parents=True)
    run = a_run(tmp_path / "run", model=str(base), pairs=str(tmp_path / "secret.jsonl"), cache=str(tmp_path))
    card = model_card("run", run.config, run.metrics)
    assert str(tmp_path) not in card
    assert "base_model" not in front_matter(card)
    assert "datasets" not in front_matter(card)
    assert "| base | a\\|b&lt;script>'x', a folder |" in card
    assert "| data | secret.jsonl |" in card
    assert "Nothing.\n" in card
    assert "<script" not in card


def test_a_folder_with_the_form_of_a_hub_id_is_no_base_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path / "run", model="runs/model")
    assert "base_model" not in front_matter(model_card("run", run.config, run.metrics))


# ── the Hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class HubRecorder:
    """In the place of huggingface_hub's HfApi."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append(("create_repo", {"name": name} | options))
        return f"https://huggingface.co/{name}"

    def repo_info(self, name: str, **options: Any) -> Any:
        return SimpleNamespace(private=True)

    def upload_folder(self, **options: Any) -> None:
        if self.error:
            raise self.error
        files = sorted(path.name for path in Path(options["folder_path"]).iterdir())
        self.calls.append(("upload_folder", options | {"files": files}))


@pytest.fixture
def online(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "not a real one")


def test_a_model_is_uploaded_into_a_private_repository(tmp_path, online):
    (tmp_path / "config.json").write_text("{}")
    hub = HubRecorder()
    assert push_to_hub(tmp_path, "somebody/polite", hub=hub) == "https://huggingface.co/somebody/polite"
    (_, made), (_, uploaded) = hub.calls
    assert made == {"name": "somebody/polite", "repo_type": "model", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "somebody/polite"
    assert uploaded["files"] == ["config.json"]


def test_an_upload_that_fails_says_how_to_try_again(tmp_path, online):
    with pytest.raises(
        OSError, match=r"is complete and could not be put on the Hub as a/b \(503 Server Error\)"
    ) as told:
        push_to_hub(tmp_path, "a/b", hub=HubRecorder(RuntimeError("503 Server Error\nmore")))
    assert f"try again with: hf upload a/b {tmp_path}" in str(told.value)


def test_what_an_upload_lacks_is_told_before_training(tmp_path, online, monkeypatch, capsys):
    import huggingface_hub

    with pytest.raises(ValueError, match=r"'a/b/c' is no name on the Hub .*write owner/name"):
        check_push("a/b/c")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="needs a log-in with write access; run `hf auth login` first"):
        check_push("a/b")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = dpo_lab(capsys, "train", "--run", tmp_path / "run", "--push-to-hub", "a/b")
    assert told.status == 2
    assert "needs the Hub, and HF_HUB_OFFLINE is set; unset it, or leave the option out" in told.message
    assert not (tmp_path / "run").exists()


# ── from the command line ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_tracked_carded_and_uploaded(tmp_path, capsys, online, monkeypatch):
    import huggingface_hub

    hub = HubRecorder()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    base, pairs = chat_model(tmp_path / "base"), write_rows(tmp_path / "pairs.jsonl", some_rows(16))
    told = dpo_lab(
        capsys, "train", "--model", base, "--pairs", pairs, "--run", tmp_path / "run", "--track", "tensorboard",
        "--push-to-hub", "somebody/polite", *QUICK,
    )  # fmt: skip
    assert told.status == 0, told.err
    assert "on the Hub, private: https://huggingface.co/somebody/polite" in told.out
    run = Run.load(tmp_path / "run")
    losses = [row["loss"] for row in run.metrics if row["kind"] == "step"]
    assert [value for _, value in scalars(run.folder / "tensorboard")["loss"]] == pytest.approx(losses)
    card = (run.model_folder / "README.md").read_text()
    assert "| data | pairs.jsonl |" in card
    assert "| kl |" in card
    assert "README.md" in hub.calls[1][1]["files"]
    assert "model.safetensors" in hub.calls[1][1]["files"]
    assert json.loads((run.folder / "config.json").read_text())["settings"]["track"] == "tensorboard"


def test_a_missing_tracker_is_told_before_training(tmp_path, capsys):
    told = dpo_lab(capsys, "train", "--run", tmp_path / "run", "--track", "wandb")
    assert told.status == 2
    assert "wandb is not installed; install it with pip install wandb" in told.message
    assert not (tmp_path / "run").exists()
