"""The log of a preference-tuning run, whichever tool wrote it, as one table under our names of metrics.

Read are: a run folder of ours; `trainer_state.json` of transformers, TRL and axolotl, or a folder that holds one or
checkpoints with one; LLaMA-Factory's `trainer_log.jsonl` and other JSON lines; CSV, such as W&B exports; TensorBoard's
event files. Lines and cells are streamed into arrays; only a JSON file is parsed as a whole. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import json
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.storage.files import explain_os_error
from dpo_lab.workbench.runs.run import CONFIG, METRICS, SAMPLES, Run

STATE, FACTORY, EVENTS = "trainer_state.json", "trainer_log.jsonl", "events.out.tfevents*"
KNOWN = frozenset((
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "grad_norm", "learning_rate", "kl", "answer_length",
))  # fmt: skip
ALIASES = {
    "accuracy": "rewards/accuracies", "lr": "learning_rate", "objective/kl": "kl",
    **dict.fromkeys(("completions/mean_length", "completion_length", "response_length"), "answer_length"),
}  # fmt: skip
STEPS = ("train/global_step", "trainer/global_step", "global_step", "step", "current_steps", "Step", "_step")
"""Names of the optimiser step, the best first: W&B's own _step counts calls of its logger."""
DRAWN = 2000  # most points of a curve in a picture


@dataclass(frozen=True)
class Log:
    """What a log holds. `series`: metric → steps (N,) int64, rising, and values (N,) float64; eval_ is held-out."""

    place: str
    format: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    facts: dict[str, Any]  # of beta, loss, max_grad_norm, num_steps: those that the log states
    notes: tuple[str, ...]  # what was left out or read in a special way

    def values(self, metric: str) -> np.ndarray:
        """The finite values of a metric, in the order of the steps; empty where it was not logged."""
        values = self.series.get(metric, (np.zeros(0), np.zeros(0)))[1]
        return values[np.isfinite(values)]

    @property
    def last_step(self) -> int:
        """The last optimiser step that anything was logged of."""
        return max(int(steps[-1]) for steps, _ in self.series.values())

    def rows(self) -> list[dict[str, Any]]:
        """Rows as `plots.curves` draws them; of a longer curve every n-th point."""
        rows: dict[tuple[int, str], dict[str, Any]] = {}
        for metric, (steps, values) in self.series.items():
            kind, every = "evaluation" if metric.startswith("eval_") else "step", -(-len(steps) // DRAWN)
            for step, value in zip(steps[::every].tolist(), values[::every].tolist(), strict=True):
                rows.setdefault((step, kind), {"kind": kind, "step": step})[metric] = value
        return [rows[key] for key in sorted(rows)]


def read_log(path: str | Path) -> Log:
    """Read a log, by its name. ValueError for what is no log or has no known metric, ImportError for event files
    without tensorboard, OSError for what cannot be read."""
    path = Path(path)
    if path.name == METRICS and (path.parent / CONFIG).is_file():
        path = path.parent
    file = _log_in(path) if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"there is no file or folder {file}; give a log, or the folder of a run")
    facts: dict[str, Any] = {}
    table, lengths = _Table(), (0.0, 0.0)
    with explain_os_error(f"{file} cannot be read", "give yourself permission to read it"):
        if "tfevents" in file.name:
            name, rows = "TensorBoard events", _events(file if path.is_file() else file.parent)
        elif file.name == METRICS and file.parent == path:
            name, rows = "a run of DPO Lab", _lines(file, table)
            facts, lengths = _facts_of(Run.load(path)), _lengths(path / SAMPLES, table)
        elif file.suffix == ".json":
            name, rows = "trainer state", _state(file, facts)
        elif file.suffix in (".jsonl", ".ndjson"):
            name, rows = "trainer log" if file.name == FACTORY else "JSON lines", _lines(file, table)
        elif file.suffix == ".csv":
            name, rows = "CSV", _cells(file, table)
        else:
            raise ValueError(
                f"{file} is no log that can be read: its name must end in .json, .jsonl, .ndjson or .csv, or hold "
                "tfevents; or give the folder of a run or of a checkpoint"
            )
        for row in rows:
            table.add(row, facts)
    if lengths[0]:
        last = max((steps[-1] for steps, _ in table.columns.values()), default=0)
        for step, length in zip((0, last), lengths, strict=True):
            table.add({"step": step, "answer_length": length}, facts)
    return table.log(file, name, facts)


def _log_in(folder: Path) -> Path:
    """The log in a folder: its own, that of the newest checkpoint, or TensorBoard's below it."""
    if (folder / METRICS).is_file() and (folder / CONFIG).is_file():
        return folder / METRICS
    number = lambda path: int(path.parent.name.rpartition("-")[2])
    checkpoints = [path for path in folder.glob(f"checkpoint-*/{STATE}") if path.parent.name[11:].isdecimal()]
    found = [folder / STATE, *sorted(checkpoints, key=number, reverse=True), folder / FACTORY]
    events = sorted(folder.rglob(EVENTS), key=lambda path: path.stat().st_mtime_ns)
    for file in [*found, *events[-1:]]:
        if file.is_file():
            return file
    raise ValueError(f"{folder} holds no log: no {METRICS} with {CONFIG}, {STATE}, {FACTORY} or {EVENTS}, here or in a "
                     "checkpoint-N folder; give the file itself")  # fmt: skip


class _Table:
    """Rows added one by one; numbers only, 16 bytes each."""

    def __init__(self) -> None:
        self.columns: dict[str, tuple[array, array]] = defaultdict(lambda: (array("q"), array("d")))
        self.last = self.unnumbered = self.odd_steps = 0
        self.texts: list[str] = []  # an example of each metric that had some
        self.num_texts = 0
        self.notes: list[str] = []
        self.others: dict[str, None] = {}

    def add(self, row: Mapping[str, Any], facts: dict[str, Any]) -> None:
        """Values of one step, by any tool's names."""
        named = {our_name(name): value for name, value in row.items() if value not in (None, "")}
        for name, fact in (("num_steps", "num_steps"), ("total_steps", "num_steps"), ("beta", "beta")):
            if (stated := _number(row.get(name))) is not None:
                facts[fact] = stated
        found = {name: value for name, value in named.items() if name.removeprefix("eval_") in KNOWN}
        if not found:
            self.others |= dict.fromkeys(map(str, row))
            return
        column = next((name for name in STEPS if name in row), None)
        cell = None if column is None else row[column]
        is_numbered = cell not in (None, "")
        # An empty cell belongs to the step that its tool was at: another column of steps would count otherwise.
        step = _number(cell) if is_numbered else self.last + (column is None)
        if step is None or step != step or step < 0 or step != int(min(step, 2**62)):
            self.odd_steps += 1
            return
        self.unnumbered += not is_numbered
        self.last = int(step)
        for name, value in found.items():
            if (number := _number(value)) is None:
                self.num_texts += 1
                self.texts = self.texts or [f"{value!r:.40} of {name} at step {self.last}"]
            else:
                steps, values = self.columns[name]
                steps.append(self.last)
                values.append(number)

    def log(self, file: Path, name: str, facts: dict[str, Any]) -> Log:
        """The table, steps rising; of values of one step, the last that was written."""
        if not self.columns:
            held = ", ".join(list(self.others)[:8]) or "no rows"
            raise ValueError(f"{file} has no metric that is known here (it has {held}); it needs at least a loss, "
                             "better rewards/chosen, rewards/rejected and rewards/accuracies")  # fmt: skip
        series, repeated = {}, 0
        for metric, (steps, values) in self.columns.items():
            at, first = np.unique(np.array(steps, np.int64)[::-1], return_index=True)
            series[metric] = at, np.array(values, np.float64)[::-1][first]
            repeated += len(steps) - len(at)
        left_out = [
            (repeated, "values belong to a step that was logged before, as after a resume; the later ones are used. If "
             "the file holds several runs, give each its own file"),
            (self.unnumbered, f"rows have no step ({', '.join(STEPS)}) and are placed by their order"),
            (self.odd_steps, "rows are left out: their step is no whole number"),
            (self.num_texts, f"values are left out: they are no numbers (the first is {''.join(self.texts)})"),
        ]  # fmt: skip
        notes = [*self.notes, *(f"{count:,} {words}" for count, words in left_out if count)]
        return Log(str(file), name, series, facts, tuple(notes))


def our_name(name: str) -> str:
    """A metric's name as ours: train/ gone, eval/ as eval_, W&B's "RUN - " gone."""
    name = str(name).rpartition(" - ")[2].removeprefix("train/")
    name = re.sub("^eval/", "eval_", name)
    prefix = "eval_" if name.startswith("eval_") else ""
    base = name.removeprefix("eval_")
    return prefix + ALIASES.get(base, base)


def _number(value: Any) -> float | None:
    """A number, also one written as text ("NaN", "0.69"); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


# ── formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(file: Path, table: _Table) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            elif not line.endswith(b"\n"):
                table.notes.append("the last line was cut off and is left out")
            else:
                raise ValueError(f"{file}, line {number} is no JSON object; restore the file, or delete that line")


def _state(file: Path, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        state = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); give the log of another checkpoint") from None
    rows = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold a log_history, or a list of rows, got {type(rows).__name__}; "
                         f"give a {STATE}")  # fmt: skip
    if isinstance(state, dict) and (number := state.get("max_steps")):
        facts["num_steps"] = number
    yield from rows


def _cells(file: Path, table: _Table) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as text:
        reader = csv.DictReader(text)
        header = [name for name in reader.fieldnames or () if not name.endswith(("__MIN", "__MAX"))]
        if len(runs := {name.rpartition(" - ")[0] for name in header if " - " in name}) > 1:
            raise ValueError(f"{file} holds the columns of {len(runs)} runs ({', '.join(sorted(runs))[:200]}); export "
                             "one run at a time")  # fmt: skip
        try:
            yield from ({name: row[name] for name in header} for row in reader)
        except csv.Error as error:
            raise ValueError(f"{file}, line {reader.line_num} is no CSV ({error}); export it again") from None


def _events(file: Path) -> Iterator[dict[str, Any]]:
    if find_spec("tensorboard") is None:
        raise ImportError(f"{file} is read by tensorboard, which is not installed; install it with pip install "
                          "tensorboard, or export the curves as CSV")  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(file), size_guidance={"scalars": 0})  # 0: every point
    reader.Reload()
    for tag in reader.Tags()["scalars"]:
        yield from ({"step": event.step, tag: event.value} for event in reader.Scalars(tag))


def _facts_of(run: Run) -> dict[str, Any]:
    settings = run.config.get("settings") or {}
    facts = {name: settings[name] for name in ("beta", "loss") if settings.get(name) is not None}
    if "max_grad_norm" in settings:
        facts["max_grad_norm"] = settings["max_grad_norm"] or math.inf  # None does not clip
    return facts


def _lengths(file: Path, table: _Table) -> tuple[float, float]:
    """Mean words of the sampled answers before and after a run of ours; zeros where there are none."""
    words = lambda row, side: len(str(row[side]).split())
    rows: Iterable = [row for row in _lines(file, table) if {"before", "after"} <= set(row)] if file.is_file() else ()
    sides = [[words(row, side) for row in rows] for side in ("before", "after")]
    return (float(np.mean(sides[0])), float(np.mean(sides[1]))) if sides[0] else (0.0, 0.0)
