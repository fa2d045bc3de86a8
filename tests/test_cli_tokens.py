"""`--tokens FOLDER`: rows are streamed and their token ids mapped from the disk; the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_lab.preferences import TokenData
from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, without_seconds, write_rows


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, ...]:
    model, pairs = chat_model(tmp_path / "model"), write_rows(tmp_path / "pairs.jsonl", some_rows(24))
    held = write_rows(tmp_path / "held.jsonl", some_rows(6))
    return ("--model", str(model), "--pairs", str(pairs), "--held-out", str(held))


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_run_on_streamed_rows_is_the_run_on_rows_in_memory(capsys, tmp_path, inputs, command):
    quick = QUICK if command == "train" else tuple(part for part in QUICK if part not in ("--kl-prompts", "2"))
    runs = []
    for name, own in (("memory", ()), ("disk", ("--tokens", tmp_path / "tokens"))):
        told = dpo_lab(capsys, command, *inputs, *quick, "--max-steps", 3, "--run", tmp_path / name, *own)
        assert told.status == 0, told.err
        runs.append(Run.load(tmp_path / name))
    assert without_seconds(runs[0].metrics) == without_seconds(runs[1].metrics)
    files = [(run.model_folder / "model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1]
    assert len(TokenData.load(tmp_path / "tokens")) == 24
    assert "24 rows tokenised, 24 kept" in " ".join(told.out.split())


def test_the_cache_is_filled_from_streamed_rows_and_found_from_rows_in_memory(capsys, tmp_path, inputs):
    told = dpo_lab(capsys, "cache", *inputs[:4], "--tokens", tmp_path / "tokens", "--device", "cpu")
    assert "24 pairs computed, 0 found" in told.out
    assert "0 pairs computed, 24 found" in dpo_lab(capsys, "cache", *inputs[:4], "--device", "cpu").out


def test_a_streamed_run_holds_out_what_it_is_given_and_nothing_else(capsys, tmp_path, inputs):
    told = dpo_lab(capsys, "train", *inputs[:4], *QUICK, "--max-steps", 1, "--run", tmp_path / "run",
                   "--tokens", tmp_path / "tokens")  # fmt: skip
    assert told.status == 0, told.err
    assert "24 rows to train on, 0 held out" in told.out


def test_a_stream_is_not_drawn_from_and_a_closed_folder_is_told(capsys, tmp_path, inputs):
    told = dpo_lab(capsys, "train", *inputs, *QUICK, "--tokens", tmp_path / "tokens", "--limit", 5)
    assert told.status == 2
    assert "--tokens streams all rows, and --limit 5 draws among them; leave out one of the two" in told.message
    (tmp_path / "file").write_text("mine")
    told = dpo_lab(capsys, "cache", *inputs[:4], "--tokens", tmp_path / "file")
    assert told.status == 2
    assert f"{tmp_path / 'file'} is there and holds no token data" in told.message
