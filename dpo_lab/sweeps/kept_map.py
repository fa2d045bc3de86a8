"""The map of β × learning rate as `data/hyperparameter_map.py` keeps it. No torch, no Optuna."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_map(path: str | Path) -> tuple[Row, list[Row], dict[tuple[float, float], list[Row]]]:
    """How the map was made; its cells, one run each; and all seeds of those cells that were run with several.

    The cells are those of the first seed, so that they compare; the others tell how much a seed matters.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no map at {path}; python data/hyperparameter_map.py computes it")
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows = kept["rows"]
    first = min(row["seed"] for row in rows)
    together: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        together.setdefault((row["beta"], row["learning_rate"]), []).append(row)
    repeats = {cell: runs for cell, runs in together.items() if len(runs) > 1}
    return kept["made"], [row for row in rows if row["seed"] == first], repeats
