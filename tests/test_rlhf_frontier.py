"""The experiment script: every cell is there once, rows of other settings are never mixed, tables say what rows say."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    path = ROOT / "data" / "experiments" / "frontier.py"
    spec = importlib.util.spec_from_file_location("frontier", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**fields: Any) -> dict[str, Any]:
    return {"method": "dpo", "knob": 0.5, "seed": 0} | fields


def test_cells_are_distinct_and_fewer_seeds_are_a_beginning(frontier):
    cells = frontier.cells(3)
    assert len(cells) == len(set(cells)) >= 20 * 3
    assert cells[: len(frontier.cells(2))] == frontier.cells(2)
    for cell in cells:
        assert hasattr(frontier.Lab, cell.method.replace("-", "_")), cell.method


def test_what_is_written_is_gone_on_with_under_the_same_settings_only(frontier, tmp_path):
    path, settings = tmp_path / "frontier.json", {"prompts": 4, "pairs": None}
    assert frontier.read(path, settings) == []
    frontier.write(path, settings, [row(reward=1.0)])
    assert frontier.read(path, settings) == [row(reward=1.0)]
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(SystemExit, match="name another --out"):
        frontier.read(path, {"prompts": 5, "pairs": None})


def test_the_table_has_a_line_per_method_and_knob(frontier):
    rows = [row(reward=1.0), row(seed=1, reward=2.0), row(knob=1.0, reward=3.0),
            row(method="best-of-n", knob=0.0, n=4, reward=5.0, **{"cost/models": 2.0})]  # fmt: skip
    lines = [
        line for line in frontier.table({"commit": "x"}, rows).splitlines() if line.startswith(("| dpo", "| best"))
    ]
    assert lines[0].startswith("| dpo | 0.5 | 2 | 1.500 ± 0.707 |")
    assert lines[1].startswith("| dpo | 1 | 1 | 3.000 |")
    assert lines[2].startswith("| best-of-n | 4 | 1 | 5.000 |")
    assert "| 2 |" in lines[2]
