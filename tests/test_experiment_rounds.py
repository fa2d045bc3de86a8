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


def test_every_seed_runs_every_method_at_as_many_rates(experiment):
    found = experiment.cells(3)
    assert len({tuple(cell.values()) for cell in found}) == len(found) == 3 * 16
    assert {cell["seed"] for cell in found[:16]} == {0}
    for method in ("offline", "semi-online", "online", "rloo", "grpo"):
        assert len({cell["knob"] for cell in found if cell["method"] == method}) == 3


def test_all_methods_have_as_many_answers_judged(experiment):
    arguments = experiment.options().parse_args(["--rounds", "2", "--prompts", "4", "--steps", "2", "--test-prompts",
                                                 "4"])  # fmt: skip
    lab = experiment.Lab(arguments)
    rows = {}
    for method in ("base", "offline", "semi-online", "online", "rloo", "grpo"):
        rows[method] = lab.run({"method": method, "knob": "0.001", "seed": 0})
    assert {row.get("judged_answers") for row in rows.values()} == {None, 2 * 4 * experiment.ANSWERS}
    assert {method: row.get("steps") for method, row in rows.items()} == {
        "base": None, "offline": 4, "semi-online": 4, "online": 4, "rloo": 2, "grpo": 2,
    }  # fmt: skip
    assert rows["base"]["kl"] == pytest.approx(0, abs=1e-4)
    assert all(row["kl"] != pytest.approx(0, abs=1e-4) for method, row in rows.items() if method != "base")
