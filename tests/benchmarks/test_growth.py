"""How time and memory grow, as a test: table and figure go to build/; it fails where a target is missed by far."""

from __future__ import annotations

import pytest

from tests.benchmarks import growth
from tests.benchmarks.machine import LATEST


@pytest.mark.slow
def test_growth_is_flat_or_linear(capsys):
    found = growth.measure(threads=2)
    growth.write(found, LATEST)
    with capsys.disabled():
        print("\n" + growth.table(found))
    few, _, many = found["series"]["pairs"]
    assert many["pairs_per_second"] >= 0.8 * few["pairs_per_second"]
    assert many["peak_memory"] <= 1.25 * few["peak_memory"]
    assert found["cache"]["warm_computed"] == 0
    assert found["cache"]["tenth_computed"] == 200
    points = [row for rows in found["series"].values() for row in rows]
    rates = [row["flops_per_pair"] * row["pairs_per_second"] for row in points]
    assert max(rates) <= 2 * min(rates)  # what grows is the work, and nothing else
