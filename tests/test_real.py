"""`dpo-lab real`: a real model aligned from the command line, what it prints and keeps, and what it refuses."""

from __future__ import annotations

import pytest

from dpo_lab import load_policy
from dpo_lab.storage.embedded import embedded_path
from dpo_lab.workbench.cli import main, real
from dpo_lab.workbench.evaluation import run_suites
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


@pytest.mark.slow
def test_the_defaults_do_not_ruin_a_real_model(smollm2, at_120_columns, tmp_path):
    """With nothing but a model and pairs: held-out pairs are ranked better, and plain text is as likely as before."""
    pairs = embedded_path("real", "pairs.jsonl.gz")
    run = str(tmp_path / "run")
    assert main(["train", "--model", str(smollm2), "--pairs", str(pairs), "--limit", "240", "--run", run]) == 0
    evaluations = [row for row in Run.load(tmp_path / "run").metrics if row["kind"] == "evaluation"]
    assert evaluations[-1]["eval_rewards/accuracies"] > 0.55  # a tie, as every pair is at the start, counts half
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    model, tokenizer = load_policy(tmp_path / "run" / "model")
    base, _ = load_policy(str(smollm2))
    found = run_suites(model, tokenizer, "perplexity", reference=base, num_tokens=4000, precision="bfloat16")
    assert all(own["ratio_to_reference"]["value"] < 1.05 for own in found["perplexity"].values())


@pytest.mark.parametrize(("pairs", "number"), [([], "none"), ([{"task": 0}, {"task": 0}], "1")])
def test_answers_that_give_too_few_pairs_are_reported(capsys, at_120_columns, tmp_path, monkeypatch, pairs, number):
    monkeypatch.setattr(real, "pair_answers", lambda *_, **__: pairs)
    model = chat_model(tmp_path / "model")
    found = dpo_lab(capsys, "real", "--model", model, "--sample", 2, "--precision", "float32", "--device", "cpu")
    assert found.status == 2
    assert f"{number} of 2 tasks gave a pair, and two must" in found.err
    assert "raise --sample" in found.err


@pytest.mark.parametrize(("name", "value"), [("pairs", 3), ("tasks", 0), ("sample", -1)])
def test_sizes_that_cannot_be(capsys, name, value):
    told = dpo_lab(capsys, "real", f"--{name}", value)
    assert told.status == 2
    assert f"--{name} must be at least" in told.err
    assert str(value) in told.err
