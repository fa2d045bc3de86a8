"""The cockpit: layout and wiring. What it trains is `recipes.carry_out`, what it draws `plots.watch_figure`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Finished
from dpo_lab.losses.table import LOSSES, UNPAIRED_LOSSES
from dpo_lab.workbench.plots.overlays import describe_watch, over_seeds, watch_figure
from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.recipes.answers import true_reward
from dpo_lab.workbench.recipes.recipe import Recipe, command_line, python_code
from dpo_lab.workbench.recipes.session import Answers, Prepared, Score, carry_out, next_folder
from dpo_lab.workbench.runs.compare import run_labels, seed_groups
from dpo_lab.workbench.runs.run import Run, row_of
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import HasJob, Job, Throttle
from dpo_lab.workbench.widgets.cockpit import status_text
from dpo_lab.workbench.widgets.cockpit.knobs import FOLDED, LABEL, controls_of
from dpo_lab.workbench.widgets.cockpit.to_recipe import PRESETS, SHARED_KNOBS, further_knobs, own_knobs, recipe_of
from dpo_lab.workbench.widgets.controls import at_its_end
from dpo_lab.workbench.widgets.layout import Panel, attempt, button, row, texts, tip
from dpo_lab.workbench.widgets.live_figure import RunsFigure

SHOWN_AT_FIRST = 4  # runs that are overlaid unless others are chosen


class Cockpit(HasJob, Panel):
    """Choose, train, watch, stop, compare. Shows itself as the last value of a cell, on one screen of 1280 × 800.

    folder: where each run gets a folder of its own, run-01, run-02, …; runs that lie there already are overlaid too.
    model, pairs: sources as `load_policy` and `load_preferences` take them.
    limit: how many pairs are used at most; few pairs make a quick run.
    samples: held-out prompts that the policy answers at each evaluation, at temperature 1, which also gives the KL.
    score: the true reward of a sampled answer, `score(row, answer)`, or None where nobody knows it.
    cache: file or folder of the reference's log-probs; None takes the usual one.

    `cockpit.train()`, `cockpit.train(num_seeds=3)` and `cockpit.stop()` are the buttons; `cockpit.wait(60)` waits for
    the run in hand and raises what went wrong in it. All controls are in `cockpit.controls`, all runs in
    `cockpit.runs`; `cockpit.restore(bookmark)` takes the panel back to where `cockpit.bookmark` was read.
    """

    def __init__(
        self, folder: str | Path = "runs", *, model: str = "embedded", pairs: str = "embedded", limit: int | None =
        2048, samples: int = 16, max_new_tokens: int = 80, config: DPOConfig | None = None, score: Score | None =
        true_reward, cache: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.score, self.cache = Path(folder), score, cache
        config = config or DPOConfig(evaluate_every=10)
        self.base = Recipe(
            model=str(model), pairs=str(pairs), limit=limit, samples=samples, max_new_tokens=max_new_tokens,
            sample_temperature=1.0, config=config,
        )  # fmt: skip
        self._display_error: Exception | None = None
        self.throttle = Throttle(share=0.2)
        self._text_throttle = Throttle(least=0.2)
        self.runs, complaints = status_text.saved_runs(self.folder)
        self._rows = {run.folder.name: run.metrics for run in self.runs}
        self._samples: dict[str, list[dict[str, Any]]] = {run.folder.name: run.samples for run in self.runs}
        self._prompts: list[str] = []
        self.controls = controls_of(self.base)
        self._start = {name: one.value for name, one in self.controls.items()}
        self._lay_out()
        self._on_change()
        self._show_answers()
        self.notes.value = markup.notes(complaints)

    # ── what the buttons do ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def recipe(self) -> Recipe:
        """The run that the controls describe. ValueError where there is no such run."""
        return recipe_of({name: one.value for name, one in self.controls.items()}, self.base)

    def train(self, num_seeds: int = 1) -> None:
        """Begin the run that the controls describe, or one after another with as many seeds. RuntimeError while another
        one goes on."""
        if self.running:
            raise RuntimeError("a run goes on already; stop() it or wait() for it first")
        recipe, self._display_error = self.recipe, None
        seeds = range(recipe.config.seed, recipe.config.seed + num_seeds)
        recipes = [replace(recipe, config=replace(recipe.config, seed=seed)) for seed in seeds]
        self._begin(next_folder(self.folder).name)
        self._show_buttons(is_running=True)
        self.job = Job(lambda stop: self._stream(recipes, stop), self._on_event, on_end=self._on_end, name=self._name)

    def _begin(self, name: str) -> None:
        self._name, self._rows[name], self._samples[name] = name, [], []
        self._progress, self._prepared, self._first = status_text.Progress(), None, None
        self.status.value = markup.line(f"{name} begins.")

    def _stream(self, recipes: Sequence[Recipe], stop: threading.Event) -> Iterator[status_text.RunEvent]:
        for number, recipe in enumerate(recipes):
            if number:
                if stop.is_set():
                    return
                self._end_of_run()
                self._begin(next_folder(self.folder).name)
            yield from carry_out(recipe, self.folder / self._name, stop=stop, progress=self._on_progress,
                                 score=self.score, cache=self.cache)  # fmt: skip

    @property
    def bookmark(self) -> str:
        """The controls that were turned, the runs shown and the prompt, as text that `restore` takes."""
        turned = {name: one.value for name, one in self.controls.items() if one.value != self._start[name]}
        return json.dumps(turned | {"runs": list(self.shown_runs.value), "prompt": self.prompt.value})

    def restore(self, bookmark: str) -> None:
        """Take the panel back to a bookmark; ValueError for a text that is none."""
        state = json.loads(bookmark) if bookmark.startswith("{") else None
        if state is None:
            raise ValueError(f"this is no bookmark of a cockpit: {bookmark!r:.60}; copy one from the field")
        self.set({name: value for name, value in state.items() if name in self.controls})
        self.shown_runs.value = [name for _, name in self.shown_runs.options if name in state.get("runs", ())]
        if state.get("prompt") in [number for _, number in self.prompt.options]:
            self.prompt.value = state["prompt"]

    def set(self, values: Mapping[str, Any]) -> None:
        """Put these values into the controls, the loss first, and the others back to where they began."""
        for name in ("loss", *self.controls):
            self.controls[name].value = {**self._start, **values}[name]

    def stop(self) -> None:
        """Stop the run in hand. It ends within moments and is saved as it stands."""
        if self.running:
            self.stop_button.disabled = True
            self.status.value = markup.line("Stopping: the model and the curves are being saved.")
            super().stop()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the run in hand has ended, and raise what was raised in it, or in showing it."""
        super().wait(timeout)
        if self._display_error is not None:
            raise self._display_error

    # ── what the training's thread calls ─────────────────────────────────────────────────────────────────────────

    def _on_progress(self, what: str, done: int, total: int) -> None:
        self._progress.during(what, done, total)
        self._guarded(lambda: self._text_throttle(self._show_progress))

    def _on_event(self, event: status_text.RunEvent) -> None:
        self._guarded(lambda: self._show_event(self._name, event))

    def _guarded(self, show: Callable[[], object]) -> None:
        """Show something. A page that is gone is no reason to end a training; `wait` raises it."""
        try:
            show()
        except Exception as error:
            self._display_error = self._display_error or error

    def _show_event(self, name: str, event: status_text.RunEvent) -> None:
        self._progress.after(event)
        match event:
            case Prepared():
                self._prepared = event
                self.runs.append(Run.load(self.folder / name))
                self._offer_runs(newest=name)
                self._offer_prompts(event.prompts)
                self.notes.value = markup.notes(event.notes)
                self.status.value = markup.line(f"{name}: {self._progress.words}.")
            case Answers():
                self._record_answers(name, event)
            case Finished():
                self._rows[name].append(row_of(event) or {})
                self.stop_button.disabled = True
                state = "complete" if event.is_complete else "stopped"
                self.status.value = markup.line(
                    f"{name}: {state} after step {event.step}; the model is saved, the report is being written."
                )
                self.throttle.now(self.curves.try_redraw)
            case _ if (row := row_of(event)) is not None:
                self._rows[name].append(row)
                self.throttle(self.curves.try_redraw)
        self._text_throttle(self._show_progress)

    def _end_of_run(self) -> Run | None:
        """The run in hand has ended: its rows from its folder, or, where it left none, it goes from the list."""
        name = self._name
        saved = next((run for run in self.runs if run.folder.name == name and run.folder.exists()), None)
        if saved is not None:
            self._rows[name], self._samples[name] = saved.metrics, saved.samples or self._samples[name]
        else:
            self.runs = [run for run in self.runs if run.folder.name != name]
            self._offer_runs()
        self._show_answers()
        return saved

    def _on_end(self, error: BaseException | None) -> None:
        saved = self._end_of_run()
        self._progress.end()
        self._show_progress()
        self.throttle.now(self.curves.try_redraw)
        if error is not None:
            what = "" if saved is None else " What was measured so far is saved."
            self.status.value = markup.line(f"{type(error).__name__}: {error}{what}", is_error=True)
        else:
            nothing = f"{self._name} was stopped before its first step; nothing was saved."
            self.status.value = markup.line(nothing if saved is None else status_text.ending(saved))
        self._show_buttons(is_running=False)

    def _record_answers(self, name: str, event: Answers) -> None:
        self._first = self._first or event
        prompts = self._prepared.prompts if self._prepared else ()
        self._samples[name] = status_text.samples_so_far(prompts, self._first, event)
        self._show_answers()

    # ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────

    def draw(self, runs: Sequence[str]) -> Picture:
        """The curves of the runs of these names, as they stand now."""
        return watch_figure(self._chosen(runs))

    def describe(self, runs: Sequence[str]) -> str:
        """What `draw` shows, in words."""
        return describe_watch(self._chosen(runs))

    def _chosen(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The rows of these runs by what tells the runs apart; those that differ by their seed alone as one."""
        groups = seed_groups([run for run in self.runs if run.folder.name in names])
        chosen: dict[str, list[dict[str, Any]]] = {}
        for label, group in zip(run_labels([group[0] for group in groups]), groups, strict=True):
            rows = [list(self._rows[run.folder.name]) for run in group]
            chosen |= {label: rows[0]} if len(rows) == 1 else {f"{label}, {len(rows)} seeds": over_seeds(rows)}
        return chosen

    def _show_progress(self) -> None:
        share = self._progress.share
        self.bar.bar_style = "" if share is not None else "info"
        self.bar.value = 0.0 if share is None else share
        self.progress.value = markup.line(self._progress.words)

    def _show_buttons(self, *, is_running: bool) -> None:
        self.stop_button.disabled = not is_running
        self.train_button.disabled = self.seeds_button.disabled = is_running or not self._is_valid

    def _offer_runs(self, newest: str | None = None) -> None:
        options, names = self._run_options(), [run.folder.name for run in self.runs]
        chosen = [name for name in self.shown_runs.value if name in names] or names[-SHOWN_AT_FIRST:]
        self.curves.offer(options, (*chosen, *([newest] if newest and newest not in chosen else [])))
        answering = newest or self.answers_of.value
        self.answers_of.options = options[::-1]
        self.answers_of.value = answering if answering in names else (names[-1] if names else None)

    def _run_options(self) -> list[tuple[str, str]]:
        labels = run_labels(self.runs) if self.runs else []
        return [(markup.shortened(label, 60), run.folder.name) for label, run in zip(labels, self.runs, strict=True)]

    def _offer_prompts(self, prompts: Sequence[str]) -> None:
        if self._prompts == list(prompts):
            return
        self._prompts, chosen = list(prompts), self.prompt.value
        self.prompt.options = markup.numbered(prompts)
        if prompts:
            self.prompt.value = chosen if chosen in range(1, len(prompts) + 1) else 1

    def _show_answers(self, _change: object = None) -> None:
        samples = self._samples.get(self.answers_of.value or "", [])
        if samples:
            self._offer_prompts([sample["prompt"] for sample in samples])
        number = self.prompt.value
        if number is None or number > len(samples):
            self.answers.value = markup.line("No answers yet: they come with the first evaluation.")
            return
        sample = samples[number - 1]
        self.answers.value = markup.answers(sample["prompt"], status_text.sample_columns(sample))

    def _on_change(self, change: Mapping[str, Any] | None = None) -> None:
        words = "Ready."
        if change is not None and change["owner"] is self.controls["loss"]:
            words = self._follow_loss()
        elif change is not None:
            words = at_its_end(change["owner"]) or words
        try:
            recipe = self.recipe
        except ValueError as error:
            self._is_valid = False
            self.command.value = self.python.value = ""
            self.status.value = markup.line(str(error), is_error=True)
        else:
            self._is_valid = True
            self.command.value = markup.code(command_line(recipe), "the same run as a command")
            self.python.value = markup.code(python_code(recipe), "the same run as Python")
            if change is not None and not self.running:
                self.status.value = markup.line(words)
        self._show_buttons(is_running=self.running)
        self._show_bookmark()

    def _follow_loss(self) -> str:
        """Knobs that the new loss lacks are switched off, the others start where the loss does; says so."""
        loss = self.controls["loss"].value
        known, further = own_knobs(loss), further_knobs(loss)
        for name in SHARED_KNOBS:
            self.controls[name].disabled = name not in known
            self.controls[name].value = known.get(name, self.controls[name].value)
        self.controls["knobs"].value, self.controls["knobs"].disabled = further, not further
        starts = " ".join([*(f"{name}={value:g}" for name, value in known.items()), further]).strip()
        spec = (LOSSES | UNPAIRED_LOSSES).get(loss)
        return f"{spec.summary if spec else loss} Its knobs stand at its own start: {starts or 'it has none'}."

    def _show_bookmark(self, _change: object = None) -> None:
        self.place.value = self.bookmark

    def _on_bookmark(self, change: Mapping[str, Any]) -> None:
        if change["new"] != self.bookmark:
            attempt(lambda: self.restore(change["new"]), self.status)

    def _lay_out(self) -> None:
        options, box = self._run_options(), ipywidgets.Layout
        column: dict[str, Any] = {"layout": box(width="auto"), "style": {"description_width": LABEL}}
        half: dict[str, Any] = column | {"layout": box(flex="1 1 0", width="auto", min_width="12em")}
        self.preset = ipywidgets.Dropdown(options=list(PRESETS), description="preset", **column,
                                          **tip("Runs of the embedded model that are worth seeing"))  # fmt: skip
        third = {"layout": box(flex="1 1 0", width="auto", min_width="4.6em")}
        self.train_button = button("Train", "Begin the run that the controls describe", self.train, icon="play",
                                   button_style="primary", **third)  # fmt: skip
        self.train_button.add_class("dpo-lab-waits")
        self.seeds_button = button("3 seeds", "The same run with three seeds, one after another: their mean, and "
                                   "a band from the least to the most", lambda: self.train(3), **third)  # fmt: skip
        self.stop_button = button("Stop", "End the run in hand and save it as it stands", self.stop, icon="stop",
                                  button_style="danger", disabled=True, **third)  # fmt: skip
        self.bar = ipywidgets.FloatProgress(min=0, max=1, layout=box(width="auto", height="12px"))
        self.status, self.progress, self.notes, self.answers, self.command, self.python = texts(6)
        self.progress.value = markup.line("no run yet")
        self.shown_runs = ipywidgets.SelectMultiple(
            options=options, value=tuple(name for _, name in options[-SHOWN_AT_FIRST:]), description="runs shown",
            rows=4, **tip("Curves over each other; Ctrl or Shift chooses several"), **column,
        )  # fmt: skip
        self.curves = RunsFigure(self.draw, describe=self.describe, runs=self.shown_runs)
        self.answers_of = ipywidgets.Dropdown(options=options[::-1], description="answers of",
                                              **tip("Whose answers are shown"), **half)  # fmt: skip
        self.prompt = ipywidgets.Dropdown(description="prompt", **tip("The held-out prompt that was answered"), **half)
        self.place = ipywidgets.Text(description="bookmark", continuous_update=False, **column, **tip(
            "The panel's state. Save this text; pasted here, with Enter, it brings the state back"))  # fmt: skip
        shown, rare = ([one for name, one in self.controls.items() if (name in FOLDED) == rare] for rare in (0, 1))
        self.more = ipywidgets.Accordion([ipywidgets.VBox([*rare, self.place])])
        self.more.set_title(0, "more")
        self.as_code = ipywidgets.Accordion([self.command, self.python])
        for index, language in enumerate(("a command", "Python")):
            self.as_code.set_title(index, f"The same run as {language}")
        buttons = ipywidgets.HBox([self.train_button, self.seeds_button, self.stop_button])
        left = ipywidgets.VBox([self.preset, *shown, self.more, buttons, self.bar, self.progress, self.shown_runs],
                               layout=box(flex="1 1 16em", min_width="15em", max_width="21em"))  # fmt: skip
        self.answers.layout = box(max_height="13em", overflow="auto", width="auto")
        right = ipywidgets.VBox([self.status, self.curves.image, row(self.answers_of, self.prompt), self.answers],
                                layout=box(flex="3 1 26em", min_width="20em"))  # fmt: skip
        super().__init__([
            ipywidgets.HBox([left, right], layout=box(flex_flow="row wrap")),
            self.curves.words, self.notes, self.as_code,
        ])  # fmt: skip
        watched = {self._on_change: self.controls.values(), self._show_answers: (self.prompt, self.answers_of),
                   self._show_bookmark: (self.prompt, self.shown_runs), self._on_bookmark: (self.place,),
                   lambda change: self.set(PRESETS[change["new"]]): (self.preset,)}  # fmt: skip
        for act, widgets in watched.items():
            for one in widgets:
                one.observe(act, names="value")

    def __repr__(self) -> str:
        try:
            return f"Cockpit({command_line(self.recipe)})"
        except ValueError as error:
            return f"Cockpit({error})"
