"""A run as a folder: configuration, metrics, samples, model, report; loading and comparing runs. No torch at import.

Read in this order: `files` (writing that survives a crash), `run` (the folder), `report` (the page), `card` (the
model's), `compare`; `tracking` and `publishing` tell others.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "compare":
        "answers_side_by_side compare_runs comparison_csv comparison_figure comparison_frame load_runs run_labels "
        "run_names settings_that_differ",
    "publishing": "check_push push_to_hub",
    "run": "Run row_of",
    "tracking": "check_tracker tracked",
})  # fmt: skip
