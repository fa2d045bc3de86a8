"""Sweeps: many short runs that search for good knobs, stored in a study that several processes share.

Read in this order: `space` (what may be tried), `settings` (the knobs of a sweep), `study` (Optuna's study in a
folder; `locks` makes processes wait for each other), `sweep` (the stream of events). Optuna and torch
load when a sweep runs.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "settings": "DEFAULT_TRIALS OBJECTIVES SweepSettings",
    "space": "Choice Range SEARCHED Space parse_space",
    "study": "StoredStudy best_row",
    "sweep": "run_sweep sweep_line train_line",
})  # fmt: skip
