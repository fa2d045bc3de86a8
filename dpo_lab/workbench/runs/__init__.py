"""A run as a folder: configuration, metrics, samples, model, report; loading and comparing runs. No torch at import.

Read in this order: `settings` (what runs, recipes, sweeps and commands have in common), `run` (the folder),
`provenance` (versions, device, time), `report` (its page, built by `page`), `card` (the model card), `compare`;
`tracking` and `publishing` pass a run on to trackers and to the Hub.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "compare":
        "answers_side_by_side compare_runs comparison_csv comparison_figure comparison_frame load_runs run_labels "
        "run_names seed_groups settings_that_differ",
    "publishing": "check_push push_to_hub",
    "run": "Run row_of",
    "tracking": "check_tracker tracked",
})  # fmt: skip
