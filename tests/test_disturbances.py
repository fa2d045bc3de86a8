"""What disturbs the runs of data/experiments/failures.py does what its name says, and no more."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpo_lab import DPOConfig, train_dpo
from dpo_lab.batching import make_batch
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import Scorer, score
from dpo_lab.loop import optimise
from dpo_lab.losses import LOSSES, PairScores
from dpo_lab.preferences import TokenData
from dpo_lab.worlds.enumerable import enumerable_world

FOLDER = Path(__file__).resolve().parents[1] / "data" / "experiments"


@pytest.fixture
def disturb(monkeypatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module("disturbances")


@pytest.fixture(scope="module")
def world():
    return enumerable_world()


@pytest.fixture(scope="module")
def pairs(world) -> TokenData:
    """Four pairs of the enumerable world: the third has the longer chosen answer, the first the longer rejected."""
    encode = lambda text: world.tree.encode(text).numpy().astype(np.int32)
    told = [("a", "a.", "abc"), ("b", "ab.", "bbb"), ("c", "cab", "c."), ("a", "ab.", "cc.")]
    return TokenData.from_rows((encode("." + x), (encode(won), encode(lost))) for x, won, lost in told)


def row(chosen: str, rejected: str, rewards: tuple[float, float] = (1.0, 0.0)) -> dict[str, Any]:
    said = lambda text: [{"role": "assistant", "content": text}]
    return {"prompt": [{"role": "user", "content": "?"}], "chosen": said(chosen), "rejected": said(rejected),
            "reward_chosen": rewards[0], "reward_rejected": rewards[1], "job": "safety"}  # fmt: skip


def test_turning_twice_changes_nothing_and_once_takes_the_rewards_along(disturb):
    one = row("yes", "no", (2.0, -1.0))
    assert disturb.turned(disturb.turned(one)) == one
    assert disturb.turned(one) == one | row("no", "yes", (-1.0, 2.0))


def test_labels_are_flipped_at_the_requested_rate(disturb):
    rows = [row(f"{i}", "no") for i in range(4000)]
    assert disturb.flipped(rows, 0.0, seed=1) == rows
    share = np.mean([one["rejected"] != rows[0]["rejected"] for one in disturb.flipped(rows, 0.3, seed=1)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)


def test_a_bonus_per_word_makes_the_longer_answer_win(disturb):
    rows = [row("one", "one two three four five", (1.0, 0.0))] * 2000
    kept = lambda bonus: np.mean([one["reward_chosen"] == 1.0 for one in disturb.length_biased(rows, bonus, seed=0)])
    chance = lambda bonus: 1 / (1 + np.exp(-(1.0 - 4 * bonus) / 0.3))
    for bonus in (0.0, 0.25, 0.4):
        assert abs(kept(bonus) - chance(bonus)) < 0.05


def test_the_mass_is_split_in_three(disturb, monkeypatch):
    monkeypatch.setattr(disturb, "judge", lambda conversation, answer: type("V", (), {"reward": float(len(answer))}))
    rows = [row("yes", "no") | {"task": {}} for _ in range(4)]
    shares, rewards = disturb.mass_of(rows, ["yes", "no", "well", " yes".strip()])
    assert shares == {"on_chosen": 0.5, "on_rejected": 0.25, "elsewhere": 0.25}
    assert rewards == [4.0]


def test_r_dpo_is_a_reference_shifted_by_length(disturb, world, pairs):
    """The loss of the first step is −log σ(α(|y_w| − |y_l|)), worked by hand."""
    given = disturb.shifted_by_length(0.2, 0.5)
    config = DPOConfig(beta=0.5, batch_size=4, max_steps=1, device="cpu")
    step = next(iter(train_dpo(world.new_policy(), None, pairs, config, cache=given)))
    lengths = pairs.completion_lengths
    by_hand = np.log1p(np.exp(-0.2 * (lengths[:, 0] - lengths[:, 1]))).mean()
    assert step.metrics["loss"] == pytest.approx(by_hand, abs=1e-4)


def test_a_reference_with_dropout_is_noisy_and_leaves_the_model_alone(disturb, world, pairs):
    model = copy.deepcopy(world.reference)
    noisy = disturb.scored_with_dropout(0.5, seed=0).logps(model, pairs).values
    rest = score(model, pairs)
    assert np.abs(noisy - rest).max() > 1e-3
    np.testing.assert_array_equal(noisy, disturb.scored_with_dropout(0.5, seed=0).logps(model, pairs).values)
    np.testing.assert_allclose(disturb.scored_with_dropout(0.0, seed=0).logps(model, pairs).values, rest, atol=1e-5)
    np.testing.assert_array_equal(score(model, pairs), rest)


def discounted(disturb, world, pairs, alpha: float) -> tuple[Any, Any]:
    config = DPOConfig(beta=0.5, batch_size=4, max_steps=1, device="cpu")
    nothing = np.zeros((len(pairs), 2), np.float32)
    loss = LOSSES["dpo"].bind(beta=0.5)
    engine = Engine(torch.device("cpu"))
    objective = disturb.TailDiscounted(pairs, None, config, "shared", engine, loss, 0.5, nothing, nothing, "live")
    objective.alpha, objective.reference_model = alpha, world.reference
    return objective, config


def test_ld_dpo_with_alpha_1_is_dpo_and_with_0_sees_the_heads_alone(disturb, world, pairs):
    policy = world.new_policy()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    indices, device = np.arange(4), torch.device("cpu")
    objective = lambda alpha: discounted(disturb, world, pairs, alpha)[0]
    loss_at = lambda alpha: float(objective(alpha).loss(Scorer(policy), indices, device)[0].detach())
    dpo = LOSSES["dpo"].bind(beta=0.5)

    def by_hand(rows: TokenData) -> float:
        logps, frozen = torch.from_numpy(score(policy, rows)), torch.from_numpy(score(world.reference, rows))
        lengths = torch.from_numpy(rows.completion_lengths).float()
        return float(dpo(PairScores(*logps.unbind(1), *frozen.unbind(1), *lengths.unbind(1))).sum())

    heads = []
    for i in range(4):
        one = pairs.row(i)
        short = min(map(len, one.completions))
        heads.append((one.prompt, tuple(completion[:short] for completion in one.completions)))
    assert loss_at(1.0) == pytest.approx(by_hand(pairs), abs=1e-4)
    assert loss_at(0.0) == pytest.approx(by_hand(TokenData.from_rows(heads)), abs=1e-4)
    assert make_batch(pairs, indices).lengths.min(1).values.tolist() == [2, 3, 2, 3]


def test_ld_dpo_trains(disturb, world, pairs):
    objective, config = discounted(disturb, world, pairs, 0.0)
    events = optimise(world.new_policy(), objective, objective.engine, config)
    steps = [event for event in events if hasattr(event, "metrics")]
    assert steps[0].metrics["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_the_cells_differ_and_name_their_failure(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    failures = importlib.import_module("failures")
    cells = failures.cells(2)
    assert (
        len({tuple(cell.values()) for cell in cells})
        == len(cells)
        == 2 * len(failures.cells(1)) - len(failures.RECORDED)
    )
    assert all(hasattr(failures.Lab, cell["failure"].replace("-", "_")) for cell in cells)
