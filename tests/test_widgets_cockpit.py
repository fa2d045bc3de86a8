"""The cockpit without a browser: the recipe it makes, what it shows while it trains, how it stops, what it saves."""

from __future__ import annotations

import base64
import re
import threading
import time
from dataclasses import replace
from html import unescape

import pytest

pytest.importorskip("ipywidgets")

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Finished, Step
from dpo_lab.losses import LOSSES
from dpo_lab.models import load_policy
from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.plots import describe_watch, to_png, watch_figure
from dpo_lab.workbench.recipes import Answers, Prepared, Recipe, command_line
from dpo_lab.workbench.runs import Run, run_labels
from dpo_lab.workbench.runs.page import UNPRINTABLE
from dpo_lab.workbench.widgets import Cockpit, markup
from dpo_lab.workbench.widgets.cockpit.status_text import (
    Progress,
    in_words,
    sample_columns,
    samples_so_far,
    saved_runs,
    seconds_left,
    step_words,
)
from dpo_lab.workbench.widgets.cockpit.to_recipe import PRESETS, own_knobs, recipe_of
from dpo_lab.workbench.widgets.controls import KNOBS, control, field_docs, tidy
from dpo_lab.workbench.widgets.markup import shortened
from tests.command_line import chat_model, some_rows, write_rows
from tests.conftest import tooltip_of

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{a}{b}$ " + "x" * 10_000


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    rows = some_rows(40)
    for row in rows:
        row["prompt"] = f"{EVIL} {row['prompt']}" if row["prompt"].endswith("dog 14?") else row["prompt"]
    model, pairs = str(chat_model(folder / "model")), str(write_rows(folder / "pairs.jsonl", some_rows(40)))
    return {"model": model, "pairs": pairs, "evil": str(write_rows(folder / "evil.jsonl", rows))}


@pytest.fixture
def cockpit(sources, tmp_path):
    """Nine steps take a second or so."""
    config = DPOConfig(batch_size=4, evaluate_every=3, learning_rate=1e-3, beta=0.3, device="cpu")
    made = Cockpit(
        tmp_path / "runs", model=sources["model"], pairs=sources["pairs"], limit=None, samples=2, max_new_tokens=4,
        config=config,
    )  # fmt: skip
    yield made
    made.stop()
    if made.job is not None:
        made.job._thread.join(30)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpo-lab")]


def until(holds, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.005)


def by_label(runs: list[Run]) -> dict[str, list[dict]]:
    return dict(zip(run_labels(runs), (run.metrics for run in runs), strict=True))


def plain(html: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", html))


def shown(text: str) -> str:
    """A text as a page shows it: one space between words, a sign for what cannot be printed."""
    return " ".join(UNPRINTABLE.sub("\ufffd", text).split())


# ── controls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tooltips_are_the_documentation_of_the_configuration():
    docs = field_docs(DPOConfig)
    assert docs["beta"].startswith("Price of drifting from the reference")
    assert docs["batch_size"].startswith("Pairs")  # of the base class
    for name in ("loss", "beta", "learning_rate", "label_smoothing", "epochs", "batch_size", "max_length", "seed"):
        value = {"beta": 0.1, "label_smoothing": 0.1}.get(name, getattr(DPOConfig(), name))
        made = control(DPOConfig, name, value)
        assert tooltip_of(made) == docs[name]
        assert made.description
        assert made.value == value
        assert not getattr(made, "continuous_update", False)


def accepts(name: str, value: float) -> bool:
    try:
        DPOConfig(**{name: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["label_smoothing", "epochs", "batch_size", "max_length", "seed", "evaluate_every"])
def test_a_control_offers_nothing_that_the_configuration_refuses(name):
    made, knob = control(DPOConfig, name, {"label_smoothing": 0.1, "evaluate_every": 5}.get(name, 3)), KNOBS[name]
    assert accepts(name, made.min)
    assert accepts(name, made.max)
    assert (made.min, made.max) == (knob.low, knob.high)


def test_both_ends_of_the_logarithmic_sliders_are_accepted():
    for name in ("beta", "learning_rate"):
        made = control(DPOConfig, name, 0.01)
        assert accepts(name, made.base**made.min)
        assert accepts(name, made.base**made.max)


def test_a_value_beyond_the_usual_range_widens_it_instead_of_being_cut():
    assert control(DPOConfig, "beta", 50.0).value == 50.0
    assert control(DPOConfig, "epochs", 400.0).value == 400.0


def test_numbers_of_a_slider_are_written_as_people_write_them():
    assert tidy(10**-0.9) == 0.126
    assert tidy(3) == 3
    assert tidy("x") == "x"


# ── asked ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loss", list(LOSSES))
def test_every_loss_can_be_asked_for_with_its_own_knobs(loss, cockpit):
    cockpit.controls["loss"].value = "ipo" if loss == "dpo" else "dpo"
    cockpit.controls["loss"].value = loss
    assert cockpit.recipe.config.loss == loss
    known = own_knobs(loss)
    for name in ("beta", "label_smoothing"):
        assert cockpit.controls[name].disabled == (name not in known)
        assert getattr(cockpit.recipe.config, name) == known.get(name)


def test_what_the_controls_say_is_the_recipe_the_command_and_the_code(cockpit):
    controls = cockpit.controls
    for name, value in (("loss", "cdpo"), ("beta", 10**-0.45), ("label_smoothing", 0.2), ("learning_rate", 3e-4),
                        ("epochs", 1.5), ("batch_size", 8), ("max_length", 200), ("seed", 5), ("limit", 256),
                        ("evaluate_every", 7)):  # fmt: skip
        controls[name].value = value
    recipe = cockpit.recipe
    assert recipe.limit == 256
    assert recipe.config == DPOConfig(
        loss="cdpo", beta=0.355, label_smoothing=0.2, learning_rate=3e-4, epochs=1.5, batch_size=8, max_length=200,
        seed=5, evaluate_every=7, device="cpu",
    )  # fmt: skip
    line = plain(cockpit.command.value).strip()
    assert line == command_line(recipe)
    import shlex

    options = parse(shlex.split(line)[1:])
    assert {name: getattr(options, name) for name in recipe.settings} == recipe.settings
    assert "beta=0.355" in plain(cockpit.python.value)
    assert repr(cockpit) == f"Cockpit({line})"
    assert [cockpit.as_code.get_title(index) for index in (0, 1)] == [
        "The same run as a command", "The same run as Python",
    ]  # fmt: skip


def test_all_pairs_is_an_entry_of_the_menu_that_shows(cockpit):
    assert cockpit.controls["limit"].label == "all"
    assert cockpit.recipe.limit is None
    cockpit.controls["limit"].index = 0
    assert cockpit.recipe.limit == 256
    cockpit.controls["limit"].label = "all"
    assert cockpit.recipe.limit is None


def test_what_the_loss_refuses_is_said_and_train_waits_until_it_is_mended(cockpit):
    cockpit.controls["loss"].value = "exo_pair"
    cockpit.controls["label_smoothing"].value = 0.0
    assert "label_smoothing must lie in (0, 0.5), for its logarithm is taken, got 0.0" in plain(cockpit.status.value)
    assert 'role="alert"' in cockpit.status.value
    assert cockpit.train_button.disabled
    assert "label_smoothing" in repr(cockpit)
    cockpit.controls["label_smoothing"].value = 0.01
    assert not cockpit.train_button.disabled
    assert "alert" not in cockpit.status.value


def test_knobs_that_a_loss_lacks_are_left_out_of_the_recipe():
    values = {"loss": "orpo", "beta": 0.1, "label_smoothing": 0.1, "seed": 3}
    config = recipe_of(values, Recipe()).config
    assert (config.beta, config.label_smoothing, config.seed) == (None, None, 3)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        recipe_of(values | {"batch_size": 0}, Recipe())


# ── told ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def step(number: int, seconds: float, **metrics: float) -> Step:
    return Step(number, 10, {"loss": 0.5, "rewards/margins": 0.25, "rewards/accuracies": 0.75} | metrics, seconds)


def test_time_left_is_at_the_pace_so_far():
    assert seconds_left(step(1, 9.0), None) is None
    assert seconds_left(step(1, 9.0), step(1, 9.0)) is None
    assert seconds_left(step(4, 15.0), step(1, 9.0)) == pytest.approx(6 * 2.0)  # the first step's start-up is left out
    assert in_words(12.3) == "12 s"
    assert in_words(125) == "2 min 5 s"


def test_progress_in_words():
    progress = Progress()
    progress.during("scoring the reference, pairs", 20, 80)
    assert (progress.share, progress.words) == (0.25, "scoring the reference, pairs 20 of 80")
    progress.during("loading the model", 0, 0)
    assert (progress.share, progress.words) == (None, "loading the model")
    progress.after(Prepared(100, 10, 30, (), ()))
    assert progress.words == "100 pairs to train on, 10 held out; reference: 30 pairs scored, 80 found in the cache"
    progress.after(Prepared(100, 10, 0, (), ()))
    assert "none scored" in progress.words
    progress.after(step(1, 1.0))
    progress.after(step(5, 3.0))
    assert progress.share == 0.5
    assert progress.words == "step 5 of 10, loss 0.5000, margin +0.250, accuracy 0.75, about 2 s left"
    progress.during("answering prompts", 0, 0)
    assert progress.words.endswith("; answering prompts")
    assert progress.share == 0.5
    progress.after(Finished(10, 10, True, {}, 5.0))
    assert (progress.share, progress.words) == (1.0, "step 10 of 10")
    progress.during("writing the report", 0, 0)
    progress.end()
    assert progress.words == "step 5 of 10, loss 0.5000, margin +0.250, accuracy 0.75"
    progress = Progress()
    progress.end()
    assert (progress.share, progress.words) == (0.0, "no step was taken")
    assert step_words(step(10, 9.0), step(1, 0.0)).endswith("accuracy 0.75")


def test_a_sample_as_columns_and_a_prompt_as_an_entry():
    sample = {"prompt": "p", "before": "b", "after": "a", "after_step": 3, "reward_before": -1.0, "chosen": "c"}
    assert sample_columns(sample) == {
        "before": ("b", -1.0), "after 3 steps": ("a", None), "the pair's chosen": ("c", None),
    }  # fmt: skip
    rows = samples_so_far(["p"], Answers(0, ("b",), (None,)), Answers(4, ("a",), (2.0,)))
    assert sample_columns(rows[0]) == {"before": ("b", None), "after 4 steps": ("a", 2.0)}
    assert shortened("a\n b   c") == "a b c"
    assert len(shortened("word " * 100)) == 70


# ── text from outside ────────────────────────────────────────────────────────────────────────────────────────────────


def is_harmless(html: str) -> bool:
    return not re.search(r"<(script|img|iframe|object|svg)\b", html, re.IGNORECASE)


def test_text_from_outside_is_shown_as_text_and_long_text_is_folded():
    for html in (markup.answers(EVIL, {EVIL[:40]: (EVIL, 1.0), "none": (None, None)}), markup.line(EVIL, is_error=True),
                 markup.notes([EVIL]), markup.table(EVIL, [{EVIL[:30]: EVIL, "b": 1.0}]), markup.code(EVIL, EVIL),
                 markup.download('x"onclick="', EVIL, EVIL)):  # fmt: skip
        assert is_harmless(html)
        assert "onclick=&quot;" in html or 'onclick="' not in html
        if "data:text" not in html:
            assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;" in html
    assert "<details" in markup.block(EVIL)
    assert EVIL in unescape(markup.block(EVIL))


def test_tables_stand_either_way():
    rows = [{"run": "a", "beta": 0.1, "is_complete": True}, {"run": "b", "beta": None, "is_complete": False}]
    flat, upright = markup.table("two", rows), markup.table("two", rows, upright=True)
    assert plain(flat).split() == ["two", "run", "beta", "is_complete", "a", "0.1", "yes", "b", "–", "no"]
    assert plain(upright).split() == ["two", "run", "a", "b", "beta", "0.1", "–", "is_complete", "yes", "no"]
    assert upright.count('scope="col"') == 3
    assert upright.count('scope="row"') == 2


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_shows_progress_curves_and_answers_and_keeps_the_run(cockpit, tmp_path):
    shares, pictures = [], [bytes(cockpit.curves.image.value)]
    cockpit.bar.observe(lambda change: shares.append(change["new"]), names="value")
    cockpit.curves.image.observe(lambda change: pictures.append(bytes(change["new"])), names="value")
    cockpit.train_button.click()
    assert cockpit.train_button.disabled
    assert not cockpit.stop_button.disabled
    with pytest.raises(RuntimeError, match="a run goes on already"):
        cockpit.train()
    cockpit.wait(120)
    assert threads() == []
    assert not cockpit.running
    assert (cockpit.train_button.disabled, cockpit.stop_button.disabled) == (False, True)
    assert shares[-1] == 1.0
    assert len(set(pictures)) >= 2
    assert "run-01: complete, 9 of 9 steps" in plain(cockpit.status.value)
    run = Run.load(tmp_path / "runs" / "run-01")
    assert pictures[-1] == to_png(watch_figure(by_label([run])))  # the static twin
    assert describe_watch(by_label([run])) in unescape(cockpit.curves.words.value)
    assert cockpit.answers_of.value == "run-01"
    assert [number for _, number in cockpit.prompt.options] == [1, 2]
    for number in (1, 2):
        cockpit.prompt.value = number
        sample = run.samples[number - 1]
        for name in ("prompt", "before", "after"):
            assert shown(sample[name]) in shown(plain(cockpit.answers.value))
    assert "after 9 steps" in cockpit.answers.value


def test_a_second_run_is_laid_over_the_first_and_a_new_panel_finds_both(cockpit, sources, tmp_path):
    cockpit.train()
    cockpit.wait(120)
    cockpit.controls["beta"].value = 1.0
    cockpit.train()
    cockpit.wait(120)
    assert "none scored" in plain(cockpit.progress.value) or cockpit._prepared.num_scored == 0
    assert cockpit.shown_runs.value == ("run-01", "run-02")
    assert [label for label, _ in cockpit.shown_runs.options] == ["run-01: beta 0.3", "run-02: beta 1"]
    runs, complaints = saved_runs(tmp_path / "runs")
    assert not complaints
    assert cockpit.curves.image.value == to_png(watch_figure(by_label(runs)))
    cockpit.shown_runs.value = ("run-02",)
    assert cockpit.curves.image.value != to_png(watch_figure(by_label(runs)))
    assert "run-01" not in cockpit.curves.words.value
    cockpit.answers_of.value = "run-01"
    assert shown(runs[0].samples[0]["after"])[:5] in shown(plain(cockpit.answers.value))

    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.json").write_text("{")
    again = Cockpit(tmp_path / "runs", model=sources["model"], pairs=sources["pairs"])
    assert again.shown_runs.value == ("run-01", "run-02")
    assert again.curves.image.value == to_png(watch_figure(by_label(runs)))
    assert "is damaged" in plain(again.notes.value)
    assert shown(runs[1].samples[0]["before"])[:5] in shown(plain(again.answers.value))


def test_stop_ends_the_training_and_leaves_a_usable_run_and_train_works_again(cockpit, tmp_path):
    """Two seconds on a quiet machine; here counted in seconds of this process's own computing, with room."""
    cockpit.controls["epochs"].value = 100
    cockpit.train_button.click()
    until(lambda: len(cockpit._rows["run-01"]) > 3)
    began = time.process_time()
    cockpit.stop_button.click()
    until(lambda: "the model is saved" in cockpit.status.value)
    assert time.process_time() - began < 1.2
    load_policy(tmp_path / "runs" / "run-01" / "model", device="cpu")
    cockpit.wait(60)
    assert time.process_time() - began < 4
    assert threads() == []
    assert "run-01: stopped" in plain(cockpit.status.value)
    run = Run.load(tmp_path / "runs" / "run-01")
    assert not run.summary()["is_complete"]
    assert (run.model_folder / "model.safetensors").is_file()
    assert (run.folder / "report.html").is_file()
    assert (run.folder / "curves.png").is_file()
    assert run.config["settings"]["epochs"] == 100
    cockpit.controls["epochs"].value = 1
    cockpit.train_button.click()
    cockpit.wait(60)
    assert "run-02: complete" in plain(cockpit.status.value)


def test_stop_before_the_first_step_keeps_nothing(cockpit, tmp_path):
    cockpit.train()
    cockpit.stop()
    cockpit.wait(60)
    assert "stopped before its first step; nothing was saved" in plain(cockpit.status.value)
    assert list((tmp_path / "runs").iterdir()) == []
    assert cockpit.runs == []
    cockpit.stop()  # nothing to stop: nothing happens
    assert not cockpit.train_button.disabled


def test_an_exception_inside_training_is_shown_as_text_and_raised_by_wait(cockpit, monkeypatch):
    from dpo_lab.training import DPOObjective

    own, calls = DPOObjective.loss, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError("step 3: <script>alert(1)</script> the loss is nan")
        return own(self, *args)

    monkeypatch.setattr(DPOObjective, "loss", failing)
    cockpit.train_button.click()
    with pytest.raises(ArithmeticError, match="step 3"):
        cockpit.wait(60)
    assert threads() == []
    assert 'role="alert"' in cockpit.status.value
    assert "ArithmeticError: step 3: &lt;script&gt;alert(1)&lt;/script&gt; the loss is nan" in cockpit.status.value
    assert "What was measured so far is saved." in cockpit.status.value
    assert not cockpit.train_button.disabled
    assert [row["step"] for row in Run.load(cockpit.folder / "run-01").metrics if row["kind"] == "step"] == [1, 2]


def test_a_source_that_is_not_there_is_said_and_raised(cockpit):
    cockpit.controls["model"].value = "./<b>nowhere</b>"
    cockpit.train_button.click()
    with pytest.raises(ValueError, match="no model folder at"):
        cockpit.wait(60)
    assert "no model folder at &#x27;./&lt;b&gt;nowhere" in cockpit.status.value
    assert list(cockpit.folder.iterdir()) == []


def test_a_picture_that_fails_ends_no_training(cockpit, monkeypatch):
    from dpo_lab.workbench.widgets.cockpit import panel

    def broken(*_):
        raise ValueError("no picture today")

    monkeypatch.setattr(panel, "watch_figure", broken)
    cockpit.train()
    cockpit.wait(60)
    assert "run-01: complete" in plain(cockpit.status.value)
    assert "no picture today" in cockpit.curves.words.value


def test_a_page_that_is_gone_ends_no_training_and_wait_tells(cockpit, monkeypatch):
    def gone(*_):
        raise OSError("the page is gone")

    monkeypatch.setattr(cockpit, "_offer_prompts", gone)
    cockpit.train()
    with pytest.raises(OSError, match="the page is gone"):
        cockpit.wait(60)
    assert Run.load(cockpit.folder / "run-01").summary()["is_complete"]
    monkeypatch.undo()
    cockpit.train()
    cockpit.wait(60)


def test_dangerous_data_runs_through_the_whole_panel_as_text(cockpit, sources):
    cockpit.controls["pairs"].value = sources["evil"]
    cockpit.base = replace(cockpit.base, samples=4, validation=0.5)
    cockpit.controls["epochs"].value = 0.25
    cockpit.train()
    cockpit.wait(60)
    for number in range(1, len(cockpit.prompt.options) + 1):
        cockpit.prompt.value = number
        assert is_harmless(cockpit.answers.value)
    for part in (cockpit.status, cockpit.notes, cockpit.command, cockpit.python, cockpit.curves.words):
        assert is_harmless(part.value)
    assert all(len(label) < 100 for label, _ in cockpit.prompt.options)


def test_redraws_take_a_twentieth_of_the_time_beside_the_first_and_the_last(cockpit, monkeypatch):
    drawn, own = [], cockpit.curves.try_redraw

    def timed():
        began = time.perf_counter()
        own()
        drawn.append(time.perf_counter() - began)

    monkeypatch.setattr(cockpit.curves, "try_redraw", timed)
    cockpit.controls["epochs"].value = 8
    began = time.perf_counter()
    cockpit.train()
    cockpit.wait(120)
    seconds = time.perf_counter() - began
    assert len(drawn) >= 3
    assert sum(drawn) <= 0.05 * seconds + 4 * max(drawn)


# ── real and embedded sources ────────────────────────────────────────────────────────────────────────────────────────


def test_a_real_model_and_real_pairs(real, tmp_path):
    cockpit = Cockpit(
        tmp_path / "runs", model=real / "models/stories260k", pairs=real / "preferences/instruction-polite.json",
        limit=96, samples=4, max_new_tokens=16, config=DPOConfig(evaluate_every=4, batch_size=16, max_length=256),
    )  # fmt: skip
    cockpit.train_button.click()
    cockpit.wait(300)
    assert "run-01: complete" in plain(cockpit.status.value)
    run = Run.load(tmp_path / "runs" / "run-01")
    assert len(run.samples) == 4
    assert run.summary()["eval_rewards/margins"] > 0
    assert is_harmless(cockpit.answers.value)


def test_the_embedded_model_and_its_judge(tmp_path):
    config = DPOConfig(evaluate_every=2, batch_size=16, max_steps=4)
    cockpit = Cockpit(tmp_path / "runs", limit=64, samples=4, max_new_tokens=32, config=config)
    cockpit.train_button.click()
    cockpit.wait(300)
    steps, rewards = Run.load(tmp_path / "runs" / "run-01").series("eval_true_reward")
    assert steps.tolist() == [0, 2, 4]
    assert (rewards > -3).all()
    assert (rewards <= 3).all()
    assert "true reward" in plain(cockpit.answers.value)
    assert "True reward of sampled answers" in plain(cockpit.curves.words.value)


# ── presets, bookmarks, seeds, noise ─────────────────────────────────────────────────────────────────────────────────


def test_a_bookmark_brings_the_panel_back_and_presets_set_every_control(cockpit):
    start = cockpit.bookmark
    cockpit.controls["loss"].value = "simpo"
    cockpit.controls["knobs"].value = "gamma=0.5"
    cockpit.controls["job"].value, cockpit.controls["flip"].value = "safety", 0.25
    assert cockpit.recipe.config.knobs == {"gamma": 0.5}
    assert (cockpit.recipe.job, cockpit.recipe.flip) == ("safety", 0.25)
    place = cockpit.bookmark
    assert cockpit.place.value == place
    for name in PRESETS:
        cockpit.preset.value = name
        assert all(cockpit.controls[knob].value == value for knob, value in PRESETS[name].items())
    cockpit.place.value = place  # pasted
    assert cockpit.bookmark == place
    cockpit.restore(start)
    assert cockpit.bookmark == start
    cockpit.place.value = "no bookmark"
    assert "no bookmark of a cockpit" in plain(cockpit.status.value)


def test_what_changes_without_being_asked_for_is_said(cockpit):
    cockpit.controls["loss"].value = "simpo"
    assert "Its knobs stand at its own start: beta=2 gamma=1." in plain(cockpit.status.value)
    cockpit.controls["epochs"].value = -1
    assert "epochs is 0.25; here it may lie from 0.25 to 100" in plain(cockpit.status.value)
    cockpit.controls["knobs"].value = "gamma=wide"
    assert "could not convert string to float: 'wide'" in plain(cockpit.status.value)
    assert cockpit.train_button.disabled


def test_three_seeds_are_three_runs_and_one_curve_with_a_band(cockpit, tmp_path):
    cockpit.controls["flip"].value = 0.5
    cockpit.controls["epochs"].value = 0.5
    cockpit.train(num_seeds=3)
    cockpit.wait(300)
    runs = [Run.load(tmp_path / "runs" / f"run-0{number}") for number in (1, 2, 3)]
    assert [run.config["settings"]["seed"] for run in runs] == [0, 1, 2]
    assert {run.config["settings"]["flip"] for run in runs} == {0.5}
    assert list(cockpit._chosen(cockpit.shown_runs.value)) == ["run-01, 3 seeds"]
    row = runs[0].metrics[0]
    assert abs(row["eval_kl"]) < 1e-4  # the policy is its reference still
    assert 1 <= row["eval_answer_length"] <= 4


def test_the_panel_leaves_its_picture_in_the_notebook(cockpit):
    data, metadata = cockpit._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == cockpit.curves.image.value
    assert metadata["image/png"]["alt"] in data["text/plain"]
