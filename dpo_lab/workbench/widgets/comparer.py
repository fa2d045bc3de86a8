"""Runs side by side: curves over each other, the settings that differ, answers to the same prompts, a table to keep.

Layout and wiring; every number is from `workbench.runs`: `comparison_figure`, `compare_runs`, `answers_side_by_side`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from dpo_lab.workbench.plots.overlays import blank_figure, describe_runs
from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.runs.compare import (
    FIGURE_METRICS,
    answers_side_by_side,
    compare_runs,
    comparison_csv,
    comparison_figure,
    comparison_frame,
    load_runs,
    run_labels,
    run_names,
)
from dpo_lab.workbench.runs.run import Run
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.live_figure import FULL_WIDTH
from dpo_lab.workbench.widgets.menus import RunsFigure, shortened

if TYPE_CHECKING:
    import pandas

_STYLE = {"description_width": "8em"}


class Comparer(ipywidgets.VBox):
    """Compare runs, chosen from a list. Shows itself as the last value of a cell.

    sources: run folders, folders that hold several runs, or `Run` objects. `comparer.chosen` are the runs compared
    now; `comparer.table()` is what the panel shows as a pandas table, `comparer.to_csv("runs.csv")` writes it.
    """

    def __init__(self, *sources: str | Path | Run) -> None:
        self.sources = sources
        self.all = _loaded(sources)
        wide = ipywidgets.Layout(width="46em", max_width=FULL_WIDTH)
        self.runs = ipywidgets.SelectMultiple(
            options=self._options(), value=tuple(range(len(self.all))), description="runs",
            rows=min(8, max(3, len(self.all))), style=_STYLE, layout=wide,
            tooltip="The runs to compare; Ctrl or Shift chooses several",
        )  # fmt: skip
        self.prompt = ipywidgets.Dropdown(description="prompt", tooltip="A prompt that some of these runs answered",
                                          style=_STYLE, layout=wide)  # fmt: skip
        self.again = ipywidgets.Button(description="Read again", icon="refresh",
                                       tooltip="Read the runs' folders again, as they may have grown")  # fmt: skip
        self.numbers, self.answers, self.save = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.curves = RunsFigure(self.draw, describe=self.describe, runs=self.runs)
        super().__init__([self.curves, self.numbers, self.save, self.prompt, self.answers, self.again])
        self._show()
        self.runs.observe(self._show, names="value")
        self.prompt.observe(self._show_answers, names="value")
        self.again.on_click(lambda _: self.refresh())

    @property
    def chosen(self) -> list[Run]:
        """The runs that are compared now."""
        return [run for i, run in enumerate(self.all) if i in self.runs.value]

    def table(self) -> pandas.DataFrame:
        """Settings that differ and results, a row for each run."""
        return comparison_frame(self._some())

    def to_csv(self, path: str | Path | None = None) -> str:
        """The same as CSV; written to `path` too where one is given."""
        return comparison_csv(self._some(), path)

    def refresh(self) -> None:
        """Read the folders again: new runs appear, runs in hand have grown. What was chosen stays chosen."""
        kept = {run.folder for run in self.chosen}
        is_all = len(kept) == len(self.all)
        self.all = _loaded(self.sources)
        self.curves.offer(self._options(), tuple(i for i, run in enumerate(self.all) if is_all or run.folder in kept))
        self._show()

    def draw(self, runs: Sequence[int]) -> Picture:
        """The curves of the runs with these numbers over each other."""
        return draw_comparison([run for i, run in enumerate(self.all) if i in runs])

    def describe(self, runs: Sequence[int]) -> str:
        """What `draw` shows, in words."""
        return describe_comparison([run for i, run in enumerate(self.all) if i in runs])

    def _some(self) -> list[Run]:
        if not self.chosen:
            raise ValueError("no run is chosen; choose one or several in the list")
        return self.chosen

    def _options(self) -> list[tuple[str, int]]:
        return [(shortened(label, 90), i) for i, label in enumerate(run_labels(self.all))]

    def _show(self, _change: object = None) -> None:
        chosen = self.chosen
        if not chosen:
            self.numbers.value = self.save.value = self.answers.value = ""
            return
        self.numbers.value = markup.table("Settings that differ, and results", compare_runs(chosen), upright=True)
        self.save.value = markup.download("runs.csv", comparison_csv(chosen), "Save this table as CSV")
        self._rows = answers_side_by_side(chosen)
        options = [(f"{i}: {shortened(row['prompt'])}", i) for i, row in enumerate(self._rows, start=1)]
        if list(self.prompt.options) != options:
            self.prompt.options = options
            self.prompt.index = 0 if options else None
        self._show_answers()

    def _show_answers(self, _change: object = None) -> None:
        number = self.prompt.value
        if number is None or number > len(self._rows):
            self.answers.value = markup.line("These runs kept no answers.")
            return
        row = self._rows[number - 1]
        self.answers.value = markup.answers(row["prompt"], answer_columns(row, run_names(self.chosen)))

    def __repr__(self) -> str:
        return f"Comparer({', '.join(run_names(self.chosen))})"


def answer_columns(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str | None, float | None]]:
    """A row of `answers_side_by_side` as columns of (text, true reward): before, each run's answer, the pair's own.

    Where runs began from different models, each has its own answer before.
    """
    runs = row["runs"]
    before = {(sample.get("before"), sample.get("reward_before")) for sample in runs.values()}
    columns: dict[str, tuple[str | None, float | None]] = {"before": before.pop()} if len(before) == 1 else {}
    for name in names:
        sample = runs.get(name, {})
        if not columns or "before" not in columns:
            columns[f"{name}, before"] = (sample.get("before"), sample.get("reward_before"))
        when = f", after {sample['after_step']} steps" if "after_step" in sample else ""
        columns[f"{name}{when}"] = (sample.get("after"), sample.get("reward_after"))
    return columns | {f"the pair's {side}": (row[side], None) for side in ("chosen", "rejected") if side in row}


def draw_comparison(runs: Sequence[Run]) -> Picture:
    """`comparison_figure`, or why there is nothing to draw."""
    if not runs:
        return blank_figure("no run is chosen")
    return comparison_figure(runs) if any(run.metrics for run in runs) else blank_figure("nothing was recorded yet")


def describe_comparison(runs: Sequence[Run]) -> str:
    """What `comparison_figure` shows, in words."""
    rows = dict(zip(run_names(runs), (run.metrics for run in runs), strict=True)) if runs else {}
    measured = {name for one in rows.values() for row in one for name in row}
    told = [metric if metric in measured else f"eval_{metric}" for metric in FIGURE_METRICS]
    return " ".join(describe_runs(rows, metric) for metric in told if metric in measured) or "Nothing to compare yet."


def _loaded(sources: Sequence[str | Path | Run]) -> list[Run]:
    if not sources:
        raise ValueError("there are no runs to compare: no folder was given; name one, such as Comparer('runs')")
    return [run for source in sources for run in ([source] if isinstance(source, Run) else load_runs([source]))]
