"""What the terminal shows while a run goes on, and the table at its end."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import suppress

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dpo_lab.loop import Evaluation, Event, Finished, Step
from dpo_lab.workbench.cli.terminal import TITLES, console, number_table, plain_table


class Dashboard:
    """A bar on a terminal; a line at every tenth of the way where the output is a file or a pipe."""

    def __init__(self, unit: str, batch_size: int) -> None:
        self.unit, self.batch_size = unit, batch_size
        self.num_scored = 0  # pairs that the reference had to be run on

    def follow(self, events: Iterator[Event]) -> Iterator[Event]:
        """Show the events and pass them on."""
        columns: list[ProgressColumn] = [
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        ]
        first, shown = None, -1
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None, start=True, numbers="", visible=False)
            for event in events:
                if isinstance(event, Step):
                    first = first or event
                    numbers, tenth = self._numbers(event, first), 10 * event.step // event.num_steps
                    bar.update(task, total=event.num_steps, completed=event.step, visible=True, numbers=numbers)
                    if not console.is_terminal and (tenth > shown or event is first):
                        shown = tenth
                        log_line(f"step {event.step}/{event.num_steps}  {numbers}")
                elif isinstance(event, Evaluation):
                    log_line(evaluation_line(event))
                yield event

    def reference(self, done: int, total: int) -> None:
        """Progress of the reference's pass."""
        self.num_scored += total if done == total else 0
        if console.is_terminal and not console.quiet:
            end = "\n" if done == total else "\r"
            print(f"scoring the reference: {done:,} of {total:,} {self.unit}", end=end, file=sys.stderr, flush=True)

    def report_reference(self, num_pairs: int) -> None:
        """Print how many rows the cache spared."""
        if self.num_scored:
            found = num_pairs - self.num_scored
            console.print(f"reference: {self.num_scored:,} {self.unit} scored, {found:,} found in the cache")
        else:
            console.print(f"reference: all {num_pairs:,} {self.unit} found in the cache, none scored")

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


def log_line(text: str) -> None:
    """Print a line of a training, which goes on where nobody can read it: a full disk, a reader that has left."""
    with suppress(OSError):
        console.print(text)


def evaluation_line(event: Evaluation) -> str:
    """One line on the held-out data."""
    metrics = event.metrics
    parts = [f"loss {metrics['eval_loss']:.4f}"]
    if "eval_rewards/margins" in metrics:  # answers of one kind alone have none
        parts.append(f"accuracy {metrics['eval_rewards/accuracies']:.3f}")
        parts.append(f"margin {metrics['eval_rewards/margins']:+.3f}")
    return f"held-out after step {event.step}: " + "  ".join(parts)


def result_table(first: Evaluation | None, last: Evaluation | None, finished: Finished) -> Table:
    """Held-out metrics before and after; without held-out data, the training metrics of the last step."""
    if first is None or last is None:
        return number_table("last step", {name: finished.metrics[name] for name in TITLES if name in finished.metrics})
    rows = [
        (title, *(f"{event.metrics.get(f'eval_{name}', math.nan):.4f}" for event in (first, last)))
        for name, title in TITLES.items()
        if f"eval_{name}" in last.metrics
    ]
    return plain_table(("held-out", "before", "after"), rows)
