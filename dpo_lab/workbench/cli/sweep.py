"""`dpo-lab sweep`: search for good knobs, alone or together with other processes on the same study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from dpo_lab.workbench.cli.inputs import dated_folder, settled
from dpo_lab.workbench.cli.interruption import Interruption
from dpo_lab.workbench.cli.options import SweepOptions
from dpo_lab.workbench.cli.terminal import console
from dpo_lab.workbench.runs.settings import shared_fields
from dpo_lab.workbench.sweeps.settings import OBJECTIVES, SweepSettings
from dpo_lab.workbench.sweeps.study import SETTINGS, Row, StoredStudy, as_begun
from dpo_lab.workbench.sweeps.sweep import (
    Prepared,
    SweepEnded,
    SweepEvent,
    TrialBegan,
    TrialEnded,
    TrialLook,
    TrialStep,
    run_sweep,
    train_line,
)


def sweep(options: SweepOptions) -> int:
    """Work on a study until its budget is spent; then a table of trials, and the best as a line of `dpo-lab train`."""
    folder = options.study or dated_folder("sweep")
    is_joined = (folder / SETTINGS).exists()
    given = shared_fields(options if is_joined else settled(options), SweepSettings)
    if given["precision"] == "auto":  # whoever began the study has settled it
        given["precision"] = SweepSettings().precision
    settings = as_begun(folder, SweepSettings(**given))
    interruption = Interruption()
    events = run_sweep(settings, folder, cache=options.cache, stop=interruption)
    console.print(f"{'joining' if is_joined else 'new'} study: {folder}", soft_wrap=True)
    searched = ", ".join(f"{name} {dimension}" for name, dimension in settings.space().searched.items())
    console.print(f"searching {searched}, by {OBJECTIVES[settings.objective].title}", soft_wrap=True)
    ended = None
    with interruption, Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}"),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None, visible=False, numbers="")
        for event in events:
            if isinstance(event, TrialStep):
                bar.update(task, description=f"trial {event.number}", total=event.num_steps, completed=event.step,
                           visible=True)  # fmt: skip
            elif isinstance(event, TrialLook):
                bar.update(task, numbers=f"{settings.objective} {event.value:.4f}")
            elif isinstance(event, SweepEnded):
                ended = event
            elif line := event_line(event):
                bar.console.print(line, soft_wrap=True)
    assert ended is not None, "a sweep ends with SweepEnded"
    return _close(folder, settings, ended)


def event_line(event: SweepEvent) -> str:
    """A line about what happened; empty where it is too small a thing."""
    match event:
        case Prepared():
            found = event.num_pairs + event.num_validation - event.num_scored
            return (f"{event.num_pairs:,} pairs to train on, {event.num_validation:,} to compare trials on; reference: "
                    f"{event.num_scored:,} scored, {found:,} found in the cache")  # fmt: skip
        case TrialBegan():
            values = ", ".join(f"{name} {shown(value)}" for name, value in event.values.items())
            return f"trial {event.number} ({event.num_ended} of {event.num_trials} ended): {values}"
        case TrialEnded():
            value = "" if event.value is None else f" {event.value:.4f}"
            return f"  {event.state}{value}{f': {event.why}' if event.why else ''}"
        case _:
            return ""


def shown(value: Any) -> str:
    """A knob's value, short."""
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def trial_table(rows: list[Row], objective: str, searched: list[str], best: Row | None) -> Table:
    """The trials, the best of them marked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", *searched, objective, "", "s"):
        table.add_column(name, justify="right" if name not in ("",) else "left")
    for row in rows:
        is_best = best is not None and row["trial"] == best["trial"]
        last = list(row["looks"].values())[-1:]
        value = row["value"] if row["value"] is not None else last[0] if last else None
        state = "best" if is_best else "" if row["state"] == "complete" else row["state"]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        cells = [str(row["trial"]), *(shown(row[name]) if row[name] is not None else "" for name in searched),
                 "" if value is None else f"{value:.4f}", state, seconds]  # fmt: skip
        table.add_row(*map(Text, cells), style="bold" if is_best else "" if row["state"] == "complete" else "dim")
    return table


def _close(folder: Path, settings: SweepSettings, ended: SweepEnded) -> int:
    study = StoredStudy.load(folder)
    console.print(trial_table(ended.rows, settings.objective, list(study.space.searched), ended.best))
    for name, share in study.importances().items():
        console.print(f"importance of {name}: {share:.0%}")
    console.print(f"runs: dpo-lab compare {shlex.quote(str(folder / 'trials'))}", soft_wrap=True)
    if ended.best is not None:
        ties = sum(row["value"] == ended.best["value"] for row in ended.rows)
        if ties > 1:
            advice = "more validation pairs or another objective would separate them"
            console.print(f"{ties} trials share the best value, and the first is taken; {advice}", soft_wrap=True)
        values = study.space.fixed | {name: ended.best[name] for name in study.space.searched}
        console.print(f"best, on all of these pairs: {train_line(values, settings)}", soft_wrap=True)
    if ended.is_complete:
        return 0
    console.print(f"stopped; go on with: dpo-lab sweep --study {shlex.quote(str(folder))}", soft_wrap=True)
    return 130
