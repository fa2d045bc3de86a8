"""`dpo.py` is the oracle: over fifty steps, every fast way of `train_dpo` gives its losses, margins and weights.

The same pairs in the same order at the same learning rates. Tolerances, absolute: 3e-5 for the loss, 1e-4 for margins
(differences of log-probs of tens to hundreds of nats, in float32), and for weights a tenth of one
step of Adam, but for 2 in 1,000, whose gradient is all rounding: Adam divides by its size. Their mean is a thousandth.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpo_lab import dpo
from dpo_lab.config import DPOConfig
from dpo_lab.engine import output_layer, two_halves
from dpo_lab.loop import Checkpoint, Finished, Step
from dpo_lab.loss import PairScores
from dpo_lab.losses import LOSSES
from dpo_lab.models.loading import load_policy
from dpo_lab.models.lora import add_lora
from dpo_lab.preferences import TokenData, load_preferences, tokenize_pairs
from dpo_lab.training import train_dpo
from tests.conftest import random_pairs, tiny_llama
from tests.process_workers import run_scenario

RATE = 2e-4
HALVED: list[int] = []  # parts of passes that two threads have worked on
SETTINGS: dict[str, Any] = {"learning_rate": RATE, "batch_size": 2, "group_by_length": False, "device": "cpu"}


@dataclass
class Case:
    """A model, its pairs, and what the page makes of them."""

    model: nn.Module
    tokenizer: Any
    data: TokenData
    beta: float
    rate: float = RATE

    def __post_init__(self) -> None:
        self.losses, self.margins, self.weights = page_of(
            self.model, self.model, self.data, self.beta, learning_rate=self.rate
        )


def page_of(policy: nn.Module, reference: nn.Module, data: TokenData, beta: float, **settings: Any) -> tuple[Any, ...]:
    """Losses and margins of every step, and the weights after them, as `dpo.train` gives them."""
    policy, reference = copy.deepcopy(policy), copy.deepcopy(reference)
    rows = map(data.row, range(len(data)))
    pairs = [(row.prompt.tolist(), *(ids.tolist() for ids in row.completions)) for row in rows]
    settings = {"beta": beta, "learning_rate": RATE, "batch_size": 2} | settings
    losses, margins = zip(*dpo.train(policy, reference, pairs, **settings), strict=True)
    return losses, margins, policy.state_dict()


def check_like_the_page(case: Any, steps: list[Step], model: nn.Module) -> None:
    losses, margins, weights = case
    assert len(steps) == len(losses) >= 50
    np.testing.assert_allclose([step.metrics["loss"] for step in steps], losses, rtol=0, atol=3e-5)
    np.testing.assert_allclose([step.metrics["rewards/margins"] for step in steps], margins, rtol=0, atol=1e-4)
    assert max(losses) - min(losses) > 0.1  # something was learnt
    for name, value in model.state_dict().items():
        off = (value - weights[name]).abs()
        assert off.mean() < RATE / 1000
        assert (off > RATE / 10).float().mean() < 2e-3


def train(case: Case, policy: nn.Module, **settings: Any) -> list[Step]:
    config = DPOConfig(**SETTINGS | {"beta": case.beta, "learning_rate": case.rate} | settings)
    return [event for event in train_dpo(policy, case.tokenizer, case.data, config) if isinstance(event, Step)]


@pytest.fixture(scope="module")
def embedded() -> Case:
    model, tokenizer = load_policy("embedded", device="cpu")
    rows = load_preferences("embedded", split="train", limit=100)
    return Case(model, tokenizer, tokenize_pairs(rows, tokenizer)[0], 0.5)


@pytest.fixture(scope="module")
def stories(real: Path) -> Case:
    model, tokenizer = load_policy(real / "models" / "stories260k", device="cpu")
    rows = load_preferences(real / "preferences" / "instruction-polite.json", limit=100)
    return Case(model, tokenizer, tokenize_pairs(rows, tokenizer, max_length=256)[0], 0.1, rate=RATE / 2)


def plain(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"layout": "separate"}


def shared(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {}


def halves(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def two_at_once(self: Any, function: Any, items: Any) -> list[Any]:
        HALVED.append(len(items))
        return own(self, function, items)

    own = two_halves.TwoThreads.map
    monkeypatch.setattr(two_halves.TwoThreads, "map", two_at_once)
    monkeypatch.setattr(two_halves, "FEWEST_TOKENS", 1)
    torch.set_num_threads(2)
    return {}


def chunks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 8 * 1600)  # too many to keep: they are computed again
    monkeypatch.setattr(output_layer, "ROWS_AT_LEAST", 1)
    return {}


def tiles(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(output_layer, "TILE", 256)
    return chunks(monkeypatch)


def one_pair_a_pass(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"micro_batch_size": 1}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", [plain, shared, halves, chunks, tiles, one_pair_a_pass], ids=lambda way: way.__name__)
def test_every_way_gives_the_numbers_of_the_page(way: Callable[..., Any], embedded, monkeypatch, threads):
    policy = copy.deepcopy(embedded.model)
    HALVED.clear()
    steps = train(embedded, policy, **way(monkeypatch))
    assert HALVED.count(2) >= (50 if way is halves else 0)
    check_like_the_page((embedded.losses, embedded.margins, embedded.weights), steps, policy)


@pytest.mark.parametrize("way", [plain, shared], ids=lambda way: way.__name__)
def test_on_a_really_pretrained_model_and_real_pairs_too(way, stories, monkeypatch):
    policy = copy.deepcopy(stories.model)
    steps = train(stories, policy, max_length=256, **way(monkeypatch))
    check_like_the_page((stories.losses, stories.margins, stories.weights), steps, policy)


def test_resumed_it_gives_the_numbers_of_the_page(embedded, tmp_path):
    config = DPOConfig(**SETTINGS | {"beta": embedded.beta, "checkpoint_every": 20})
    steps: list[Step] = []
    for resume in (None, tmp_path / "step-00000020"):
        policy = copy.deepcopy(embedded.model)
        events = train_dpo(policy, None, embedded.data, config, checkpoints=tmp_path, resume=resume)
        for event in events:
            steps += [event] if isinstance(event, Step) else []
            if resume is None and isinstance(event, Checkpoint):
                break  # as if it were killed here
    assert isinstance(event, Finished)
    check_like_the_page((embedded.losses, embedded.margins, embedded.weights), steps, policy)


def test_an_adapter_learns_what_it_learns_on_the_page_beside_its_base(embedded):
    """`train_dpo` has one model and switches the adapter off; the page has two."""
    policy = add_lora(copy.deepcopy(embedded.model), rank=4)
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    page = page_of(policy, embedded.model, embedded.data, embedded.beta, learning_rate=10 * RATE)
    steps = train(embedded, policy, learning_rate=10 * RATE)
    check_like_the_page(page, steps, policy)
    before = add_lora(copy.deepcopy(embedded.model), rank=4).state_dict()
    assert all(torch.equal(policy.state_dict()[name], before[name]) for name in frozen)


def test_two_processes_give_the_numbers_of_the_page(tmp_path):
    """17 pairs in batches of 8: the last batch holds one pair, so that once a process has no share."""
    written = run_scenario("like_the_page", tmp_path)
    losses, margins, weights = page_of(tiny_llama(), tiny_llama(), random_pairs(17), 0.5, batch_size=8, epochs=17)
    for index in range(2):
        steps = [Step(**event) for event in written[f"page-{index}"]["events"] if event.pop("kind") == "Step"]
        policy = tiny_llama()
        policy.load_state_dict(torch.load(tmp_path / f"page-{index}.pt", weights_only=True))
        check_like_the_page((losses, margins, weights), steps, policy)


# ── the page itself ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_its_loss_is_the_table_s(embedded):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 20, 2, generator=generator)
    scores = PairScores(*policy.unbind(1), *reference.unbind(1), torch.ones(20), torch.ones(20))
    torch.testing.assert_close(dpo.dpo_loss(policy, reference, 0.3), LOSSES["dpo"].bind(beta=0.3)(scores))
    assert dpo.dpo_loss(policy, policy, 0.3).tolist() == pytest.approx([np.log(2)] * 20)


def test_its_log_probs_are_those_of_a_row_alone(model):
    """Enumerated by hand: one row without padding, one token after the other."""
    pairs = [([5, 6, 7], [8, 9, 2], [10, 2]), ([11], [12, 2], [13, 14, 15, 16, 2])]
    with torch.no_grad():
        logps = dpo.completion_logps(model, pairs)
        for b, (prompt, *answers) in enumerate(pairs):
            for k, answer in enumerate(answers):
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
                alone = sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
                assert float(logps[b, k]) == pytest.approx(alone, abs=1e-4)


def test_its_reference_stays_as_it_is(model):
    reference = copy.deepcopy(model)
    pairs = [([5, 6], [7, 2], [8, 9, 2])] * 4
    for _ in dpo.train(model, reference, pairs, learning_rate=1e-3, batch_size=2):
        pass
    assert all(map(torch.equal, reference.state_dict().values(), tiny_llama().state_dict().values()))
    assert not all(map(torch.equal, model.state_dict().values(), reference.state_dict().values()))
