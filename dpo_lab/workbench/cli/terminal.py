"""The terminal that the commands print on, and their tables. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# C0 and C1 control characters as signs, but for tab and line end: they could move the cursor, or rename the window.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_SIGNS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """A text whose control characters are signs: what data hold cannot steer the terminal."""
    return text.translate(_SIGNS)


def complain(message: str) -> None:
    """A message on standard error, in which nothing of the data can steer the terminal."""
    print(visible(message), file=sys.stderr)


class SafeConsole(Console):
    """Prints texts with their control characters as signs, whatever they came in: a line, a table, a bar."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


console = SafeConsole(stderr=False, highlight=False, markup=False, emoji=False)

TITLES = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "rewards/baseline": "baseline of rewards",
    "logps/chosen": "log-prob of chosen",
    "logps/rejected": "log-prob of rejected",
    "perplexity": "perplexity",
}


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str | None = None) -> Table:
    """A table without lines: names on the left, numbers on the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for i, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if i else "left", overflow="fold" if i else "ellipsis")
    for row in rows:
        table.add_row(*row)
    return table


def number_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Names and numbers; a text stays as it is."""
    return plain_table((title, ""), ((TITLES.get(name, name), number_cell(value)) for name, value in metrics.items()))


def number_cell(value: Any) -> Text:
    """A cell of a table: a number with four digits, nothing for None."""
    return Text("" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
