"""Full disks, closed folders, changed bytes and a jumping clock, under the commands that a user calls."""

from __future__ import annotations

import json
import sys

import pytest

from tests.faults import in_fresh_process
from tests.hard import shim

ROOM = "tests.hard.surroundings"


def test_a_disk_that_fills_up_is_told_and_with_room_again_it_goes_on(tmp_path):
    levels = {"train": 1, "cache": 1, "sweep": 1, "label": 1}
    call = f"{ROOM}.fill_disk({str(tmp_path / 'work')!r}, {levels})"
    assert json.loads(in_fresh_process(call, 240, **shim.built(tmp_path)).splitlines()[-1]) == levels


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_of_many_moments(tmp_path):
    levels = {"train": 12, "cache": 8, "sweep": 6, "label": 12}
    call = f"{ROOM}.fill_disk({str(tmp_path / 'work')!r}, {levels}, seed=1)"
    assert json.loads(in_fresh_process(call, 1800, **shim.built(tmp_path)).splitlines()[-1]) == levels


def test_a_clock_that_jumps_by_days_changes_nothing(tmp_path):
    call = f"{ROOM}.jump_clock({str(tmp_path / 'work')!r})"
    assert "done" in in_fresh_process(call, 240, **shim.built(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="root's rights are put off as Linux knows them")
def test_what_may_not_be_read_or_written_is_told_even_to_root(tmp_path):
    assert int(in_fresh_process(f"{ROOM}.close_folders({str(tmp_path / 'work')!r})", 240)) == 10


def test_a_changed_byte_is_named_or_makes_no_difference(tmp_path):
    told = in_fresh_process(f"{ROOM}.change_bytes({str(tmp_path / 'work')!r}, 6)", 240)
    assert sum(json.loads(told.splitlines()[-1]).values()) == 6


@pytest.mark.slow
def test_sixty_changed_bytes_are_named_or_make_no_difference(tmp_path):
    told = in_fresh_process(f"{ROOM}.change_bytes({str(tmp_path / 'work')!r}, 60, seed=1)", 1800)
    assert sum(json.loads(told.splitlines()[-1]).values()) == 60
