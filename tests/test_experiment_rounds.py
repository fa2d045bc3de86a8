"""The experiment on rounds: every method is judged as often, and a run that is cut short compares all of them."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "data" / "experiments"), *sys.path])
    yield importlib.import_module("rounds")
    sys.modules.pop("rounds", None)


def test_every_seed_runs_every_method_once(experiment):
    found = experiment.cells(3)
    assert len({tuple(cell.values()) for cell in found}) == len(found)
    of = lambda seed: [(cell["method"], cell["judge"]) for cell in found if cell["seed"] == seed]
    assert of(0) == of(1) == of(2)
    assert {(f"semi-online-{n}", "true") for n in experiment.INTERVALS} < set(of(0))


def test_all_methods_have_as_many_answers_judged_and_as_many_steps(experiment):
    sizes = {"steps": 8, "prompts": 8, "test-prompts": 4, "judge-pairs": 4, "better-pairs": 8}
    lab = experiment.Lab(experiment.options().parse_args([f"--{name}={size}" for name, size in sizes.items()]))
    rows = {}
    for method in ("base", "offline", "better-model", "semi-online-4", "online", "rloo", "eight"):
        row = rows[method] = lab.run({"method": method, "judge": "true", "seed": 0})
        if method != "base":
            assert (row["judged_answers"], row["steps"]) == (8 * experiment.ANSWERS, 8)
            assert [look.get("step") for look in row["looks"]] == [4, None]
            assert row["kl"] != pytest.approx(0, abs=1e-4)
    assert rows["base"]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows["better-model"]["judged"] != rows["offline"]["judged"]
    pushed = lab.run({"method": "pushed", "judge": "learnt", "seed": 0})
    assert pushed["learnt"] == pushed["looks"][-1]["judge"] != pushed["reward"]


def test_the_means_of_each_quarter_of_the_judged_answers(experiment):
    assert experiment.quarters([(2, 2.0, 4.0)] * 4) == [[1.0, 2.0]] * 4
    assert experiment.quarters([(8, 8.0, 0.0), (8, 16.0, 8.0)]) == [[1.0, 0.0], [2.0, 1.0]]
