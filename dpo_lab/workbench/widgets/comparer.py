"""Runs side by side: curves over each other, the settings that differ, answers to the same prompts, a table to save.

Layout and wiring; every number is from `workbench.runs`: `compare_runs`, `answers_side_by_side`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from dpo_lab.workbench.plots.overlays import describe_watch, watch_figure
from dpo_lab.workbench.plots.style import Picture
from dpo_lab.workbench.runs import compare
from dpo_lab.workbench.runs.run import Run
from dpo_lab.workbench.widgets import markup
from dpo_lab.workbench.widgets.layout import Panel, button, room, texts, tip
from dpo_lab.workbench.widgets.live_figure import RunsFigure

if TYPE_CHECKING:
    import pandas


class Comparer(Panel):
    """Compare runs, chosen from a list. Shows itself as the last value of a cell.

    sources: run folders, folders that hold several runs, or `Run` objects. `comparer.chosen` are the runs compared
    now; `comparer.table()` is what the panel shows as a pandas table, `comparer.to_csv("runs.csv")` writes it.
    """

    def __init__(self, *sources: str | Path | Run) -> None:
        self.sources = sources
        self.all = _loaded(sources)
        wide = room("46em", "8em")
        self.runs = ipywidgets.SelectMultiple(
            options=self._options(), value=tuple(range(len(self.all))), description="runs",
            rows=min(8, max(3, len(self.all))), **tip("The runs to compare; Ctrl or Shift chooses several"), **wide,
        )  # fmt: skip
        self.prompt = ipywidgets.Dropdown(description="prompt", **tip("A prompt that some of these runs answered"),
                                          **wide)  # fmt: skip
        self.again = button("Read again", "Read the runs' folders again, as they may have grown", self.refresh,
                            icon="refresh")  # fmt: skip
        self.numbers, self.answers, self.save = texts(3)
        self.numbers.layout = ipywidgets.Layout(max_height="22em", overflow="auto")
        self.curves = RunsFigure(self.draw, describe=self.describe, runs=self.runs)
        super().__init__([self.curves, self.numbers, self.save, self.prompt, self.answers, self.again])
        self._show()
        self.runs.observe(self._show, names="value")
        self.prompt.observe(self._show_answers, names="value")

    @property
    def chosen(self) -> list[Run]:
        """The runs that are compared now."""
        return [run for i, run in enumerate(self.all) if i in self.runs.value]

    def table(self) -> pandas.DataFrame:
        """Settings that differ and results, a row for each run."""
        return compare.comparison_frame(self._some())

    def to_csv(self, path: str | Path | None = None) -> str:
        """The same as CSV; written to `path` too where one is given."""
        return compare.comparison_csv(self._some(), path)

    def refresh(self) -> None:
        """Read the folders again: new runs appear, runs in hand have grown. What was chosen stays chosen."""
        before = {run.folder for run in self.chosen}
        is_all = len(before) == len(self.all)
        self.all = _loaded(self.sources)
        again = tuple(i for i, run in enumerate(self.all) if is_all or run.folder in before)
        self.curves.offer(self._options(), again)
        self._show()

    def draw(self, runs: Sequence[int]) -> Picture:
        """The curves of the runs with these numbers over each other."""
        return watch_figure(self._rows_of(runs))

    def describe(self, runs: Sequence[int]) -> str:
        """What `draw` shows, in words."""
        return describe_watch(self._rows_of(runs))

    def _rows_of(self, runs: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        chosen = [run for i, run in enumerate(self.all) if i in runs]
        return {name: run.metrics for name, run in zip(compare.run_names(chosen), chosen, strict=True)}

    def _some(self) -> list[Run]:
        if not self.chosen:
            raise ValueError("no run is chosen; choose one or several in the list")
        return self.chosen

    def _options(self) -> list[tuple[str, int]]:
        return [(markup.shortened(label, 90), i) for i, label in enumerate(compare.run_labels(self.all))]

    def _show(self, _change: object = None) -> None:
        chosen = self.chosen
        if not chosen:
            self.numbers.value = self.save.value = self.answers.value = ""
            return
        caption = "Settings that differ, and results"
        self.numbers.value = markup.table(caption, compare.compare_runs(chosen), upright=True)
        self.save.value = markup.download("runs.csv", compare.comparison_csv(chosen), "Save this table as CSV")
        self._rows = compare.answers_side_by_side(chosen)
        options = markup.numbered([row["prompt"] for row in self._rows])
        if list(self.prompt.options) != options:
            self.prompt.options = options
            self.prompt.index = 0 if options else None
        self._show_answers()

    def _show_answers(self, _change: object = None) -> None:
        number = self.prompt.value
        if number is None or number > len(self._rows):
            self.answers.value = markup.line("These runs saved no answers.")
            return
        row = self._rows[number - 1]
        self.answers.value = markup.answers(row["prompt"], answer_columns(row, compare.run_names(self.chosen)))

    def __repr__(self) -> str:
        return f"Comparer({', '.join(compare.run_names(self.chosen))})"


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


def _loaded(sources: Sequence[str | Path | Run]) -> list[Run]:
    if not sources:
        raise ValueError("there are no runs to compare: no folder was given; name one, such as Comparer('runs')")
    return [run for source in sources for run in ([source] if isinstance(source, Run) else compare.load_runs([source]))]
