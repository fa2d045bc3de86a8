"""Runs side by side: what differs, the curves, the answers, the table; in the panel and from plain functions."""

from __future__ import annotations

import csv
import io
import re
from html import unescape

import pytest

pytest.importorskip("ipywidgets")

from dpo_lab.storage.files import append_line
from dpo_lab.workbench.plots import describe_watch, over_seeds, plot_runs, to_png, watch_figure
from dpo_lab.workbench.plots.overlays import WATCHED
from dpo_lab.workbench.runs import (
    Run,
    answers_side_by_side,
    compare_runs,
    comparison_csv,
    comparison_frame,
    load_runs,
    run_labels,
    seed_groups,
    settings_that_differ,
)
from dpo_lab.workbench.widgets import Comparer
from dpo_lab.workbench.widgets.comparer import answer_columns


def rows_of(scale: float, num: int = 6) -> list[dict]:
    metrics = lambda step: {
        "loss": 0.7 / (1 + scale * step), "rewards/margins": scale * step, "rewards/accuracies": 0.5 + 0.05 * step,
        "rewards/chosen": scale * step / 2, "rewards/rejected": -scale * step / 2,
    }  # fmt: skip
    steps = [{"kind": "step", "step": i, **metrics(i), "seconds": float(i)} for i in range(1, num + 1)]
    held = [
        {"kind": "evaluation", "step": i, **{f"eval_{name}": value for name, value in metrics(i).items()},
         "eval_true_reward": scale + i, "seconds": float(i)}
        for i in (0, num)
    ]  # fmt: skip
    return sorted(steps + held, key=lambda row: row["step"])


def made_run(folder, *, beta: float, scale: float = 1.0, samples=(), **settings) -> Run:
    run = Run.create(
        folder, {"command": "train", "settings": {"model": "embedded", "beta": beta, "seed": 0} | settings}
    )
    for row in rows_of(scale):
        append_line(folder / "metrics.jsonl", row)
    run.add_samples(samples)
    return run


def sample(prompt: str, after: str, **more) -> dict:
    return {"prompt": prompt, "before": "as it was", "after": after, "chosen": "good", "rejected": "bad"} | more


@pytest.fixture
def runs(tmp_path):
    return [
        made_run(tmp_path / "runs" / "a", beta=0.1, samples=[sample("p1", "a1", reward_after=1.5), sample("p2", "a2")]),
        made_run(tmp_path / "runs" / "b", beta=0.5, scale=2.0, samples=[sample("p1", "b1")]),
        made_run(tmp_path / "runs" / "c", beta=0.5, scale=3.0, seed=1, samples=[sample("p3", "c3", before="other")]),
    ]


def plain(html: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", html))


# ── plain functions ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_differ_and_labels(runs):
    assert settings_that_differ(runs) == {"beta": [0.1, 0.5, 0.5], "seed": [0, 0, 1]}
    assert settings_that_differ(runs[:1]) == {}
    by_hand = Run.create(runs[0].folder.parent.parent / "by-hand", {"command": "train", "settings": {"beta": 0.1}})
    assert settings_that_differ([runs[0], by_hand]) == {}  # it records no seed, which is no other seed
    assert [[run.folder.name for run in group] for group in seed_groups([*runs, by_hand])] == [
        ["a"],
        ["b", "c"],
        ["by-hand"],
    ]
    assert run_labels(runs) == ["a: beta 0.1, seed 0", "b: beta 0.5, seed 0", "c: beta 0.5, seed 1"]
    assert run_labels(runs[1:]) == ["b: seed 0", "c: seed 1"]
    assert run_labels(runs[:1]) == ["a"]
    assert run_labels([]) == []


def test_the_table_as_pandas_and_as_csv_say_what_compare_runs_says(runs, tmp_path):
    rows = compare_runs(runs)
    frame = comparison_frame(runs)
    assert frame.index.tolist() == ["a", "b", "c"]
    for row in rows:
        for name, value in row.items():
            if name != "run" and value is not None:
                assert frame.loc[row["run"], name] == value
    text = comparison_csv(runs, tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text() == text
    back = list(csv.DictReader(io.StringIO(text)))
    assert [row["run"] for row in back] == ["a", "b", "c"]
    assert [float(row["eval_rewards/margins"]) for row in back] == [row["eval_rewards/margins"] for row in rows]
    assert float(back[1]["eval_true_reward"]) == 8.0


def test_a_csv_needs_a_name_that_can_be_written(runs, tmp_path):
    with pytest.raises(ValueError, match=r"must end in .csv"):
        comparison_csv(runs, tmp_path / "runs.txt")
    with pytest.raises(ValueError, match="cannot be written: give the name of a file in a folder that exists"):
        comparison_csv(runs, tmp_path / "nowhere" / "runs.csv")


def test_answers_side_by_side_are_joined_by_the_prompt(runs):
    rows = answers_side_by_side(runs)
    assert [row["prompt"] for row in rows] == ["p1", "p2", "p3"]
    assert {name: one["after"] for name, one in rows[0]["runs"].items()} == {"a": "a1", "b": "b1"}
    assert rows[0]["chosen"] == "good"
    assert list(rows[2]["runs"]) == ["c"]


def test_columns_of_answers_tell_each_start_where_they_differ(runs):
    rows = answers_side_by_side(runs)
    assert answer_columns(rows[0], ["a", "b", "c"]) == {
        "before": ("as it was", None), "a": ("a1", 1.5), "b": ("b1", None), "c": (None, None),
        "the pair's chosen": ("good", None), "the pair's rejected": ("bad", None),
    }  # fmt: skip
    rows[0]["runs"]["b"] |= {"before": "another", "after_step": 4}
    assert list(answer_columns(rows[0], ["a", "b"])) == [
        "a, before", "a", "b, before", "b, after 4 steps", "the pair's chosen", "the pair's rejected",
    ]  # fmt: skip


def test_the_sheet_that_is_watched_has_all_panels_and_says_what_is_missing(runs):
    rows = {run.folder.name: run.metrics for run in runs}
    figure = watch_figure(rows)
    measured = {name.removeprefix("eval_") for row in rows["a"] for name in row}
    assert [len(ax.lines) > 0 for ax in figure.axes] == [name in measured for name in WATCHED]
    reward = figure.axes[list(WATCHED).index("true_reward")]
    assert [line.get_ydata().tolist() for line in reward.lines] == [[1.0, 7.0], [2.0, 8.0], [3.0, 9.0]]
    assert "True reward of sampled answers, held out (mean per answer) of 3 runs: a ends at 7" in describe_watch(rows)
    without = watch_figure({"x": [row for row in rows["a"] if row["kind"] == "step"]})
    assert "no judge" in without.axes[list(WATCHED).index("true_reward")].texts[0].get_text()
    empty = watch_figure({})
    assert empty.axes[0].texts[0].get_text() == "not measured yet"
    assert to_png(empty, 40).startswith(b"\x89PNG")
    assert describe_watch({}) == "Empty panels: nothing was measured yet."


# ── the panel ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_panel_shows_what_the_plain_functions_say(runs, tmp_path):
    panel = Comparer(tmp_path / "runs")
    assert panel.curves.image.value == to_png(
        watch_figure({run.folder.name: run.metrics for run in load_runs([tmp_path / "runs"])})
    )
    assert unescape(panel.curves.words.value).count("of 3 runs") >= 4
    for row in compare_runs(runs):
        assert row["run"] in plain(panel.numbers.value)
        assert f"{row['eval_loss']:.4g}" in plain(panel.numbers.value)
    assert panel.table().equals(comparison_frame(runs))
    assert panel.to_csv() == comparison_csv(runs)
    assert 'download="runs.csv"' in panel.save.value
    assert [label for label, _ in panel.prompt.options] == ["1: p1", "2: p2", "3: p3"]
    assert "a1" in plain(panel.answers.value)
    panel.prompt.value = 3
    assert "c3" in plain(panel.answers.value)
    assert "not answered" in plain(panel.answers.value)
    assert repr(panel) == "Comparer(a, b, c)"


def test_choosing_runs_changes_everything(runs, tmp_path):
    panel = Comparer(*runs)
    panel.runs.value = (1, 2)
    assert panel.curves.image.value == to_png(watch_figure({run.folder.name: run.metrics for run in runs[1:]}))
    assert "beta" not in plain(panel.numbers.value)  # the same in both
    assert list(panel.table().index) == ["b", "c"]
    panel.runs.value = ()
    assert panel.numbers.value == ""
    assert panel.curves.image.value == to_png(watch_figure({}))
    for ask in (panel.table, panel.to_csv):
        with pytest.raises(ValueError, match="no run is chosen"):
            ask()


def test_reading_again_finds_new_runs_and_keeps_the_choice(runs, tmp_path):
    panel = Comparer(tmp_path / "runs")
    made_run(tmp_path / "runs" / "d", beta=0.9, scale=4.0)
    panel.again.click()
    assert len(panel.chosen) == 4  # all were chosen, so all are
    panel.runs.value = (1,)
    made_run(tmp_path / "runs" / "e", beta=0.9, scale=4.0)
    panel.again.click()
    assert [run.folder.name for run in panel.chosen] == ["b"]
    append_line(tmp_path / "runs" / "b" / "metrics.jsonl", {"kind": "result", "step": 6, "kl": 3.25})
    panel.again.click()
    assert "3.25" in plain(panel.numbers.value)


def test_runs_without_a_record_or_answers_are_shown_too(tmp_path):
    Run.create(tmp_path / "new", {"command": "train", "settings": {"beta": 0.1}})
    panel = Comparer(tmp_path / "new")
    assert panel.curves.image.value == to_png(watch_figure({"new": []}))
    assert "saved no answers" in plain(panel.answers.value)
    assert "nothing was measured yet" in panel.curves.words.value
    with pytest.raises(ValueError, match="there are no runs to compare: no folder was given"):
        Comparer()


def test_text_from_runs_is_shown_as_text(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    made_run(tmp_path / "runs" / "a", beta=0.1, model=evil, samples=[sample(evil, evil * 300)])
    made_run(tmp_path / "runs" / "b", beta=0.2, model="<b>", samples=[sample(evil, "x")])
    panel = Comparer(tmp_path / "runs")
    for part in (panel.numbers, panel.answers, panel.save, panel.curves.words):
        assert not re.search(r"<(script|img|b)\b", part.value)
    assert evil in unescape(panel.answers.value)


def test_seeds_are_drawn_as_their_mean_and_a_band():
    one, two = ([{"kind": "step", "step": step, "loss": step + shift} for step in (1, 2)] for shift in (0.0, 2.0))
    rows = over_seeds([one, two[:1]])
    assert rows == [
        {"kind": "step", "step": 1, "loss": 2.0, "low/loss": 1.0, "high/loss": 3.0},
        {"kind": "step", "step": 2, "loss": 2.0, "low/loss": 2.0, "high/loss": 2.0},
    ]  # fmt: skip
    (band,) = plot_runs({"two seeds": rows}, "loss").collections
    assert {tuple(point) for point in band.get_paths()[0].vertices.tolist()} >= {(1, 1), (1, 3), (2, 2)}
    assert not plot_runs({"one": one}, "loss").collections


def test_the_numbers_beside_small_panels_have_room_at_the_first_steps():
    values = {"loss": (0.69315, 0.69281), "rewards/margins": (0.0, 0.00075), "grad_norm": (5.71, 4.84)}
    rows = [{"kind": "step", "step": step, **{name: both[step] for name, both in values.items()}} for step in (0, 1)]
    figure = watch_figure({"a": rows})
    figure.canvas.draw()
    for ax in figure.axes:
        to_the_left = [other.get_window_extent().x1 for other in figure.axes
                       if other.get_window_extent().x1 < ax.get_window_extent().x0]  # fmt: skip
        for label in ax.get_yticklabels():
            if label.get_text() and ax.get_ylim()[0] <= label.get_position()[1] <= ax.get_ylim()[1]:
                assert label.get_window_extent().x0 >= max(to_the_left, default=6) - 6, label.get_text()
