"""Ten thousand rows that cannot be used: each is refused with its place and a reason; none gets through or crashes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dpo_lab.preferences import BadRow, read_pairs
from tests.hard.bad_rows import MISTAKES, bad_lines, bad_rows, good_row

GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_ten_thousand_bad_lines_are_each_refused_with_line_and_reason(tmp_path):
    lines = list(bad_lines(10_000))
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([json.dumps(GOOD).encode(), *lines]))
    rows, report = read_pairs(path, on_bad_row="skip")
    assert rows == [GOOD]
    assert report.rows_read == 10_001
    assert [problem.place.line for problem in report.bad] == list(range(2, 10_002))
    for problem in report.bad:
        where, _, what = str(problem).partition(": ")
        assert where == f"bad.jsonl, line {problem.place.line}"
        rule, remedy = what.rsplit("; ", 1)
        assert len(rule) > 8, problem
        assert len(remedy) > 5, problem


def test_bad_rows_in_memory_are_each_refused_by_index_and_the_first_stops_the_reading():
    named = list(bad_rows(3_000, seed=1))
    rows, report = read_pairs([GOOD, *(row for _, row in named)], on_bad_row="skip")
    assert rows == [GOOD]
    assert [problem.place.row for problem in report.bad] == list(range(1, 3_001))
    assert Counter(name for name, _ in named).keys() == {mistake.__name__.strip("_") for mistake in MISTAKES}
    for name, row in named[: 5 * len(MISTAKES)]:
        with pytest.raises(BadRow, match="the rows, row index 0: "):
            read_pairs([row])
        assert name


def test_the_rows_that_the_mistakes_are_made_in_are_good():
    from random import Random

    random = Random(0)
    rows = [good_row(random) for _ in range(300)]
    kept, report = read_pairs(rows)
    assert len(kept) == 300
    assert not report.bad
