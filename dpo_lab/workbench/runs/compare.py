"""Several runs side by side: the settings that differ, the results, the curves over each other, the answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lab.storage.files import flat, write_whole
from dpo_lab.workbench.runs.run import CONFIG, PLACES, Run

if TYPE_CHECKING:
    import pandas

    from dpo_lab.workbench.plots.style import Picture

FIGURE_METRICS = (
    "loss", "rewards/accuracies", "rewards/margins", "true_reward", "rewards/chosen", "rewards/rejected", "perplexity",
    "grad_norm",
)  # fmt: skip


def load_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Open several runs. A folder that is no run but holds some stands for all of them, by name."""
    runs: list[Run] = []
    for folder in map(Path, folders):
        inside = [] if (folder / CONFIG).exists() else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        runs += [Run.load(path) for path in inside or [folder]]
    if not runs:
        raise ValueError("there are no runs to load: no folder was given; name one, such as runs/NAME")
    return runs


def compare_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row per run: its name, the settings in which the runs differ, where it stands, and its last metrics.

    Held-out metrics stand for all where every run has them; otherwise those of training are listed too. None marks
    what a run does not have.
    """
    if not runs:
        raise ValueError("there are no runs to compare; load at least one")
    differing = settings_that_differ(runs)
    summaries = [run.summary() for run in runs]
    state = ("step", "is_complete", "seconds")
    unwanted = {*state, "num_steps", "learning_rate", "epoch", "grad_norm"}
    measured = [name for name in dict.fromkeys(name for one in summaries for name in one) if name not in unwanted]
    if all(any(name.startswith("eval_") for name in one) for one in summaries):
        measured = [name for name in measured if not any(f"eval_{name}" in one for one in summaries)]
    return [
        {"run": name}
        | {key: values[i] for key, values in differing.items()}
        | {key: summary.get(key) for key in state}
        | {key: summary.get(key) for key in measured}
        for i, (name, summary) in enumerate(zip(run_names(runs), summaries, strict=True))
    ]


def settings_that_differ(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which the runs are not all alike, sources first: a value for each run, None where it has none.

    A run made by hand may record few settings; what it doesn't record doesn't count as another value.
    """
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    recorded = {name: [one[name] for one in settings if name in one] for name in names}
    return {
        name: [one.get(name) for one in settings]
        for name, values in recorded.items()
        if any(value != values[0] for value in values)
    }


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs whose recorded settings differ by the seed alone together, each group where its first run stands."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = _settings(run)
        seed = settings.pop("seed", None)  # a run made by hand records none: it stays alone
        groups.setdefault(f"{run.folder}" if seed is None else repr(settings), []).append(run)
    return list(groups.values())


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run with what sets it apart from the others: "run-02: beta 0.1, seed 1"."""
    differing = settings_that_differ(runs)
    parts = [
        [f"{name} {_short(values[i])}" for name, values in differing.items() if values[i] is not None]
        for i in range(len(runs))
    ]
    return [f"{name}: {', '.join(own)}" if own else name for name, own in zip(run_names(runs), parts, strict=True)]


def comparison_frame(runs: Sequence[Run]) -> pandas.DataFrame:
    """`compare_runs` as a pandas table, a row for each run, indexed by its name."""
    import pandas

    return pandas.DataFrame(compare_runs(runs)).set_index("run")


def comparison_csv(runs: Sequence[Run], path: str | Path | None = None) -> str:
    """`compare_runs` as CSV with a header, a line for each run; written to `path` too where one is given."""
    text = csv_text(compare_runs(runs))
    if path is not None:
        target = Path(path)
        if target.suffix != ".csv":
            raise ValueError(f"{target} must end in .csv; the ending names the format")
        if target.is_dir() or not target.parent.is_dir():
            raise ValueError(f"{target} cannot be written: give the name of a file in a folder that exists")
        if target.exists() and not target.read_bytes().startswith(b"run,"):
            raise ValueError(f"{target} is there already and is no table of runs; name another file")
        write_whole(target, text.encode())
    return text


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same fields as CSV with a header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = list(rows[0]) if rows else []
    writer.writerow(map(_no_formula, names))
    writer.writerows([_no_formula(row[name]) for name in names] for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would compute begins with an apostrophe there
    (owasp.org/www-community/attacks/CSV_Injection)."""
    is_formula = isinstance(value, str) and value.startswith(tuple("=+-@\t\r\n＝＋－＠"))
    return f"'{value}" if is_formula else value


def answers_side_by_side(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What several runs answered to the same prompts: one row per prompt that any run answered, in their order.

    Each row has the prompt, "chosen" and "rejected" where known, and "runs": for each run that answered, by its name,
    its sample row (before, after, and where known reward_before and reward_after).
    """
    found: dict[str, dict[str, Any]] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        for sample in run.samples:
            row = found.setdefault(str(sample["prompt"]), {"prompt": str(sample["prompt"]), "runs": {}})
            row |= {side: sample[side] for side in ("chosen", "rejected") if side in sample}
            row["runs"][name] = sample
    return list(found.values())


def comparison_figure(runs: Sequence[Run]) -> Picture:
    """What of `FIGURE_METRICS` was recorded, each of all runs over each other: training lines, held-out markers."""
    from dpo_lab.workbench.plots.overlays import runs_figure

    rows = dict(zip(run_names(runs), (run.metrics for run in runs), strict=True))
    measured = {name.removeprefix("eval_") for one in rows.values() for row in one for name in row}
    metrics = [metric for metric in FIGURE_METRICS if metric in measured]
    if not metrics:
        raise ValueError(f"there is nothing to draw: {', '.join(rows) or 'no run'} recorded no metric yet; train first")
    return runs_figure(rows, metrics)


def run_names(runs: Sequence[Run]) -> list[str]:
    """The shortest end of each run's path that differs from the others, and a number where paths are the same."""
    parts = [run.folder.resolve().parts for run in runs]
    longest = max(map(len, parts), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{run.folder} ({i})" for i, run in enumerate(runs, start=1)]


def _settings(run: Run) -> dict[str, Any]:
    """Everything that decides what is computed, by name: sources first, then the settings."""
    sources = {"command": run.config.get("command"), "model": run.config.get("model")} | run.config.get("data", {})
    settings = {name: value for name, value in run.config.get("settings", {}).items() if name not in PLACES}
    return flat({name: value for name, value in sources.items() if value is not None}) | flat(settings)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
