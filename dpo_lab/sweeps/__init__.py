"""Sweeps: many short runs that search for good knobs, kept in a study that several processes share.

Read in this order: `space` (what may be tried), `settings` (the knobs of a sweep), `study` (Optuna's study in a
folder; `locks` keeps processes apart), `sweep` (the stream of events); `kept_map` reads the map that the course
discusses. Optuna and torch load when a sweep runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dpo_lab.sweeps.kept_map import read_map
from dpo_lab.sweeps.settings import DEFAULT_TRIALS, OBJECTIVES, SweepSettings
from dpo_lab.sweeps.space import SEARCHED, Choice, Range, Space, parse_space

if TYPE_CHECKING:
    from dpo_lab.sweeps.study import StoredStudy, best_row
    from dpo_lab.sweeps.sweep import run_sweep, sweep_line, train_line

_HOME = {
    "StoredStudy": "study",
    "best_row": "study",
    "run_sweep": "sweep",
    "sweep_line": "sweep",
    "train_line": "sweep",
}

__all__ = [
    "DEFAULT_TRIALS", "OBJECTIVES", "SEARCHED", "Choice", "Range", "Space", "StoredStudy", "SweepSettings", "best_row",
    "parse_space", "read_map", "run_sweep", "sweep_line", "train_line",
]  # fmt: skip


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dpo_lab.sweeps' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"dpo_lab.sweeps.{_HOME[name]}"), name)
    globals()[name] = value
    return value
