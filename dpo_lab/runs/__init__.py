"""A run as a folder: configuration, metrics, samples, model, report; loading and comparing runs. No torch at import.

Read in this order: `files` (writing that survives a crash), `run` (the folder), `report` (the page), `card` (the
model's), `compare`; `tracking` and `publishing` tell others.
"""

from dpo_lab.runs.compare import (
    answers_side_by_side,
    compare_runs,
    comparison_csv,
    comparison_figure,
    comparison_frame,
    load_runs,
    run_labels,
    run_names,
    settings_that_differ,
)
from dpo_lab.runs.publishing import check_push, push_to_hub
from dpo_lab.runs.run import Run, row_of
from dpo_lab.runs.tracking import check_tracker, tracked

__all__ = [
    "Run",
    "answers_side_by_side",
    "check_push",
    "check_tracker",
    "compare_runs",
    "comparison_csv",
    "comparison_figure",
    "comparison_frame",
    "load_runs",
    "push_to_hub",
    "row_of",
    "run_labels",
    "run_names",
    "settings_that_differ",
    "tracked",
]
