"""What the experiments of this folder share: cells run on several processes, each saved as it is done, then a table.

An experiment is a list of cells, small dictionaries that name one run each (method, knob, seed), and a `Lab` class
whose `run(cell)` returns the row or rows that the cell measured. A lab holds what cells need (data, prompts, the
reference). With several workers every cell has a process of its own, in which the lab is built anew:

    class Lab:
        def __init__(self, arguments): ...
        def run(self, cell): return {"reward": …}

    if __name__ == "__main__":
        arguments = parser(__doc__).parse_args()
        carry_out(Experiment("name", "Title", "What it is.", columns, settings), cells(arguments.seeds), Lab, arguments)

Rows go to data/results/NAME.json, whole or not at all, after each cell, and the table beside it in NAME.md. A second
start goes on with the cells that are missing. Rows of other settings, or of another base model, are never mixed in.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measuring.py lies a folder above

import torch
from measuring import RESULTS, made_with

from dpo_lab import load_policy
from dpo_lab.reference import fingerprint

Cell = dict[str, Any]
Result = dict[str, Any]
NOISE = 1e-6  # smaller numbers of a table are rounding


@dataclass(frozen=True)
class Experiment:
    """What a result says about itself. `settings` are what every row depends on, by name."""

    name: str
    title: str
    lead: str
    columns: Sequence[str]
    settings: dict[str, Any]
    group_by: Sequence[str] = ("method", "knob")
    """Rows that agree in these make a line of the table: mean ± standard deviation over the rest (the seeds)."""
    model: str = "embedded"
    """The model that every cell starts from; rows of other weights are not mixed in."""


def parser(description: str | None, *, seeds: int = 3) -> argparse.ArgumentParser:
    """The options that every experiment has; it adds its own to them."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=seeds, help="seeds of each cell (default: %(default)s)")
    made.add_argument("--only", nargs="+", default=None, metavar="VALUE",
                      help="only cells one of whose values is among these, such as a method's name")  # fmt: skip
    made.add_argument("--workers", type=int, default=max(os.cpu_count() or 1, 1), help="processes; each takes its "
                      "share of the cores (default: one a core)")  # fmt: skip
    made.add_argument("--device", default="cpu")
    made.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dpo-lab-experiments",
                      help="where models that several cells share are saved")  # fmt: skip
    made.add_argument(
        "--anew", action="store_true", help="measure every cell again; without it, those that are missing"
    )
    made.add_argument("--out", type=Path, default=None, help="another file than data/results/NAME.json")
    return made


def carry_out(experiment: Experiment, cells: Sequence[Cell], lab: Callable[[argparse.Namespace], Any],
              arguments: argparse.Namespace) -> list[Result]:  # fmt: skip
    """Run the cells that are missing and keep each as it is done.

    Returns: every saved row, in the order of the cells; a row is its cell and what was measured.
    Raises: SystemExit where the file holds rows of other settings; a cell's own error, after the others are saved.
    """
    path = arguments.out or RESULTS / f"{experiment.name}.json"
    settings = json.loads(
        json.dumps(experiment.settings | {"model": fingerprint(load_policy(experiment.model)[0])[:16]})
    )
    rows, commits = ([], []) if arguments.anew else saved_rows(path, settings)
    done = {identity(row["cell"]) for row in rows}
    wanted = [cell for cell in cells if not arguments.only or set(arguments.only) & {str(v) for v in cell.values()}]
    missing = [cell for cell in wanted if identity(cell) not in done]
    place = {identity(cell): number for number, cell in enumerate(cells)}
    made = made_with(shlex.join(["python", "data/experiments/" + Path(sys.argv[0]).name, *without_work(sys.argv[1:])]))
    made["commit"] = ", ".join(dict.fromkeys([*commits, made["commit"]]))  # of every start that gave rows
    print(f"{experiment.name}: {len(missing)} of {len(wanted)} cells to run", flush=True)
    for number, (cell, found, seconds) in enumerate(ran(missing, lab, arguments), start=1):
        rows += [{"cell": cell, **cell, **row, "cell_seconds": round(seconds, 1)} for row in found]
        rows.sort(key=lambda row: place.get(identity(row["cell"]), len(place)))
        write(path, experiment, made, settings, rows)
        print(f"{number}/{len(missing)} {json.dumps(cell)} {seconds:.0f} s", flush=True)
    return rows


def ran(cells: Sequence[Cell], lab: Callable[[argparse.Namespace], Any],
        arguments: argparse.Namespace) -> Iterator[tuple[Cell, list[Result], float]]:  # fmt: skip
    """Each cell, its rows and its seconds, as they come; in this process where there is one worker."""
    workers = min(arguments.workers, len(cells))
    if workers <= 1:
        if cells:
            begin(lab, arguments, torch.get_num_threads())
        yield from map(run_cell, cells)
        return
    threads = max((os.cpu_count() or 1) // workers, 1)
    spawn = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    # one process a cell: what a training leaves behind in memory ends with it
    with ProcessPoolExecutor(workers, spawn, initializer=begin, initargs=(lab, arguments, threads),
                             max_tasks_per_child=1) as pool:  # fmt: skip
        futures = [pool.submit(run_cell, cell) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def without_work(arguments: Sequence[str]) -> list[str]:
    """The command line without `--work`, and whole paths by their last part: a folder of one machine says nothing to
    another."""
    is_work = [argument == "--work" for argument in arguments]
    return [Path(argument).name if argument.startswith("/") else argument
            for argument, own, before in zip(arguments, is_work, [False, *is_work], strict=False)
            if not (own or before or argument.startswith("--work="))]  # fmt: skip


LAB: Any = None


def begin(lab: Callable[[argparse.Namespace], Any], arguments: argparse.Namespace, threads: int) -> None:
    """What a process does once: its threads, and the lab."""
    global LAB
    torch.set_num_threads(threads)
    LAB = lab(arguments)


def run_cell(cell: Cell) -> tuple[Cell, list[Result], float]:
    began = time.perf_counter()
    found = LAB.run(cell)
    return cell, found if isinstance(found, list) else [found], time.perf_counter() - began


def identity(cell: Cell) -> str:
    """What tells a cell from the others."""
    return json.dumps(cell, sort_keys=True)


# ── what is saved ─────────────────────────────────────────────────────────────────────────────────────────────────────


def saved_rows(path: Path, settings: dict[str, Any]) -> tuple[list[Result], list[str]]:
    """The rows of earlier starts with the same settings, and the commits that these were made at."""
    if not path.is_file():
        return [], []
    saved = json.loads(path.read_text())
    if saved["settings"] != settings:
        different = {name: (saved["settings"].get(name), settings.get(name)) for name in saved["settings"] | settings
                     if saved["settings"].get(name) != settings.get(name)}  # fmt: skip
        raise SystemExit(f"{path} was made with other settings (saved, requested): {different}. Measure all of it "
                         "anew with --anew, or name another --out.")  # fmt: skip
    return saved["rows"], saved["made"]["commit"].split(", ")


def write(path: Path, experiment: Experiment, made: dict, settings: dict, rows: list[Result]) -> None:
    """The JSON, whole or not at all, and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"made": made, "settings": settings, "rows": rows}, indent=1) + "\n")
    partial.replace(path)
    path.with_suffix(".md").write_text(table(experiment, made | settings, rows))


def table(experiment: Experiment, about: dict[str, Any], rows: list[Result]) -> str:
    """A line per group of rows: how many, and mean ± standard deviation of each column."""
    facts = [f"- {name}: {value}" for name, value in about.items()]
    names = [*experiment.group_by, "runs", *experiment.columns]
    lines = [f"# {experiment.title}", "", experiment.lead, "", *facts, ""]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for values, own in grouped(rows, experiment.group_by).items():
        cells = [*map(shown, values), str(len(own)), *(spread(own, column) for column in experiment.columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def grouped(rows: Sequence[Result], names: Sequence[str]) -> dict[tuple, list[Result]]:
    """The rows by their values of these names, in the order in which each group first comes."""
    groups: dict[tuple, list[Result]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    return groups


def spread(rows: Sequence[Result], name: str) -> str:
    """Mean ± standard deviation of a column, to two digits of the latter; only the value, where there is one or all
    are equal; empty, where there is none."""
    values = [row[name] for row in rows if name in row and row[name] is not None]
    if not values:
        return ""
    if any(isinstance(value, str) for value in values):
        return ", ".join(dict.fromkeys(map(str, values)))
    middle, deviation = float(mean(values)), float(stdev(values)) if len(values) > 1 else 0.0
    if abs(middle) >= 1000 or not deviation > max(NOISE, 1e-4 * abs(middle)):
        return shown(middle)
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{middle:.{digits}f} ± {deviation:.{digits}f}"


def shown(value: Any) -> str:
    """A number to three significant digits, so that a learning rate is not 0.000; counts in full, rounding as 0."""
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if abs(value) < NOISE:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
