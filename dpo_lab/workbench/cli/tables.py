"""`dpo-lab compare`, `losses` and `recipes`: tables on the terminal and in files. Comparing loads no torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_lab.workbench.cli.options import CompareOptions, LossesOptions, RecipesOptions
from dpo_lab.workbench.runs.compare import compare_runs, comparison_figure, load_runs

console = Console(highlight=False)

TABLES, FIGURES = (".csv", ".jsonl"), (".png", ".pdf", ".svg")


def compare(options: CompareOptions) -> int:
    """Print runs side by side: a column for each, a row for every setting that differs and every result."""
    if options.csv is not None:
        check_output(options.csv, TABLES)
    if options.figure is not None:
        check_output(options.figure, FIGURES)
    runs = load_runs(options.runs)
    rows = compare_runs(runs)
    first, *others = rows[0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(Text(str(row[first])), justify="right", overflow="fold")
    for name in others:
        table.add_row(name, *(_cell(row[name]) for row in rows))
    console.print(table)
    if options.csv is not None:
        write_table(options.csv, rows)
        console.print(f"table: {options.csv}", soft_wrap=True)
    if options.figure is not None:
        with output(options.figure):
            comparison_figure(runs).savefig(options.figure)
        console.print(f"figure: {options.figure}", soft_wrap=True)
    return 0


def recipes(_: RecipesOptions) -> int:
    """Print the recipes by name, each with what it is, where its settings come from, and its command line."""
    from dpo_lab.workbench.recipes.named import RECIPES
    from dpo_lab.workbench.recipes.recipe import command_line

    for name, named in RECIPES.items():
        console.print(Text(name, style="bold"))
        console.print(f"  {named.about}", markup=False, soft_wrap=True)
        console.print(f"  settings: {named.source}", markup=False, soft_wrap=True, style="dim")
        console.print(f"  {command_line(named.recipe)}", markup=False, soft_wrap=True)
    console.print(
        "\nModel and pairs are fetched once and kept in HF_HOME. Without a network, download them on another machine "
        "and give their folders instead.", soft_wrap=True,
    )  # fmt: skip
    return 0


def losses(_: LossesOptions) -> int:
    """Print the table of losses."""
    from dpo_lab.losses.table import LOSSES

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, spec in LOSSES.items():
        knobs = ", ".join(f"{knob} {value:g}" for knob, value in spec.knobs.items()) or "no knobs"
        reference = "" if spec.needs_reference else " · needs no reference"
        facts = f"{knobs}{reference} · {spec.paper.removeprefix('https://')}"
        table.add_row(name, Text(f"{spec.summary}\n").append(facts, style="dim"))
    console.print(table)
    return 0


def check_output(path: Path, endings: Sequence[str]) -> None:
    """Refuse a path before the work is done: its ending must be known, and its folder must be one."""
    if path.suffix not in endings:
        raise ValueError(f"{path} must end in {' or '.join(endings)}; the ending decides the format")
    with output(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError("it is a folder")


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One row per line, as CSV with a header or as JSON lines, by the path's ending."""
    check_output(path, TABLES)
    with output(path), path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)


@contextmanager
def output(path: Path) -> Iterator[None]:
    """Gives an OSError the path, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"{path} cannot be written ({reason}); free space or permissions there, or name another"
        ) from error


def _cell(value: Any) -> Text:
    return Text("" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value))
