"""kill -9 at random moments: five kills in every run of the tests, fifty and more with --run-slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import in_fresh_process


def campaign(folder: Path, kills: dict[str, int], timeout: float, seed: int = 0) -> dict[str, dict[str, int]]:
    told = in_fresh_process(f"tests.hard.kills.campaign({str(folder)!r}, {kills!r}, {seed})", timeout)
    report = json.loads(told.splitlines()[-1])
    for name, num in kills.items():
        assert report[name]["kills"] == num
    return report


def test_five_kills_change_nothing(tmp_path):
    campaign(tmp_path / "work", {"train": 2, "cache": 1, "sweep": 1, "label": 1}, timeout=240)


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path):
    kills = {"train": 18, "fresh": 4, "cache": 12, "sweep": 8, "label": 12}
    report = campaign(tmp_path / "work", kills, timeout=3000, seed=1)
    print(json.dumps(report))
    assert sum(one["kills"] for one in report.values()) >= 50


def test_two_rounds_of_faults_that_meet_lose_and_mix_nothing(tmp_path):
    together(tmp_path / "work", 2, timeout=400)


@pytest.mark.slow
def test_twenty_rounds_of_faults_that_meet_lose_and_mix_nothing(tmp_path):
    print(json.dumps(together(tmp_path / "work", 20, timeout=3000, seed=1)))


def together(folder: Path, num: int, timeout: float, seed: int = 0) -> dict[str, dict[str, int]]:
    seen = in_fresh_process(f"tests.hard.together.rounds({str(folder)!r}, {num}, {seed})", timeout)
    report = json.loads(seen.splitlines()[-1])
    assert all(one["rounds"] == num for one in report.values())
    return report
