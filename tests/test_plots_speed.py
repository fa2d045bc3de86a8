"""Pictures of time and memory: they draw what they were given, once, and refuse what they can't."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.course.plots.speed import (
    plot_layouts,
    plot_memory,
    plot_queue,
    plot_rates,
    plot_running_sums,
    plot_waterfall,
)
from dpo_lab.course.speed.simulated_gpu import SimulatedGPU
from dpo_lab.workbench.plots import to_png

CURVE = {
    "seconds": [0.0, 0.1, 0.2, 0.3], "weights": [4096] * 4, "moments": [0, 0, 0, 8192], "gradients": [0, 0, 4096, 0],
    "kept": [0, 20480, 2048, 0], "device": None, "phases": [["forward", 0], ["backward", 1], ["step", 3]],
}  # fmt: skip


def texts(ax):
    return [text.get_text() for text in ax.texts]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_rates_are_drawn_in_billions():
    ax = plot_rates({"float32": [(64, 2e9), (128, 3e9)], "$x$": [[64, 1e9], [256, 5e11]]})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2, 3])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [1, 500])
    assert labels(ax) == ["float32", r"\$x\$"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "128", "256"]
    to_png(ax.figure)
    with pytest.raises(ValueError, match="at least one"):
        plot_rates({"float32": []})


def test_a_queue_shows_writing_work_and_clocks():
    device = SimulatedGPU(launch=1, run=6)
    for _ in range(3):
        device.launch()
    ax = plot_queue(device.history, {"too early": device.clock(), "after waiting": 19.0})
    device_bars = [bar for bar in ax.patches if bar.get_y() < 0.5]
    assert [(bar.get_x(), bar.get_width()) for bar in device_bars] == [(1, 6), (7, 6), (13, 6)]
    assert labels(ax) == ["too early: 3 ms", "after waiting: 19 ms"]
    to_png(ax.figure)
    with pytest.raises(ValueError, match="launch some first"):
        plot_queue([], {})


def test_layouts_are_drawn_without_losing_a_token():
    figure = plot_layouts([[1, 1, 2, 0], [1, 1, 3, 3]], [[1, 1, 2, 3, 3], [1, 2, 3]])
    separate, shared = figure.axes
    grids = [np.asarray(ax.images[0].get_array()) for ax in (separate, shared)]
    np.testing.assert_array_equal(grids[0], [[2, 2, 3, 1], [2, 2, 4, 4]])
    np.testing.assert_array_equal(grids[1], [[2, 2, 3, 4, 4], [2, 3, 4, 0, 0]])
    assert "8 tokens" in separate.get_title(loc="left")
    assert "8 tokens" in shared.get_title(loc="left")
    assert separate.get_xlim() == shared.get_xlim()
    to_png(figure)


def test_memory_is_stacked_in_its_own_unit():
    ax = plot_memory(CURVE)
    assert ax.get_ylabel() == "KiB held"
    highest = max(path.vertices[:, 1].max() for area in ax.collections for path in area.get_paths())
    assert highest == pytest.approx(24)
    assert [text.strip() for text in texts(ax)] == ["forward", "backward", "step"]
    assert "torch's own meter" not in labels(ax)
    watched = plot_memory(CURVE | {"device": [5000, 30000, 9000, 12288]}, top=2**20)
    assert watched.get_ylabel() == "MiB held"
    assert "torch's own meter" in labels(watched)
    to_png(ax.figure)


def test_running_sums_are_drawn_token_by_token():
    ax = plot_running_sums({"float32": [-1.0, -3.0, -6.0], "$b$": [-1, -2, -2]})
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, -1], [2, -3], [3, -6]])
    assert labels(ax) == ["float32: -6 nats", r"\$b\$: -2 nats"]
    to_png(ax.figure)
    with pytest.raises(ValueError, match="no sum"):
        plot_running_sums({})


def test_a_waterfall_shows_what_each_change_won_or_lost():
    figure = plot_waterfall({"this machine": {"naive": 10.0, "sorted": 25.0, "bf16": 20.0}})
    (ax,) = figure.axes
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 10), (10, 0), (0, 10), (10, 15), (0, 20), (20, 5)]
    assert [text.strip() for text in texts(ax)] == ["10", "25  (× 2.5)", "20  (× 0.8)"]
    assert ax.get_title(loc="left").startswith("Pairs per second")
    to_png(figure)
    two = plot_waterfall({"a CPU": {"naive": 1.0}, "a GPU": {"naive": 1000.0, "sorted": 2000.0}})
    assert [ax.get_title(loc="left") for ax in two.axes] == ["a CPU", "a GPU"]
    with pytest.raises(ValueError, match="at least one way"):
        plot_waterfall({"a CPU": {}})
