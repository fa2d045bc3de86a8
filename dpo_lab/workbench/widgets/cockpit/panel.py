"""The cockpit: layout and wiring. What it trains is `recipes.carry_out`, what it draws `plots.watch_figure`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Finished
from dpo_lab.workbench.plots.overlays import describe_watch, watch_figure
from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.recipes.answers import true_reward
from dpo_lab.workbench.recipes.recipe import Recipe, command_line, python_code
from dpo_lab.workbench.recipes.session import Answers, Prepared, Score, carry_out, next_folder
from dpo_lab.workbench.runs.compare import run_labels
from dpo_lab.workbench.runs.run import Run, row_of
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import HasJob, Job, Throttle
from dpo_lab.workbench.widgets.cockpit import status_text
from dpo_lab.workbench.widgets.cockpit.knobs import controls_of
from dpo_lab.workbench.widgets.cockpit.to_recipe import SHARED_KNOBS, own_knobs, recipe_of
from dpo_lab.workbench.widgets.layout import button, room, texts, tip
from dpo_lab.workbench.widgets.live_figure import RunsFigure

SHOWN_AT_FIRST = 4  # runs that are overlaid unless others are chosen


class Cockpit(HasJob, ipywidgets.VBox):
    """Choose, train, watch, stop, compare. Shows itself as the last value of a cell.

    folder: where each run gets a folder of its own, run-01, run-02, …; runs that lie there already are overlaid too.
    model, pairs: sources as `load_policy` and `load_preferences` take them.
    limit: how many pairs are used at most; few pairs make a quick run.
    score: the true reward of a sampled answer, `score(row, answer)`, or None where nobody knows it.
    cache: file or folder of the reference's log-probs; None takes the usual one.

    `cockpit.train()` and `cockpit.stop()` are the two buttons; `cockpit.wait(60)` waits for the run in hand and raises
    what went wrong in it. All controls are in `cockpit.controls`, all runs in `cockpit.runs`.
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
            config=config,
        )  # fmt: skip
        self._display_error: Exception | None = None
        self.throttle = Throttle()
        self._text_throttle = Throttle(least=0.2)
        self.runs, complaints = status_text.saved_runs(self.folder)
        self._rows = {run.folder.name: run.metrics for run in self.runs}
        self._samples: dict[str, list[dict[str, Any]]] = {run.folder.name: run.samples for run in self.runs}
        self._prompts: list[str] = []
        self.controls = controls_of(self.base)
        self._lay_out()
        self._on_change()
        self._show_answers()
        self.notes.value = markup.notes(complaints)

    # ── what the buttons do ──────────────────────────────────────────────────────────────────────────────────────

    @property
    def recipe(self) -> Recipe:
        """The run that the controls describe. ValueError where there is no such run."""
        return recipe_of({name: one.value for name, one in self.controls.items()}, self.base)

    def train(self) -> None:
        """Begin the run that the controls describe. RuntimeError while another one goes on."""
        if self.running:
            raise RuntimeError("a run goes on already; stop() it or wait() for it first")
        recipe = self.recipe
        name = next_folder(self.folder).name
        self._rows[name], self._samples[name] = [], []
        self._progress, self._prepared, self._first, self._display_error = status_text.Progress(), None, None, None
        self._show_buttons(is_running=True)
        self.status.value = markup.line(f"{name} begins.")
        self.job = Job(
            lambda stop: carry_out(recipe, self.folder / name, stop=stop, progress=self._on_progress, score=self.score,
                                   cache=self.cache),
            partial(self._on_event, name), on_end=partial(self._on_end, name), name=name,
        )  # fmt: skip

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

    def _on_event(self, name: str, event: status_text.RunEvent) -> None:
        self._guarded(lambda: self._show_event(name, event))

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

    def _on_end(self, name: str, error: BaseException | None) -> None:
        saved = next((run for run in self.runs if run.folder.name == name and run.folder.exists()), None)
        if saved is not None:
            self._rows[name], self._samples[name] = saved.metrics, saved.samples or self._samples[name]
        else:
            self.runs = [run for run in self.runs if run.folder.name != name]
            self._offer_runs()
        self._show_answers()
        self._progress.end()
        self._show_progress()
        if error is not None:
            self.throttle.now(self.curves.try_redraw)
            what = "" if saved is None else " What was measured so far is saved."
            self.status.value = markup.line(f"{type(error).__name__}: {error}{what}", is_error=True)
        else:
            nothing = f"{name} was stopped before its first step; nothing was saved."
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
        labels = dict(zip((run.folder.name for run in self.runs), run_labels(self.runs), strict=True))
        return {labels[name]: list(self._rows[name]) for name in labels if name in names}

    def _show_progress(self) -> None:
        share = self._progress.share
        self.bar.bar_style = "" if share is not None else "info"
        self.bar.value = 0.0 if share is None else share
        self.progress.value = self._progress.words

    def _show_buttons(self, *, is_running: bool) -> None:
        self.train_button.disabled, self.stop_button.disabled = is_running or not self._is_valid, not is_running

    def _offer_runs(self, newest: str | None = None) -> None:
        options, names = self._run_options(), [run.folder.name for run in self.runs]
        chosen = [name for name in self.shown_runs.value if name in names] or names[-SHOWN_AT_FIRST:]
        self.curves.offer(options, (*chosen, *([newest] if newest and newest not in chosen else [])))
        answering = newest or self.answers_of.value
        self.answers_of.options = options[::-1]
        self.answers_of.value = answering if answering in names else (names[-1] if names else None)

    def _run_options(self) -> list[tuple[str, str]]:
        labels = run_labels(self.runs) if self.runs else []
        return [(markup.shortened(label, 90), run.folder.name) for label, run in zip(labels, self.runs, strict=True)]

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
        if change is not None and change["owner"] is self.controls["loss"]:
            self._follow_loss()
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
                self.status.value = markup.line("Ready.")
        self._show_buttons(is_running=self.running)

    def _follow_loss(self) -> None:
        """Knobs that the new loss lacks are switched off, the others start where the loss does."""
        known = own_knobs(self.controls["loss"].value)
        for name in SHARED_KNOBS:
            one = self.controls[name]
            one.disabled = name not in known
            if name in known:
                one.value = known[name]

    def _lay_out(self) -> None:
        options, wide = self._run_options(), room("46em", "8em")
        self.train_button = button("Train", "Begin the run that the controls describe", self.train, icon="play",
                                   button_style="primary")  # fmt: skip
        self.stop_button = button("Stop", "End the run in hand and save it as it stands", self.stop, icon="stop",
                                  button_style="danger", disabled=True)  # fmt: skip
        self.bar = ipywidgets.FloatProgress(min=0, max=1, description="progress", **room("24em", "8em"))
        self.progress = ipywidgets.Label(value="no run yet")
        self.status, self.notes, self.answers, self.command, self.python = texts(5)
        self.shown_runs = ipywidgets.SelectMultiple(
            options=options, value=tuple(name for _, name in options[-SHOWN_AT_FIRST:]), description="runs shown",
            rows=4, **tip("Curves over each other; Ctrl or Shift chooses several"), **wide,
        )  # fmt: skip
        self.curves = RunsFigure(self.draw, describe=self.describe, runs=self.shown_runs)
        self.answers_of = ipywidgets.Dropdown(options=options[::-1], description="answers of",
                                              **tip("Whose answers are shown"), **wide)  # fmt: skip
        self.prompt = ipywidgets.Dropdown(description="prompt", **tip("The held-out prompt that was answered"),
                                          **wide)  # fmt: skip
        self.as_code = ipywidgets.Accordion([self.command, self.python])
        for index, language in enumerate(("a command", "Python")):
            self.as_code.set_title(index, f"The same run as {language}")
        knobs = ipywidgets.Box(list(self.controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([
            knobs, ipywidgets.HBox([self.train_button, self.stop_button]),
            ipywidgets.VBox([self.bar, self.progress]),
            self.status, self.notes, self.curves, self.answers_of, self.prompt, self.answers, self.as_code,
        ])  # fmt: skip
        for one in self.controls.values():
            one.observe(self._on_change, names="value")
        for one in (self.prompt, self.answers_of):
            one.observe(self._show_answers, names="value")

    def __repr__(self) -> str:
        try:
            return f"Cockpit({command_line(self.recipe)})"
        except ValueError as error:
            return f"Cockpit({error})"
