"""The experiments' common part: cells run once, kept as they are done, never mixed with rows of other settings."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "data" / "experiments"


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    return importlib.import_module("harness")


class Lab:
    """Measures the square of the knob; fails where it is told to."""

    def __init__(self, arguments):
        self.arguments = arguments

    def run(self, cell):
        if cell["knob"] == self.arguments.fail_at:
            raise ValueError(f"no answer at {cell['knob']}")
        return [{"square": cell["knob"] ** 2 + cell["seed"]}]


CELLS = [{"method": "square", "knob": knob, "seed": seed} for knob in (1.0, 2.0) for seed in (0, 1)]


def carry_out(harness, tmp_path, *options, fail_at=None, scale=1, lab=Lab):
    arguments = harness.parser("An experiment.").parse_args(["--out", str(tmp_path / "it.json"), *options])
    arguments.fail_at = fail_at
    about = harness.Experiment("it", "It", "What it is.", ["square"], {"scale": scale})
    return harness.carry_out(about, CELLS, lab, arguments)


def test_each_cell_gives_a_row_and_each_group_a_line(harness, tmp_path):
    rows = carry_out(harness, tmp_path, "--workers", "1")
    assert [(row["knob"], row["seed"], row["square"]) for row in rows] == [(1, 0, 1), (1, 1, 2), (2, 0, 4), (2, 1, 5)]
    kept = json.loads((tmp_path / "it.json").read_text())
    assert kept["rows"] == rows
    assert kept["settings"]["scale"] == 1
    assert "commit" in kept["made"]
    lines = (tmp_path / "it.md").read_text().splitlines()
    assert "| square | 2 | 2 | 4.50 ± 0.71 |" in lines


def test_two_processes_give_the_rows_of_one(harness, tmp_path):
    alone = carry_out(harness, tmp_path / "one", "--workers", "1")
    both = carry_out(harness, tmp_path / "two", "--workers", "2")
    take = lambda rows: [(row["knob"], row["seed"], row["square"]) for row in rows]
    assert take(both) == take(alone)


def test_a_failure_keeps_what_was_done_and_a_second_start_runs_the_rest(harness, tmp_path):
    with pytest.raises(ValueError, match=r"no answer at 2"):
        carry_out(harness, tmp_path, "--workers", "1", fail_at=2.0)
    kept = json.loads((tmp_path / "it.json").read_text())["rows"]
    assert [row["knob"] for row in kept] == [1, 1]
    ran = []

    class Counted(Lab):
        def run(self, cell):
            ran.append(cell)
            return super().run(cell)

    assert len(carry_out(harness, tmp_path, "--workers", "1", lab=Counted)) == 4
    assert [cell["knob"] for cell in ran] == [2.0, 2.0]


def test_anew_runs_every_cell_again(harness, tmp_path):
    carry_out(harness, tmp_path, "--workers", "1", scale=1)
    with pytest.raises(SystemExit, match=r"made with other settings .* Measure all of it anew with --anew"):
        carry_out(harness, tmp_path, "--workers", "1", scale=2)
    assert len(carry_out(harness, tmp_path, "--workers", "1", "--anew", scale=2)) == 4
    kept = json.loads((tmp_path / "it.json").read_text())
    assert kept["settings"]["scale"] == 2
    assert len(kept["rows"]) == 4


def test_a_result_names_the_commit_of_every_start_that_gave_rows(harness, tmp_path, monkeypatch):
    for commit in ("aaaaaaa", "bbbbbbb", "bbbbbbb"):
        monkeypatch.setattr(harness, "made_with", lambda command, commit=commit: {"commit": commit})
        carry_out(harness, tmp_path, "--workers", "1", *(("--only", "1.0") if commit == "aaaaaaa" else ()))
    assert json.loads((tmp_path / "it.json").read_text())["made"]["commit"] == "aaaaaaa, bbbbbbb"


def test_only_the_cells_that_are_named(harness, tmp_path):
    assert [row["knob"] for row in carry_out(harness, tmp_path, "--workers", "1", "--only", "2.0")] == [2, 2]


def test_rows_of_other_settings_are_refused(harness, tmp_path):
    carry_out(harness, tmp_path, "--workers", "1")
    with pytest.raises(SystemExit, match=r"'scale': \(1, 2\)"):
        carry_out(harness, tmp_path, "--workers", "1", scale=2)


def test_a_table_shows_digits_that_mean_something(harness):
    column = lambda *values: harness.spread([{"x": value} for value in values], "x")
    assert column(2e-4, 2e-4, 2e-4) == "0.0002"  # a learning rate
    assert column(0.0, 0.0) == column(-3e-17, 1e-9) == "0"
    assert column(560, 560) == "560"
    assert column(0.6931471824645996, 0.6931471226599541) == "0.693"  # equal to rounding
    assert column(1.9, 2.1, 2.3) == "2.10 ± 0.20"
    assert column(40.0, 142.0, 230.0) == "137 ± 95"
    assert column(0.0123, 0.0125) == "0.01240 ± 0.00014"
    assert column(55_849.0) == "55,849"
    assert column(82.208) == "82.2"
    assert column(None) == ""
    assert column("a", "b", "a") == "a, b"
    assert [harness.shown(value) for value in (3, 3.0, 5e-5, 2.0583, 999.7, math.nan)] == [
        "3", "3", "5e-05", "2.06", "1,000", "nan"]  # fmt: skip


@pytest.mark.parametrize("name", ["exact_frontier", "failures", "family", "jobs", "offline_online", "real_model",
                                  "real_preferences", "rlhf_frontier"])  # fmt: skip
def test_the_saved_pages_are_what_is_written_of_the_saved_rows(harness, name):
    rows = json.loads((harness.RESULTS / f"{name}.json").read_text())["rows"]
    lines = (harness.RESULTS / f"{name}.md").read_text().splitlines()
    head = next(i for i, line in enumerate(lines) if " | runs | " in line)
    names = lines[head].strip("| ").split(" | ")
    group, columns = names[: names.index("runs")], names[names.index("runs") + 1 :]
    about = harness.Experiment(name, "", "", columns, {}, group_by=group)
    table = harness.table(about, {}, rows).strip().splitlines()[-len(harness.grouped(rows, group)) :]
    assert lines[head + 2 : head + 2 + len(table)] == table
