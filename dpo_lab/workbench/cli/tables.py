"""`dpo-lab compare`, `report`, `losses` and `recipes`: on the terminal and in files. Comparing loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from dpo_lab.storage.files import write_whole, writing
from dpo_lab.workbench.cli.options import CompareOptions, LossesOptions, RecipesOptions, ReportOptions
from dpo_lab.workbench.cli.terminal import console, number_cell, plain_table
from dpo_lab.workbench.runs.compare import compare_runs, comparison_figure, csv_text, load_runs
from dpo_lab.workbench.runs.run import Run

TABLES, FIGURES = (".csv", ".jsonl"), (".png", ".pdf", ".svg")
REMEDY = "free space or permissions there, or name another"


def compare(options: CompareOptions) -> int:
    """Print runs side by side: a column for each, a row for every setting that differs and every result."""
    if options.csv is not None:
        check_output(options.csv, TABLES)
    if options.figure is not None:
        check_output(options.figure, FIGURES)
    runs = load_runs(options.runs)
    rows = compare_runs(runs)
    first, *others = rows[0]
    cells = ([name, *(number_cell(row[name]) for row in rows)] for name in others)
    console.print(plain_table(["", *(str(row[first]) for row in rows)], cells))
    if options.csv is not None:
        write_table(options.csv, rows)
        console.print(f"table: {options.csv}", soft_wrap=True)
    if options.figure is not None:
        with writing(options.figure, REMEDY):
            comparison_figure(runs).savefig(options.figure)
        console.print(f"figure: {options.figure}", soft_wrap=True)
    return 0


def report(options: ReportOptions) -> int:
    """Write report.html, curves.png and the card again."""
    run = Run.load(options.run)
    console.print(f"report: {run.write_report()}", soft_wrap=True)
    for card in run.write_card():
        console.print(f"card: {card}", soft_wrap=True)
    return 0


def recipes(_: RecipesOptions) -> int:
    """Print the recipes by name, each with what it is, where its settings come from, and its command line."""
    from dpo_lab.workbench.recipes.named import RECIPES
    from dpo_lab.workbench.recipes.recipe import command_line

    for name, named in RECIPES.items():
        console.print(Text(name, style="bold"))
        console.print(f"  {named.about}", soft_wrap=True)
        console.print(f"  settings: {named.source}", soft_wrap=True, style="dim")
        console.print(f"  {command_line(named.recipe)}", soft_wrap=True)
    console.print(
        "\nModel and pairs are fetched once and stored in HF_HOME. Without a network, download them on another machine "
        "and give their folders instead.", soft_wrap=True,
    )  # fmt: skip
    return 0


def losses(_: LossesOptions) -> int:
    """Print the table of losses."""
    from dpo_lab.losses.table import LOSSES, UNPAIRED_LOSSES

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, spec in (LOSSES | UNPAIRED_LOSSES).items():
        knobs = ", ".join(f"{knob} {value:g}" for knob, value in spec.knobs.items()) or "no knobs"
        reference = "" if spec.needs_reference else " · needs no reference"
        rows = " · of single answers with a label, or of pairs taken apart" if name in UNPAIRED_LOSSES else ""
        facts = f"{knobs}{reference}{rows} · {spec.paper.removeprefix('https://')}"
        table.add_row(name, Text(f"{spec.summary}\n").append(facts, style="dim"))
    console.print(table)
    return 0


def check_output(path: Path, endings: Sequence[str]) -> None:
    """Refuse a path before the work is done: its ending must be known, its folder must be one, and nothing be there."""
    if path.suffix not in endings:
        raise ValueError(f"{path} must end in {' or '.join(endings)}; the ending decides the format")
    with writing(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError("it is a folder")
    if path.exists():
        raise ValueError(f"{path} is there already, and no file is written over; name a new one, or remove it")


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One row per line, as CSV with a header or as JSON lines, by the path's ending."""
    check_output(path, TABLES)
    as_lines = lambda: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = as_lines() if path.suffix == ".jsonl" else csv_text(rows)
    write_whole(path, text.encode(), remedy=REMEDY)
