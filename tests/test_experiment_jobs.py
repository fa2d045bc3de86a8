"""The experiment on the four jobs: what its cells learn from, what its rows keep, what its tables tell."""

from __future__ import annotations

import importlib
import sys

import pytest

from dpo_lab.course.saved_results import seeds_of
from dpo_lab.course.statistics.jobs import judge_answers
from dpo_lab.workbench.labels import wilson
from tests.conftest import ROOT
from tests.test_evaluation_jobs import ROWS, TOOLS


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "data" / "experiments"), *sys.path])
    return importlib.import_module("jobs")


PAIRS = [
    {"job": "safety", "task": {"harmful": True}},
    {"job": "safety", "task": {"harmful": False}},
    {"job": "system", "task": {"override": True}},
    {"job": "system", "task": {"override": False}},
    {"job": "tools", "task": {"case": "call"}},
    {"job": "format", "task": {"kind": "json"}},
]


def test_a_policy_learns_from_the_pairs_that_its_name_says(jobs):
    found = {name: jobs.rows_of(PAIRS, name) for name in (*jobs.JOBS, *jobs.PARTS, "all", "all twice")}
    assert found == {
        "safety": [0, 1], "system": [2, 3], "format": [5], "tools": [4], "harmful requests": [0],
        "harmless requests": [1], "system, no attacks": [3], "all": [0, 1, 2, 3, 4, 5], "all twice": [0, 1, 2, 3, 4, 5],
    }  # fmt: skip
    assert set(jobs.OWN_JOB) == set(jobs.PARTS)


def test_every_seed_runs_every_policy_once(jobs):
    found = [tuple(cell.values()) for cell in jobs.cells(3)]
    assert len(set(found)) == len(found) == 3 * 12
    assert {seed for *_, seed in found[:12]} == {0}


def test_attacked_prompts_are_the_same_prompts(jobs):
    found = jobs.attack_prompts(7)
    assert [len(some) for some in found.values()] == [7, 7, 7]
    for plain, known, new in zip(*found.values(), strict=True):
        assert not plain.task["override"]
        asked = plain.messages[-1]["content"]
        assert known.messages[-1]["content"].startswith(f"{asked} ")
        assert new.messages[-1]["content"].startswith(f"{asked} ")
        assert known.messages[:-1] == plain.messages[:-1]
    assert len({one.messages[-1]["content"].removeprefix(plain.messages[-1]["content"])
                for one, plain in zip(found["new"], found["none"], strict=True)}) == 3  # fmt: skip


def test_letters_and_counts_keep_what_intervals_are_made_from(jobs):
    assert jobs.bits(TOOLS[:7]) == "1000001"
    assert jobs.counted(wilson(3, 4)) == [3, 4]
    assert jobs.counted(wilson(0, 0)) == [0, 0]
    assert judge_answers([], []) == []


def test_the_page_tells_intervals_and_leaves_out_what_was_not_judged(jobs):
    rows = [{**row, "successes": dict.fromkeys(jobs.JOBS, row["successes"]["safety"])} for row in ROWS]
    rows.append({"method": "DPO", "trained": "harmful requests", "seed": 0, "refusals": {"harmful": [1, 2],
                 "harmless": [2, 2]}})  # fmt: skip
    page = jobs.with_intervals(rows)
    success, declined = page.split("## Success")[1].split("## ")[0], page.split("## Declined")[1].split("## ")[0]
    share = wilson(3.5, 4)
    assert f"| DPO on all | 0.875 [{share.low:.3f}, {share.high:.3f}] of 4 |" in success
    assert "harmful requests" not in success
    assert "| DPO on harmful requests | 0.500 " in declined
    assert len(seeds_of(rows, ("DPO", "all"))) == 2
