"""Pictures of sweeps and of the map: what stands in them is what the rows say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dpo_lab.course.plots.hyperparameter_map import (
    describe_spread,
    map_figure,
    plot_accuracy_against_form,
    plot_map,
    plot_spread,
    table_of,
)
from dpo_lab.course.saved_results import read_map
from dpo_lab.workbench.plots import to_png
from dpo_lab.workbench.plots.sweeps import (
    describe_sweep,
    plot_history,
    plot_importance,
    plot_slice,
    sweep_figure,
)

TRIALS = [
    {"trial": 0, "state": "complete", "value": 0.6, "beta": 0.1, "loss": "dpo", "looks": {1: 0.55, 2: 0.6}},
    {"trial": 1, "state": "pruned", "value": None, "beta": 0.9, "loss": "ipo", "looks": {1: 0.4}},
    {"trial": 2, "state": "complete", "value": 0.8, "beta": 0.3, "loss": "ipo", "looks": {1: 0.7, 2: 0.8}},
    {"trial": 3, "state": "complete", "value": 0.7, "beta": 0.5, "loss": "dpo", "looks": {1: 0.7, 2: 0.7}},
    {"trial": 4, "state": "running", "value": None, "beta": 0.2, "loss": "dpo", "looks": {}},
    {"trial": 5, "state": "waiting", "value": None, "beta": None, "loss": None, "looks": {}},
]
CELLS = [
    {"beta": beta, "learning_rate": rate, "seed": 0, "reward": beta + rate, "kl": rate / beta, "accuracy": 0.8,
     "well_formed": 1 - rate}
    for beta in (0.5, 0.1) for rate in (2e-4, 1e-3)
]  # fmt: skip


@pytest.mark.parametrize(("is_larger_better", "best"), [(True, [0.6, 0.8, 0.8]), (False, [0.6, 0.6, 0.6])])
def test_history_shows_values_and_the_best_so_far(is_larger_better, best):
    lines = {
        line.get_label(): line for line in plot_history(TRIALS, "x", is_larger_better=is_larger_better).get_lines()
    }
    assert list(lines["best so far"].get_ydata()) == best
    assert list(lines["complete"].get_xdata()) == [0, 2, 3]
    assert list(lines["pruned, at its last look"].get_ydata()) == [0.4]


def test_a_slice_has_the_complete_trials_at_their_value_of_the_knob():
    ax = plot_slice(TRIALS, "beta", "accuracy", is_log=True)
    assert ax.get_xscale() == "log"
    assert np.asarray(ax.collections[0].get_offsets()).tolist() == [[0.1, 0.6], [0.3, 0.8], [0.5, 0.7]]
    names = plot_slice(TRIALS, "loss", "accuracy")
    assert [label.get_text() for label in names.get_xticklabels()] == ["dpo", "ipo"]


def test_importance_is_a_bar_for_each_knob_with_its_share():
    ax = plot_importance({"beta": 0.2, "learning_rate": 0.8})
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.8]
    assert {text.get_text() for text in ax.texts} == {"20%", "80%"}
    assert "complete trials" in plot_importance({}).texts[0].get_text()


@pytest.mark.parametrize("rows", [[], TRIALS, TRIALS[:1], TRIALS[4:]])
def test_a_sweep_is_drawn_at_every_stage(rows):
    figure = sweep_figure(rows, {"beta": True, "loss": False}, "accuracy", title="a $weird$ <title>")
    assert to_png(figure)[:4] == b"\x89PNG"
    assert describe_sweep(rows, ["beta", "loss"], "accuracy").startswith(f"{len(rows)} trials")


def test_the_words_name_the_best():
    assert "the best, 0.8, is trial 2 with beta 0.3, loss ipo" in describe_sweep(TRIALS, ["beta", "loss"], "accuracy")
    assert "the best, 0.6, is trial 0" in describe_sweep(TRIALS, ["beta"], "loss", is_larger_better=False)


def test_a_map_is_sorted_and_leaves_gaps_where_no_cell_is():
    betas, rates, values = table_of(CELLS[:3], "reward")
    assert (betas, rates) == ([0.1, 0.5], [2e-4, 1e-3])
    assert values[0, 0] == pytest.approx(0.1002)
    assert values[1].tolist() == pytest.approx([0.5002, 0.501])
    assert math.isnan(values[0, 1])


def test_every_cell_has_its_number_in_a_colour_that_can_be_read():
    ax = plot_map(CELLS, "kl")
    assert {text.get_text() for text in ax.texts} == {"0.00", "0.01"}
    assert {text.get_color() for text in ax.texts} <= {"black", "white"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2e-4", "1e-3"]
    assert to_png(map_figure(CELLS, ["reward", "kl", "accuracy"], title="t"))[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="rows are empty"):
        plot_map([], "kl")


def test_seeds_are_points_beside_their_mean_and_deviation():
    ax = plot_spread({"a": [0.5, 0.7], "b": [0.9]}, "success")
    assert list(ax.get_lines()[0].get_ydata()) == [0.5, 0.7]
    assert describe_spread({"a": [0.5, 0.7], "b": [0.9]}).endswith("a 0.6 ± 0.14; b 0.9.")
    with pytest.raises(ValueError, match="at least one value"):
        plot_spread({"a": []}, "success")


def test_one_deviation_for_all_where_each_has_too_few_seeds():
    ax = plot_spread({"a": [0.5, 0.7], "b": [0.9]}, "success", pooled=0.05)
    bars = [container.lines[2][0].get_segments()[0] for container in ax.containers]
    assert [bar[1][1] - bar[0][1] for bar in bars] == pytest.approx([0.1, 0.1])


def test_the_outlined_cell_has_a_frame_and_no_other():
    ax = plot_map(CELLS, "kl", outlined=CELLS[0])
    betas, rates, _ = table_of(CELLS, "kl")
    (frame,) = ax.patches
    assert frame.get_xy() == (rates.index(CELLS[0]["learning_rate"]) - 0.5, betas.index(CELLS[0]["beta"]) - 0.5)
    assert not plot_map(CELLS, "kl").patches


def test_accuracy_and_form_are_two_curves():
    ax = plot_accuracy_against_form(CELLS[:2], ["2e-4", "1e-3"])
    assert [line.get_label() for line in ax.get_lines()][:2] == ["held-out pairs ranked right", "well-formed answers"]


def test_the_kept_map_is_read_with_its_seeds_apart(tmp_path):
    rows = [*CELLS, CELLS[0] | {"seed": 1}, CELLS[0] | {"seed": 2}]
    (tmp_path / "map.json").write_text(json.dumps({"made": {"pairs": 10}, "rows": rows}))
    made, cells, repeats = read_map(tmp_path / "map.json")
    assert made == {"pairs": 10}
    assert cells == CELLS
    assert {cell: len(runs) for cell, runs in repeats.items()} == {(0.5, 2e-4): 3}
    with pytest.raises(ValueError, match=r"python data/hyperparameter_map\.py"):
        read_map(tmp_path / "none.json")


def test_with_few_knobs_all_stand_in_one_row():
    row = {"trial": 0, "state": "complete", "value": 1.0, "beta": 0.1, "epochs": 1, "seed": 2}
    for knobs, rows in ((("beta",), 1), (("beta", "epochs"), 1), (("beta", "epochs", "seed"), 2)):
        figure = sweep_figure([row], dict.fromkeys(knobs, False), "reward")
        figure.draw_without_rendering()
        assert len(figure.axes) == 2 + len(knobs)
        assert len({round(ax.get_position().y0, 1) for ax in figure.axes}) == rows
