"""The panel over sweeps: fields to settings, Start, Stop, going on, failures, and texts that stay texts."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("ipywidgets")
pytest.importorskip("optuna")

from dpo_lab.workbench.plots import to_png
from dpo_lab.workbench.plots.sweeps import describe_sweep
from dpo_lab.workbench.sweeps import StoredStudy, SweepSettings
from dpo_lab.workbench.widgets import SweepPanel
from dpo_lab.workbench.widgets.sweep import draw_sweep, sweep_settings, table_of_trials
from tests.command_line import chat_model, some_rows, write_rows
from tests.conftest import tooltip_of

ASKED = SweepSettings(beta="0.05:1:log", loss="dpo,ipo")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("given")
    pairs = write_rows(folder / "pairs.jsonl", some_rows())
    return {"model": str(chat_model(folder / "model")), "pairs": str(pairs), "device": "cpu", "batch_size": "6",
            "validation": 0.25, "evaluations": 1, "limit": None, "learning_rate": None}  # fmt: skip


def row(number, value, **more):
    return {"trial": number, "state": "complete", "value": value, "beta": 0.1 * (number + 1), "loss": "dpo", "why": "",
            "looks": {1: value}, "seconds": 1.0} | more  # fmt: skip


def test_empty_fields_leave_a_knob_alone_and_the_rest_is_taken():
    settings = sweep_settings({"beta": "0.1,0.5", "loss": " ", "trials": 3}, SweepSettings(model="m", loss="dpo,ipo"))
    assert (settings.beta, settings.loss, settings.trials, settings.model) == ("0.1,0.5", None, 3, "m")
    with pytest.raises(ValueError, match="low below high"):
        sweep_settings({"beta": "1:0.1"})


def test_every_control_has_a_label_and_says_what_it_does(tmp_path):
    for control in SweepPanel(folder=tmp_path / "s").controls.values():
        assert control.description
        assert len(tooltip_of(control)) > 10


def test_the_table_has_the_best_first_and_holds_texts_as_text():
    rows = [row(0, 0.5), row(1, 0.9), row(2, None, state="failed", why="<script>alert(1)</script>")]
    table = table_of_trials(rows, ASKED)
    assert table.index("0.9") < table.index("0.5") < table.index("failed")
    assert "&lt;script&gt;" in table
    assert "<script" not in table


def test_what_is_drawn_is_what_the_words_say():
    rows = [row(0, 0.5), row(1, 0.9), row(2, None, state="pruned", looks={1: 0.2})]
    words = describe_sweep(rows, ["loss", "beta"], "accuracy")
    assert "3 trials, 2 complete, 1 pruned" in words
    assert "the best, 0.9, is trial 1 with loss dpo, beta 0.2" in words
    history = draw_sweep(rows, ASKED).axes[0]
    lines = {line.get_label(): line for line in history.get_lines()}
    assert list(lines["best so far"].get_ydata()) == [0.5, 0.9]
    assert list(lines["pruned, at its last look"].get_ydata()) == [0.2]
    assert "Nothing to compare yet" in describe_sweep([], ["loss", "beta"], "accuracy")
    assert to_png(draw_sweep([], ASKED))[:4] == b"\x89PNG"


def test_trials_that_are_as_good_are_named_and_the_truth_is_chosen_by_where_it_is_known(tmp_path):
    rows = [row(0, 0.9), row(1, 0.9), row(2, 0.5)]
    assert "is trial 0 with beta 0.1; as good: 1." in describe_sweep(rows, ["beta"], "accuracy")
    assert SweepPanel(folder=tmp_path / "s").settings.objective == "reward"
    assert SweepPanel(pairs="mine.jsonl").settings.objective == "accuracy"


def test_the_line_of_the_command_follows_the_fields(tmp_path):
    panel = SweepPanel(folder=tmp_path / "s", model="some<model>")
    panel.controls["beta"].value = "0.1,0.5"
    assert "--beta 0.1,0.5" in panel.command.value
    assert "some&lt;model&gt;" in panel.command.value
    assert "<model>" not in panel.command.value


def test_a_wrong_field_is_told_and_nothing_begins(tmp_path):
    panel = SweepPanel(folder=tmp_path / "s")
    panel.controls["beta"].value = "1:0.1"
    assert "low below high" in panel.words.value
    panel.start_button.click()
    assert panel.job is None
    assert not (tmp_path / "s").exists()
    panel.wait(1)


def test_start_runs_the_budget_and_shows_what_the_study_holds(given, tmp_path):
    before = threading.active_count()
    panel = SweepPanel(folder=tmp_path / "s", cache=tmp_path / "cache", trials=2, **given)
    empty = panel.image.value
    panel.start_button.click()
    assert panel.start_button.disabled
    assert not panel.stop_button.disabled
    panel.wait(120)
    assert panel.rows == StoredStudy.load(tmp_path / "s").rows()
    assert [one["state"] for one in panel.rows] == ["complete"] * 2
    assert panel.image.value == to_png(draw_sweep(panel.rows, panel.settings)) != empty
    assert panel.table.value == table_of_trials(panel.rows, panel.settings)
    assert panel.best is not None
    assert f"--beta {panel.best['beta']:.4g}" in panel.command.value
    assert "The budget is spent" in panel.words.value
    assert (panel.start_button.disabled, panel.stop_button.disabled) == (False, True)
    assert threading.active_count() <= before
    again = SweepPanel(folder=tmp_path / "s")  # a finished study is shown before Start
    assert again.rows == panel.rows
    assert again.image.value == panel.image.value
    assert "2 trials lie in this folder" in again.words.value
    assert again.command.value == panel.command.value
    panel.controls["trials"].value = 3
    panel.start_button.click()  # goes on with the same study
    panel.wait(120)
    assert len(panel.rows) == 3


def test_stop_ends_the_trial_in_hand_and_start_goes_on(given, tmp_path):
    panel = SweepPanel(folder=tmp_path / "s", cache=tmp_path / "cache", trials=2, epochs="300", **given)
    panel.start_button.click()
    deadline = time.monotonic() + 60
    while panel.progress.value == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    panel.stop_button.click()
    panel.wait(30)
    assert time.monotonic() - began < 10
    assert "Stopped" in panel.words.value
    assert [one["state"] for one in panel.rows] == ["failed", "waiting"]
    assert not panel.start_button.disabled


def test_a_failure_stands_in_the_panel_and_is_raised_by_wait(given, tmp_path):
    missing = given | {"pairs": str(tmp_path / "missing<b>.jsonl")}
    panel = SweepPanel(folder=tmp_path / "s", cache=tmp_path / "cache", trials=1, **missing)
    panel.start_button.click()
    with pytest.raises(FileNotFoundError, match="missing"):
        panel.wait(60)
    assert 'role="alert"' in panel.words.value
    assert "missing&lt;b&gt;" in panel.words.value
    assert not panel.start_button.disabled


def test_without_widgets_it_reads_as_a_line():
    words = repr(SweepPanel(beta="0.1,0.5"))
    assert words.startswith("SweepPanel('dpo-lab sweep ")
    assert "--beta 0.1,0.5" in words
