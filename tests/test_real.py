"""`dpo-lab real`: a real model aligned from the command line, what it prints and keeps, and what it refuses."""

from __future__ import annotations

import pytest

from dpo_lab.workbench.cli import main
from dpo_lab.workbench.runs import Run
from tests.command_line import chat_model, dpo_lab


@pytest.fixture
def at_120_columns(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("DPO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_real_model_is_trained_on_the_saved_pairs_and_shown_before_and_after(
    smollm2, capsys, at_120_columns, tmp_path
):
    few = ["--pairs", "10", "--tasks", "6", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]
    assert main(["real", "--model", str(smollm2), "--run", str(tmp_path / "run"), *few]) == 0
    out = capsys.readouterr().out
    assert "The model is SmolLM2-135M-Instruct" in out
    for line in ("KL from the base per answer, in nats", "perplexity of plain text", "mean length in words"):
        assert line in out
    assert out.count("before") >= 3
    run = Run.load(tmp_path / "run")
    results = {name: value for row in run.metrics if row["kind"] == "result" for name, value in row.items()}
    assert results["real/kl/before"] == pytest.approx(0.0, abs=1e-6)  # the base is its own reference
    assert 0 <= results["real/demands_met/after"] <= 1
    assert results["real/perplexity/after"] == pytest.approx(results["real/perplexity/before"], rel=0.1)


def test_a_model_whose_answers_all_score_alike_gives_no_pairs_and_says_so(capsys, at_120_columns, tmp_path):
    model = chat_model(tmp_path / "model")
    told = dpo_lab(capsys, "real", "--model", model, "--sample", 2, "--precision", "float32", "--device", "cpu")
    assert told.status == 2
    assert "none of 2 tasks gave a pair" in told.err
    assert "--sample" in told.err


@pytest.mark.parametrize(("name", "value"), [("pairs", 3), ("tasks", 0), ("sample", -1)])
def test_sizes_that_cannot_be(capsys, name, value):
    told = dpo_lab(capsys, "real", f"--{name}", value)
    assert told.status == 2
    assert f"--{name} must be at least" in told.err
    assert str(value) in told.err
