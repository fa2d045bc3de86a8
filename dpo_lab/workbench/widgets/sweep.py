"""A sweep as a panel: what may be tried, the budget, Start, Stop, the trials as they come in.

`sweep_settings`, `draw_sweep` and `table_of_trials` are plain functions: the panel puts controls before them, and a
static twin calls them with the rows of a study.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import ipywidgets

from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.plots.sweeps import describe_sweep, sweep_figure
from dpo_lab.workbench.sweeps import sweep
from dpo_lab.workbench.sweeps.settings import DEFAULT_TRIALS, OBJECTIVES, SamplerName, SweepSettings, is_logarithmic
from dpo_lab.workbench.sweeps.study import SETTINGS, Row, StoredStudy, best_row
from dpo_lab.workbench.sweeps.sweep import SweepEnded, SweepEvent, TrialBegan, TrialEnded, TrialStep
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.background import HasJob, Job, Throttle
from dpo_lab.workbench.widgets.controls import control_of
from dpo_lab.workbench.widgets.layout import Panel, button, drawing, picture_box, room, row, show_picture, texts, tip

KNOBS = ("loss", "beta", "learning_rate", "label_smoothing", "epochs", "batch_size")
"""The knobs that have a field in the panel; the others of a sweep come in through `SweepPanel(**settings)`."""

FIELD = room("21em", "6.8em")  # three beside each other on a small screen


def sweep_settings(values: Mapping[str, Any], begin_with: SweepSettings | None = None) -> SweepSettings:
    """The settings that the panel's fields stand for; an empty field leaves its knob alone. ValueError as `check`."""
    cleaned: dict[str, Any] = {
        name: None if isinstance(value, str) and not value.strip() else value for name, value in values.items()
    }
    settings = replace(begin_with or SweepSettings(), **cleaned)
    settings.check()
    return settings


def draw_sweep(rows: Sequence[Row], settings: SweepSettings, importance: Mapping[str, float] | None = None) -> Picture:
    """The sweep so far: its course, what mattered, and a slice for each knob."""
    space, objective = settings.space(), OBJECTIVES[settings.objective]
    return sweep_figure(
        rows, {name: is_logarithmic(space, name) for name in space.searched}, objective.title,
        is_larger_better=objective.is_larger_better, importance=importance,
    )  # fmt: skip


def table_of_trials(rows: Sequence[Row], settings: SweepSettings) -> str:
    """The trials as an HTML table, the best first."""
    objective, names = OBJECTIVES[settings.objective], list(settings.space().searched)
    sign = -1 if objective.is_larger_better else 1
    ranked = sorted(rows, key=lambda row: (row["value"] is None, sign * (row["value"] or 0), row["trial"]))
    lines = [
        {"trial": row["trial"]} | {name: row[name] for name in names}
        | {objective.title: row["value"], "state": row["state"], "why": row["why"]}
        for row in ranked
    ]  # fmt: skip
    table = markup.table("Trials, the best first", lines)
    return f'<div tabindex="0" style="max-height: 16em; overflow: auto">{table}</div>'


def words_for(event: SweepEvent) -> str:
    """What happened, in a line; empty where it is too small a thing."""
    listed = lambda values: ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
    match event:
        case sweep.Prepared():
            return f"{event.num_pairs} pairs to train on, {event.num_validation} to compare trials on."
        case TrialBegan():
            return f"Trial {event.number}: {listed(event.values)}. {event.num_ended} of {event.num_trials} have ended."
        case TrialEnded(value=None):
            return f"Trial {event.number} {event.state}: {event.why}."
        case TrialEnded():
            return f"Trial {event.number} complete: {event.value:.4f}."
        case SweepEnded():
            return "The budget is spent." if event.is_complete else "Stopped. Start goes on with this study."
        case _:
            return ""


class SweepPanel(HasJob, Panel):
    """Fields for the space and the budget, Start and Stop, progress, a picture and a table of the trials.

    folder: where the study lies; one that is there is joined. None makes runs/sweep-DATE-TIME at the first Start.
    settings: any field of `SweepSettings`, to begin with; model and pairs are sources as `load_policy` and
        `load_preferences` take them. Of the embedded pairs the true reward is known, so trials are chosen by it.
    `wait()` returns when the sweep in hand has ended and raises what went wrong in it; `rows` has the trials.
    """

    def __init__(self, *, folder: str | Path | None = None, cache: str | Path | None = None, **settings: Any) -> None:
        begin_with = {"beta": "0.05:1:log", "learning_rate": "5e-5:1e-3:log", "limit": 400, "trials": 8}
        begin_with["objective"] = "reward" if settings.get("pairs", "embedded") == "embedded" else "accuracy"
        self.settings = SweepSettings(**begin_with | settings)
        self.folder, self._cache = None if folder is None else Path(folder), cache
        self.rows: list[Row] = []
        if self.folder is not None and (self.folder / SETTINGS).is_file():
            study = StoredStudy.load(self.folder)
            self.settings, self.rows = study.settings, study.rows()
        self.controls: dict[str, Any] = _fields(self.settings)
        self.controls["folder"] = ipywidgets.Text(
            value="" if folder is None else str(folder), description="study folder", continuous_update=False,
            placeholder="empty: a new one in runs/", **tip("A folder that holds a study is joined"), **FIELD,
        )  # fmt: skip
        self.start_button = button("Start", "Begin, or go on", self.start, button_style="primary")
        self.stop_button = button("Stop", "End after the step in hand; the trial is given back", self.stop,
                                  disabled=True)  # fmt: skip
        self.progress = ipywidgets.FloatProgress(min=0, max=1, description="sweep", **FIELD)
        self.words, self.command, self.table = texts(3)
        self.image = picture_box()
        self._draws, self._began = Throttle(least=1.0), 0.0
        for control in self.controls.values():
            control.observe(self._on_change, names="value")
        fields = ipywidgets.Box(list(self.controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        buttons = row(self.start_button, self.stop_button, self.progress)
        super().__init__([fields, buttons, self.words, self.image, self.table, self.command])
        found = f"{len(self.rows)} trials lie in this folder; Start goes on." if self.rows else "Nothing runs yet."
        self._say(f"{found} Each knob takes a value, a list a,b,c, a range low:high, or low:high:log.")
        self._on_change()
        self._draw()
        self._show_best()

    # ── what buttons do ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin the sweep, or go on with the study in the folder. A wrong field begins nothing; the panel names it."""
        if self.running or (request := self._request()) is None:
            return
        settings, folder = request
        self.settings, self.folder, self._began = settings, folder, time.perf_counter()
        if self.controls["folder"].value != str(folder):
            self.controls["folder"].value = str(folder)
        self.start_button.disabled, self.stop_button.disabled = True, False
        self.progress.value, self.progress.bar_style = 0.0, "info"
        self._say("Reading model and data …")
        events = lambda stop: sweep.run_sweep(settings, folder, cache=self._cache, stop=stop.is_set)
        self.job = Job(events, self._on_event, on_end=self._on_end, name="sweep")

    @property
    def best(self) -> Row | None:
        """The best complete trial so far."""
        return best_row(self.rows, is_larger_better=OBJECTIVES[self.settings.objective].is_larger_better)

    # ── wiring ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _request(self) -> tuple[SweepSettings, Path] | None:
        """What the fields say; None where one is wrong, which the panel then names."""
        values = {name: control.value for name, control in self.controls.items() if name != "folder"}
        values["limit"] = values["limit"] or None
        try:
            settings = sweep_settings(values, self.settings)
        except ValueError as error:
            self._say(f"this can't be searched: {error}", is_error=True)
            return None
        place = self.controls["folder"].value.strip()
        return settings, Path(place or f"runs/sweep-{datetime.now():%Y%m%d-%H%M%S}")

    def _on_change(self, _: object = None) -> None:
        if request := self._request():
            place = self.controls["folder"].value.strip() or None
            self.command.value = _titled("The same in a terminal", sweep.sweep_line(request[0], place))

    def _on_event(self, event: SweepEvent) -> None:
        if isinstance(event, TrialBegan):
            self._ended, self._budget = event.num_ended, event.num_trials
        if isinstance(event, TrialStep):
            self._show_progress(event.step / event.num_steps)
        elif isinstance(event, TrialEnded):
            self._draws(self._read_and_draw)
        elif isinstance(event, SweepEnded):
            self.rows = event.rows
        if not isinstance(event, TrialStep | sweep.TrialLook):
            self._say(words_for(event))

    def _show_progress(self, share_of_trial: float) -> None:
        done = min(1.0, (self._ended + share_of_trial) / self._budget)
        self.progress.value = done
        seconds = time.perf_counter() - self._began
        if done > 0.02:
            self.progress.description = f"{seconds * (1 - done) / done:.0f} s left"

    def _read_and_draw(self) -> None:
        assert self.folder is not None
        self.rows = StoredStudy.load(self.folder).rows()
        self._draw()

    def _draw(self) -> None:
        importance = StoredStudy.load(self.folder).importances() if self.rows and self.folder else {}
        with drawing:
            show_picture(self.image, draw_sweep(self.rows, self.settings, importance))
        self.table.value = table_of_trials(self.rows, self.settings) if self.rows else ""

    def _on_end(self, error: BaseException | None) -> None:
        self.start_button.disabled, self.stop_button.disabled = False, True
        self.progress.description = "sweep"
        self.progress.bar_style = "danger" if error else "success"
        if error is not None:
            self._say(f"{type(error).__name__}: {error}", is_error=True)
            return
        self._draw()
        self._show_best()

    def _show_best(self) -> None:
        if self.best is None:
            return
        objective, searched = OBJECTIVES[self.settings.objective], list(self.settings.space().searched)
        values = self.settings.space().fixed | {name: self.best[name] for name in searched}
        words = describe_sweep(self.rows, searched, objective.title, is_larger_better=objective.is_larger_better)
        title = f"{words} Trained on the pairs of the sweep, those of validation included:"
        self.command.value = _titled(title, sweep.train_line(values, self.settings))

    def _say(self, text: str, *, is_error: bool = False) -> None:
        self.words.value = markup.line(text, is_error=is_error)

    def __repr__(self) -> str:
        return f"SweepPanel({sweep.sweep_line(self.settings)!r})"


def _fields(settings: SweepSettings) -> dict[str, Any]:
    """One labelled control for each setting that the panel shows; its tooltip is the line under the field."""
    make = lambda kind, name, **traits: control_of(kind, SweepSettings, name, **FIELD | traits)
    controls: dict[str, Any] = {
        name: make(ipywidgets.Text, name, value=getattr(settings, name) or "", continuous_update=False,
                   placeholder="the default")
        for name in KNOBS
    }  # fmt: skip
    controls["objective"] = make(
        ipywidgets.Dropdown, "objective", value=settings.objective, description="choose by",
        options=[(spec.title, name) for name, spec in OBJECTIVES.items()],
    )  # fmt: skip
    controls["sampler"] = make(
        ipywidgets.Dropdown, "sampler", value=settings.sampler, options=SamplerName.__args__, description="search"
    )
    whole = {"trials": (settings.trials or DEFAULT_TRIALS, 1, 10_000), "limit": (settings.limit or 0, 0, 10_000_000),
             "seed": (settings.seed, 0, 2**31 - 1)}  # fmt: skip
    for name, (value, least, most) in whole.items():
        label = {"limit": "pairs (0: all)"}.get(name, name)
        controls[name] = make(
            ipywidgets.BoundedIntText, name, value=value, min=least, max=most, description=label,
            continuous_update=False,
        )  # fmt: skip
    controls["prune"] = make(ipywidgets.Checkbox, "prune", value=settings.prune, description="end weak trials early",
                            indent=False)  # fmt: skip
    return controls


def _titled(title: str, command: str) -> str:
    return f'<p style="margin: 0.3em 0">{markup.text(title)}</p>{markup.code(command, title)}'
