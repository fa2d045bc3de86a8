"""The small experiment of notebook 17: three samplers, everything else equal, three numbers for each fifth of a run."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "data" / "experiments"), *sys.path])
    return importlib.import_module("offline_online")


def test_every_seed_runs_every_sampler_once(experiment):
    found = experiment.cells(3)
    assert len({tuple(cell.values()) for cell in found}) == len(found) == 9
    assert [cell["method"] for cell in found[:3]] == ["offline", "semi-online", "online"]
    assert {cell["seed"] for cell in found[:3]} == {0}


def test_samplers_differ_in_whose_answers_they_learn_from_and_in_nothing_else(experiment, monkeypatch):
    for name, value in {"rounds": 2, "prompts": 4, "steps": 2, "batch_size": 2}.items():
        monkeypatch.setitem(experiment.SETTINGS, name, value)
    lab = experiment.Lab(experiment.parser(None).parse_args([]))
    lab.test = lab.test[:4]
    rows = {cell["method"]: lab.run(cell) for cell in experiment.cells(1)}
    assert {row["sampled_answers"] for row in rows.values()} == {2 * 4 * 4}
    for row in rows.values():
        assert [len(row[name]) for name in ("judged_in_training", "mixed", "kl_on_the_way", "accuracy")] == [2] * 4
        assert row["kl"] != pytest.approx(0, abs=1e-5)
    # The first answers are the same; only the offline run's own answers, by which KL is measured, are others.
    assert rows["offline"]["mixed"][0] == rows["semi-online"]["mixed"][0]
    assert rows["semi-online"]["kl_on_the_way"][0] == pytest.approx(0, abs=1e-5)
