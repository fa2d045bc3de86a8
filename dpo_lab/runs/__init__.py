"""A run as a folder: configuration, metrics, samples, model, report; loading and comparing runs. No torch at import.

Read in this order: `files` (writing that survives a crash), `run` (the folder), `report` (the page), `compare`.
"""

from dpo_lab.runs.compare import compare_runs, comparison_figure, load_runs
from dpo_lab.runs.run import Run, row_of

__all__ = ["Run", "compare_runs", "comparison_figure", "load_runs", "row_of"]
