"""What the terminal shows while a run goes on, and the table at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dpo_lab.loop import Evaluation, Event, Finished, Step

console = Console(stderr=False, highlight=False)


class Dashboard:
    """A bar on a terminal; a line at every tenth of the way where the output is a file or a pipe."""

    def __init__(self, unit: str, batch_size: int) -> None:
        self.unit, self.batch_size = unit, batch_size
        self.num_scored = 0  # pairs that the reference had to be run on

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """Show the events and pass them on."""
        return self._with_bar(events) if console.is_terminal else self._with_lines(events)

    def reference(self, done: int, total: int) -> None:
        """Progress of the reference's pass."""
        self.num_scored += total if done == total else 0
        if console.is_terminal and not console.quiet:
            end = "\n" if done == total else "\r"
            print(f"scoring the reference: {done:,} of {total:,} pairs", end=end, file=sys.stderr, flush=True)

    def report_reference(self, num_pairs: int) -> None:
        """Print how many pairs the cache spared."""
        if self.num_scored:
            found = num_pairs - self.num_scored
            console.print(f"reference: {self.num_scored:,} pairs scored, {found:,} found in the cache")
        else:
            console.print(f"reference: all {num_pairs:,} pairs found in the cache, none scored")

    def _with_bar(self, events: Iterator[Event]) -> Iterator[Event]:
        columns: list[ProgressColumn] = [
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=None, start=True, numbers="", visible=False)
            first: Step | None = None
            for event in events:
                if isinstance(event, Step):
                    first = first or event
                    bar.update(task, total=event.num_steps, completed=event.step, visible=True,
                               numbers=self._numbers(event, first))  # fmt: skip
                elif isinstance(event, Evaluation):
                    bar.console.print(evaluation_line(event))
                yield event

    def _with_lines(self, events: Iterator[Event]) -> Iterator[Event]:
        first, shown = None, -1
        for event in events:
            if isinstance(event, Step):
                first = first or event
                tenth = 10 * event.step // event.num_steps
                if tenth > shown or event.step == first.step:
                    shown = tenth
                    console.print(f"step {event.step}/{event.num_steps}  {self._numbers(event, first)}")
            elif isinstance(event, Evaluation):
                console.print(evaluation_line(event))
            yield event

    def _numbers(self, event: Step, first: Step) -> str:
        metrics = event.metrics
        parts = [f"loss {metrics['loss']:.4f}"]
        if "rewards/margins" in metrics:
            parts += [f"margin {metrics['rewards/margins']:+.3f}", f"accuracy {metrics['rewards/accuracies']:.2f}"]
        seconds = event.seconds - first.seconds
        if event.step > first.step and seconds > 0:
            rate = (event.step - first.step) * self.batch_size / seconds
            parts.append(f"{rate:.1f} {self.unit}/s")
        return "  ".join(parts)


def evaluation_line(event: Evaluation) -> str:
    """One line on the held-out data."""
    metrics = event.metrics
    parts = [f"loss {metrics['eval_loss']:.4f}"]
    if "eval_rewards/accuracies" in metrics:
        parts.append(f"accuracy {metrics['eval_rewards/accuracies']:.3f}")
        parts.append(f"margin {metrics['eval_rewards/margins']:+.3f}")
    return f"held-out after step {event.step}: " + "  ".join(parts)


ROWS = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "logps/chosen": "log-prob of chosen",
    "logps/rejected": "log-prob of rejected",
    "perplexity": "perplexity",
}


def result_table(first: Evaluation | None, last: Evaluation | None, finished: Finished) -> Table:
    """Held-out metrics before and after; without held-out data, the training metrics of the last step."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    if first is not None and last is not None:
        table.add_column("held-out")
        table.add_column("before", justify="right")
        table.add_column("after", justify="right")
        for name, title in ROWS.items():
            if f"eval_{name}" in last.metrics:
                table.add_row(title, *(f"{event.metrics.get(f'eval_{name}', math.nan):.4f}" for event in (first, last)))
        return table
    table.add_column("last step")
    table.add_column("", justify="right")
    for name, title in ROWS.items():
        if name in finished.metrics:
            table.add_row(title, f"{finished.metrics[name]:.4f}")
    return table


def number_table(title: str, metrics: dict[str, Any]) -> Table:
    """Names and numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(title)
    table.add_column("", justify="right")
    for name, value in metrics.items():
        table.add_row(ROWS.get(name, name), value if isinstance(value, str) else f"{value:.4f}")
    return table
