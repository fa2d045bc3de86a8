"""The doctor: logs of runs that went wrong on purpose, healthy ones, every format, and files that are none."""

from __future__ import annotations

import csv
import json
import math
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpo_lab.workbench.doctor import CAUSES, Log, diagnose, diagnosis_page, findings, read_log
from dpo_lab.workbench.doctor import reading as reading_module
from dpo_lab.workbench.plots.curves import PANELS
from tests.command_line import dpo_lab
from tests.conftest import ROOT
from tests.doctor_logs import CASES, FOLDER, write


def rows_of(num: int = 40, **changes: Any) -> list[dict[str, float]]:
    """A run as DPO's formulas make it: the margin grows to 1, and the chosen answer's reward to a quarter of it."""
    rows = []
    for step in range(1, num + 1):
        margin = (step - 1) / num
        row = {
            "step": step, "loss": math.log1p(math.exp(-margin)), "rewards/chosen": margin / 4,
            "rewards/rejected": -0.75 * margin, "rewards/margins": margin, "rewards/accuracies": 0.5 + margin / 4,
            "logps/chosen": -50 + margin / 0.4, "logps/rejected": -50 - 7.5 * margin, "grad_norm": 0.8,
            "learning_rate": 1e-4 * (num - step + 1) / num,
        }  # fmt: skip
        rows.append(row | {name: change(step, row) for name, change in changes.items()})
    return rows


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def causes(path: Path, other: Path | None = None) -> list[str]:
    return [finding.cause for finding in diagnose(path, other).findings]


# ── logs of real trainings ───────────────────────────────────────────────────────────────────────────────────────────


MISSED = {"rate-events": ["displacement"], "kl-ours-words": []}
"""Two of the logs that were kept out, and what is found in them instead: a rate of 0.1 that this tiny model survives,
with both log-probs falling; and a measured KL of 25 nats, where a policy counts as far away from 50 on."""


@pytest.mark.parametrize("case", [one for one in CASES if one.cause and one.name not in MISSED], ids=lambda c: c.name)
def test_the_cause_that_was_planted_comes_first(case):
    diagnosis = diagnose(FOLDER / case.name)
    assert diagnosis.findings[0].level != "note"
    assert diagnosis.findings[0].cause == case.cause


@pytest.mark.parametrize("case", [one for one in CASES if not one.cause], ids=lambda case: case.name)
def test_a_healthy_run_gives_no_alarm(case):
    diagnosis = diagnose(FOLDER / case.name)
    assert all(one.level == "note" for one in diagnosis.findings), [finding.seen for finding in diagnosis.findings]
    assert len(diagnosis.vitals) >= 2


@pytest.mark.parametrize("name", MISSED)
def test_what_is_missed_is_known(name):
    """So that the numbers in the README stay true: a change that finds them should say so there."""
    assert causes(FOLDER / name) == MISSED[name]
    assert name in {case.name for case in CASES if case.is_kept_out}


def test_the_logs_are_those_of_the_script_and_small():
    assert {path.name for path in FOLDER.iterdir()} == {case.name for case in CASES}
    planted = [case for case in CASES if case.cause]
    assert (len(planted), sum(case.is_kept_out for case in planted), len(CASES) - len(planted)) == (29, 17, 7)
    assert {case.cause for case in CASES} - {None} == set(CAUSES) - {"beta"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 330_000


# ── findings, by hand ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("not_finite", {"loss": lambda step, row: math.nan if step > 30 else row["loss"]}),
        ("wrong_reference", {"rewards/rejected": lambda step, row: row["rewards/rejected"] - 0.1}),
        ("stuck", {"loss": lambda step, row: math.log(2) - 0.003, "rewards/margins": lambda step, row: 0.006}),
        ("learning_rate", {"loss": lambda step, row: 2.0 if step in (20, 22, 24) else row["loss"]}),
        ("margins", {"rewards/margins": lambda step, row: 0.3 * step, "loss": lambda step, row: 0.6}),
        ("memorised", {"loss": lambda step, row: math.log(2) / step**2, "rewards/accuracies": lambda step, row: 1.0}),
        ("kl", {"kl": lambda step, row: 2.0 * step}),
        ("displacement", {"logps/chosen": lambda step, row: -50 - 0.5 * step,
                          "logps/rejected": lambda step, row: -50 - 0.8 * step}),
        ("length", {"answer_length": lambda step, row: 20 + step}),
        ("too_short", {"learning_rate": lambda step, row: 1e-4 * (100 - step) / 100}),
        ("clipped", {"grad_norm": lambda step, row: 30.0}),
    ],
)  # fmt: skip
def test_each_cause_is_found_alone(tmp_path, cause, changes):
    assert causes(jsonl(tmp_path / "sound.jsonl", rows_of())) == []
    assert causes(jsonl(tmp_path / "log.jsonl", rows_of(**changes))) == [cause]


def test_overfitting_is_seen_in_the_held_out_loss(tmp_path):
    def held(last: float) -> list[dict[str, Any]]:
        losses = {1: 0.69, 20: 0.6, 40: last}
        return [row | ({"eval_loss": losses[row["step"]]} if row["step"] in losses else {}) for row in rows_of()]

    assert causes(jsonl(tmp_path / "sound.jsonl", held(0.5))) == []
    (finding,) = diagnose(jsonl(tmp_path / "log.jsonl", held(0.8))).findings
    assert (finding.cause, finding.level) == ("overfitting", "problem")
    assert "lowest at step 20 (0.600) and ends at 0.800" in finding.seen


def test_rewards_of_a_loss_without_a_reference_may_start_anywhere(tmp_path):
    as_simpo = {f"rewards/{side}": lambda step, row, side=side: 0.02 * row[f"logps/{side}"]
                for side in ("chosen", "rejected")}  # fmt: skip
    assert causes(jsonl(tmp_path / "log.jsonl", rows_of(**as_simpo))) == []


def test_a_first_row_that_is_a_mean_over_steps_may_be_off_zero(tmp_path):
    fall = lambda row: row["rewards/rejected"] - 0.05 * min(row["step"], 9)
    windows = [row | {"step": 10 * row["step"], "rewards/rejected": fall(row)} for row in rows_of()]
    assert causes(jsonl(tmp_path / "log.jsonl", windows)) == []
    windows = [row | {"rewards/rejected": row["rewards/rejected"] - 2} for row in windows]
    (finding,) = diagnose(jsonl(tmp_path / "log.jsonl", windows)).findings
    assert (finding.cause, finding.sureness) == ("wrong_reference", "likely")


def test_beta_comes_from_held_out_data_and_two_runs_are_compared(tmp_path):
    def held(beta: float) -> list[dict[str, Any]]:
        change = {"eval_logps/chosen": -3.0, "eval_rewards/chosen": -3.0 * beta}
        return [*rows_of(), {"step": 0, "eval_logps/chosen": 0.0, "eval_rewards/chosen": 0.0}, {"step": 40} | change]

    one, two = (jsonl(tmp_path / f"{name}.jsonl", held(beta)) for name, beta in (("one", 0.25), ("two", 0.5)))
    assert findings.beta_of(read_log(one)) == pytest.approx(0.25)
    (finding,) = diagnose(one, two).findings
    assert (finding.cause, finding.level) == ("beta", "note")
    assert "β is 0.25 here and 0.5 in" in finding.seen
    assert causes(one, one) == []


def test_every_cause_names_a_notebook_and_panels_that_exist():
    for cause in CAUSES.values():
        assert (ROOT / "notebooks" / f"{cause.notebook}.ipynb").is_file()
        assert set(cause.panels) <= set(PANELS)


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def same(one: Log, other: Log, metrics: set[str]) -> bool:
    return all(np.allclose(one.series[name], other.series[name], rtol=1e-6) for name in metrics)


def test_one_run_reads_the_same_in_every_format(tmp_path):
    history: list[dict[str, Any]] = [*rows_of(), {"step": 40, "eval_loss": 0.5}, {"step": 40, "train_runtime": 3.0}]
    state = SimpleNamespace(global_step=40, max_steps=40)
    for form, name in (("state", "state"), ("factory", "factory"), ("csv", "log.csv"), ("events", "events")):
        write(tmp_path / name, form, history, state)
    whole = read_log(jsonl(tmp_path / "rows.jsonl", history))
    names = set(whole.series)
    assert names == {*rows_of()[0], "eval_loss"} - {"step"}
    assert same(whole, read_log(tmp_path / "state"), names)
    assert same(whole, read_log(tmp_path / "log.csv"), names)
    assert same(whole, read_log(tmp_path / "events"), names)
    assert same(whole, read_log(next((tmp_path / "events").iterdir())), names)
    factory = read_log(tmp_path / "factory")
    assert same(whole, factory, {"loss", "eval_loss", "rewards/accuracies", "learning_rate"})
    assert factory.facts["num_steps"] == 40


def test_the_newest_checkpoint_of_an_output_folder_is_read(tmp_path):
    for number in (9, 10):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows_of(number), "max_steps": 40}))
    assert read_log(tmp_path).last_step == 10
    assert causes(tmp_path) == ["too_short"]


def test_a_run_of_ours_states_its_settings_and_what_it_answered():
    log = read_log(FOLDER / "length-ours")
    assert log.facts["beta"] == 0.2
    assert log.series["answer_length"][0].tolist() == [0, log.last_step]
    assert read_log(FOLDER / "length-ours" / "metrics.jsonl").facts == log.facts


def test_a_chart_of_wandb_is_read_without_its_bounds(tmp_path):
    chart = tmp_path / "chart.csv"
    chart.write_text(
        "Step,run-1 - train/loss,run-1 - train/loss__MIN,run-1 - train/loss__MAX\n10,0.69,0,9\n20,0.5,0,9\n"
    )
    steps, values = read_log(chart).series["loss"]
    assert (steps.tolist(), values.tolist()) == ([10, 20], [0.69, 0.5])
    chart.write_text("Step,run-1 - train/loss,run-2 - train/loss\n10,0.69,0.6\n")
    with pytest.raises(ValueError, match=r"holds the columns of 2 runs \(run-1, run-2\); export one run at a time"):
        read_log(chart)


def test_an_empty_cell_of_the_step_belongs_to_the_step_before(tmp_path):
    """W&B counts calls of its logger as well; the two counts must not be mixed."""
    export = tmp_path / "history.csv"
    export.write_text("_step,train/global_step,train/loss,eval/loss\n0,10,0.69,\n1,,,0.68\n2,20,0.6,\n")
    log = read_log(export)
    assert log.series["loss"][0].tolist() == [10, 20]
    assert log.series["eval_loss"][0].tolist() == [10]
    assert log.notes[0].startswith("1 rows have no step")


def test_steps_again_after_a_resume_count_once_and_the_later_value_holds(tmp_path):
    rows = [*rows_of(30), *({"step": step, "loss": 0.1} for step in (29, 30, 31))]
    log = read_log(jsonl(tmp_path / "log.jsonl", rows))
    steps, values = log.series["loss"]
    assert steps.tolist() == list(range(1, 32))
    assert values[-3:].tolist() == [0.1, 0.1, 0.1]
    assert "2 values belong to a step that was logged before" in log.notes[0]


def test_odd_values_are_read_or_left_out_and_counted(tmp_path):
    rows = [
        {"step": 1, "loss": "NaN"}, {"step": "2", "loss": "n/a"}, {"step": 2, "loss": True}, {"step": 2.5, "loss": 1.0},
        {"step": 3, "loss": "0.5"}, {"loss": 0.4}, {"step": "late", "loss": 1.0}, {"step": 5, "loss": None},
        {"step": 9, "other": 1}, {"step": math.inf, "loss": 1.0},
    ]  # fmt: skip
    log = read_log(jsonl(tmp_path / "log.jsonl", rows))
    steps, values = log.series["loss"]
    assert steps.tolist() == [1, 3, 4]  # the row without a step comes after step 3
    assert math.isnan(values[0])
    assert values[1:].tolist() == [0.5, 0.4]
    assert log.notes == (
        "1 rows have no step (" + ", ".join(reading_module.STEPS) + ") and are placed by their order",
        "3 rows are left out: their step is no whole number",
        "2 values are left out: they are no numbers (the first is 'n/a' of loss at step 2)",
    )
    assert diagnose(tmp_path / "log.jsonl").findings[0].cause == "not_finite"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"has no metric that is known here \(it has no rows\); it needs at least a loss"),
        ("a.csv", "", "it has no rows"),
        ("a.csv", "reward,size\n1,2\n", "it has reward, size"),
        ("a.json", "", r"is damaged \(.*\); give the log of another checkpoint"),
        ("a.json", "[" * 100_000, "is damaged"),
        ("a.json", "3", "must hold a log_history, or a list of rows, got int; give a trainer_state.json"),
        ("a.json", '{"log_history": [1]}', "must hold a log_history"),
        ("a.json", '{"log_history": []}', "it has no rows"),
        ("a.jsonl", '{"step": 1, "loss": 1}\noops\n{}\n', "line 2 is no JSON object; restore the file, or delete"),
        ("a.txt", "loss 1", "its name must end in .json, .jsonl, .ndjson or .csv"),
        ("a.csv", "step,loss\n1," + "9" * 200_000 + "\n", r"line \d is no CSV \(field larger than field limit"),
        ("events.out.tfevents.1", "not events", "it has no rows"),
    ],
)
def test_what_is_no_log_is_refused_in_words(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / name)


def test_places_without_a_log_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file or folder .*; give a log, or the folder of a run"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no log: no metrics\.jsonl with config.json, trainer_state.json"):
        read_log(tmp_path)


def test_without_tensorboard_its_files_are_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(reading_module, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="install it with pip install tensorboard, or export the curves as CSV"):
        read_log(FOLDER / "rate-events")


def test_a_line_that_was_cut_off_is_left_out_and_reported(tmp_path):
    path = jsonl(tmp_path / "log.jsonl", rows_of())
    path.write_text(path.read_text() + '{"step": 41, "lo')
    log = read_log(path)
    assert log.last_step == 40
    assert log.notes == ("the last line was cut off and is left out",)


def test_a_long_log_is_streamed_and_drawn_thinned(tmp_path):
    path, num = tmp_path / "long.csv", 5_000
    with path.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["step", "loss", "comment"])
        writer.writerows([step, 0.5, "x" * 2000] for step in range(num))
    assert path.stat().st_size > 10e6
    tracemalloc.start()
    log = read_log(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(log.values("loss")) == num
    assert peak < 1e6
    assert len(log.rows()) <= reading_module.DRAWN


# ── the command and the page ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_prints_findings_curves_and_what_it_could_not_look_at(tmp_path, capsys):
    log = jsonl(tmp_path / "log.jsonl", rows_of(**{"rewards/rejected": lambda step, row: row["rewards/rejected"] - 1}))
    done = dpo_lab(capsys, "doctor", log, "--html", tmp_path / "page.html")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Rewards do not start at zero.\n")
    assert "1. problem: Rewards do not start at zero" in done.out
    assert "seen: The first reward of rejected answers is -1.000 at step 1" in done.out
    assert "shown in: notebooks/10_when_dpo_fails.ipynb" in done.out
    assert "▁" in done.out
    assert "not looked at: whether held-out pairs are ranked as well as training pairs (no eval_loss)" in done.out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 2  # rewards and loss
    assert "problem: Rewards do not start at zero" in page


def test_a_healthy_run_is_called_so_with_its_numbers(tmp_path, capsys):
    done = dpo_lab(capsys, "doctor", jsonl(tmp_path / "log.jsonl", rows_of()))
    assert done.out.startswith(
        "Nothing looks wrong: loss 0.675 → 0.331, accuracy 0.509 → 0.734, margin 0.038 → 0.938.\n"
    )


def test_a_slip_is_one_message(tmp_path, capsys):
    done = dpo_lab(capsys, "doctor", tmp_path)
    assert done.status == 2
    assert done.message.startswith(f"dpo-lab: {tmp_path} holds no log")


def test_what_a_log_holds_is_escaped_in_the_page(tmp_path):
    folder = tmp_path / "<b>"
    folder.mkdir()
    page = diagnosis_page(diagnose(jsonl(folder / "log.jsonl", rows_of())))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
