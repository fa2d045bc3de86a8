"""The scripts of the two frontiers: every cell once, what is shared made once, nothing counted that is not there."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
from types import ModuleType

import pytest

from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.course.rlhf import PPOConfig, RewardConfig, RLOOConfig
from tests.conftest import ROOT


def script(name: str, monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "data" / "experiments"), *sys.path])
    return importlib.import_module(name)


@pytest.fixture
def frontier(monkeypatch) -> ModuleType:
    return script("frontier", monkeypatch)


@pytest.fixture
def exact(monkeypatch) -> ModuleType:
    return script("exact_frontier", monkeypatch)


def keys(cells):
    return [(cell["method"], cell["knob"], cell["seed"]) for cell in cells]


def test_cells_are_distinct_and_more_seeds_only_add(frontier, exact):
    for module in (frontier, exact):
        cells = keys(module.cells(3))
        assert len(cells) == len(set(cells))
        assert set(keys(module.cells(2))) < set(cells)
    trained = [cell for cell in keys(frontier.cells(3)) if cell[1] and not cell[0].startswith("tune")]
    assert len(trained) >= 20


def test_every_method_has_three_settings_and_can_be_run(frontier, exact):
    assert {len(knobs) for module in (frontier, exact) for knobs in module.SETTINGS.values()} == {3}
    for cell in frontier.cells(1):
        method = cell["method"]
        assert method in frontier.RATES or hasattr(frontier.Lab, method.replace("-", "_")), method


def test_what_others_need_comes_first(frontier):
    methods = [cell["method"] for cell in frontier.cells(2)]
    assert methods[:2] == ["reward-model"] * 2
    assert max(i for i, m in enumerate(methods) if m.startswith("tune")) < methods.index("rloo-learnt")


def test_what_has_to_be_chosen_exists(frontier):
    """The number of knobs that the costs show is that of knobs that the configurations have."""
    kinds = {"dpo": DPOConfig, "sft": SFTConfig, "rloo-learnt": RLOOConfig, "ppo-learnt": PPOConfig}
    names = lambda kind: {field.name for field in dataclasses.fields(kind)}
    for method, chosen in frontier.CHOICES.items():
        assert len(set(chosen)) == len(chosen)
        for knob in chosen:
            if knob in frontier.REWARD_MODEL:
                assert knob.split(": ")[1].replace(" ", "_") in names(RewardConfig)
            elif method in kinds:
                assert knob in names(kinds[method]), (method, knob)
    assert len(frontier.CHOICES["dpo"]) < len(frontier.CHOICES["rloo-learnt"]) < len(frontier.CHOICES["ppo-learnt"])


def test_the_best_rate_on_the_validation_prompts_is_taken(frontier):
    lab = frontier.Lab.__new__(frontier.Lab)
    rewards = {3e-4: 1.0, 1e-3: 2.0, 3e-3: -1.0}
    lab.tuned_run = lambda method, rate: {"reward": rewards[rate]}
    assert lab.rate("tune-rloo") == 1e-3


def test_in_the_exact_world_the_optimum_lacks_nothing(exact):
    lab = exact.Lab(argparse.Namespace(comparisons=64, epochs=1.0, rollouts=1))
    found = {beta: lab.run({"method": "frontier", "knob": beta, "seed": 0}) for beta in (0.25, 1.0)}
    assert found[0.25]["kl"] > found[1.0]["kl"] > 0
    assert found[0.25]["reward"] > found[1.0]["reward"]
    assert all(abs(row["shortfall"]) < 1e-3 for row in found.values())
    picked = lab.run({"method": "best-of-n", "knob": 4.0, "seed": 0})
    assert 0 < picked["shortfall"] < 0.2
    lab.arguments.epochs = 0.5
    trained = lab.run({"method": "dpo", "knob": 0.5, "seed": 0})
    assert trained["shortfall"] > 0
    assert {"objective", "total_variation", "from_sample"} <= trained.keys()
