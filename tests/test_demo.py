"""`make demo` keeps its promise: the embedded model, trained with the defaults, judged by the true reward."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from dpo_lab import evaluate, load_policy, load_preferences
from dpo_lab.workbench.cli import main
from dpo_lab.workbench.runs import Run
from dpo_lab.worlds.pocket import JOBS


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo run once: its run, and the operations that its processor time is worth in matrix products."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPO_LAB_CACHE", str(folder / "cache"))
        rate = operations_per_processor_second()
        began = time.process_time()
        status = main(["demo", "--run", str(folder / "run")])
        seconds = time.process_time() - began
        rate = (rate + operations_per_processor_second()) / 2
    assert status == 0
    return Run.load(folder / "run"), seconds * rate


def operations_per_processor_second(size: int = 1024, products: int = 20) -> float:
    """What this processor does now in a second of its time: a slow or busy machine is no fault of the demo's."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    torch.mm(a, b)
    began = time.process_time()
    for _ in range(products):
        torch.mm(a, b)
    return 2 * size**3 * products / (time.process_time() - began)


def results(run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in run.metrics:
        if row["kind"] == "result":
            found |= {name: value for name, value in row.items() if isinstance(value, float)}
    return found


def test_the_base_model_is_as_good_as_its_card_says(demo):
    found = results(demo[0])
    assert found["true/well_formed/before"] >= 0.95
    assert 0.35 <= found["true/success/before"] <= 0.65
    for job in JOBS:
        assert 0.2 <= found[f"true/success/{job}/before"] <= 0.8


def test_training_lifts_every_job(demo):
    found = results(demo[0])
    assert found["true/success/after"] >= 0.82
    for job in JOBS:
        assert found[f"true/success/{job}/after"] >= 0.75, job
    assert found["true/well_formed/after"] >= 0.96
    assert found["true/over_refusal/after"] <= 0.1  # at most five of 57
    assert found["true/words/after"] <= 4 / 3 * found["true/words/before"]
    assert 0 < found["kl"] < 100


def test_implicit_rewards_rank_as_true_rewards_do(demo):
    model, tokenizer = load_policy(demo[0].model_folder)
    reference, _ = load_policy("embedded")
    pairs = load_preferences("embedded", split="test")
    table = evaluate(model, tokenizer, pairs, reference=reference).table
    rows = [pairs[int(i)] for i in table["row"]]
    true = np.array([row["reward_chosen"] - row["reward_rejected"] for row in rows])
    # Which answer comes first is decided by a coin: chosen minus rejected would be positive almost always.
    coin = np.random.default_rng(0).choice([-1, 1], len(true))
    assert spearmanr(coin * table["margin"], coin * true).statistic >= 0.7
    assert ((table["margin"] > 0) == (true > 0)).mean() >= 0.85


def test_the_samples_carry_true_rewards(demo):
    samples = demo[0].samples
    assert len(samples) == 8
    assert all({"prompt", "before", "after", "reward_before", "reward_after"} <= set(sample) for sample in samples)


def test_it_is_quick_enough_for_a_first_look(demo):
    _, operations = demo
    assert operations < 50e12  # 16e12 on two kinds of processors, which take 190 and 480 seconds of one core for it
