"""The rows that a recipe trains on, and those held out: the same as the command line reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_lab.preferences import read_preferences, split_rows
from dpo_lab.recipes.recipe import Recipe

Read = tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]
"""Rows to train on, rows held out, and what there is to say about them."""


def read_pairs(recipe: Recipe) -> Read:
    """Rows to train on, rows held out, and what there is to say about them."""
    is_embedded = recipe.pairs == "embedded"
    rows, report = read_preferences(
        recipe.pairs, split="train" if is_embedded else None, limit=recipe.limit, seed=recipe.config.seed
    )
    notes = [report.summary()]
    if is_embedded:
        held, _ = read_preferences("embedded", split="test")
    elif recipe.validation:
        rows, held = split_rows(rows, recipe.validation, recipe.config.seed)
    else:
        held = []
    return rows, held, notes


class Shelf:
    """The rows that were read last: a second run on the same data need not read and check them again."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._rows: Any = None

    def read(self, recipe: Recipe) -> Read:
        """As `read_pairs`; from the shelf where the data is embedded, or a file that has not changed since."""
        key = self._key_of(recipe)
        if key is None:
            return read_pairs(recipe)
        if key != self._key:
            self._rows, self._key = read_pairs(recipe), key
        return self._rows

    def _key_of(self, recipe: Recipe) -> tuple[Any, ...] | None:
        path = Path(recipe.pairs).expanduser()
        if recipe.pairs != "embedded" and not path.is_file():
            return None  # whether a folder or a data set of the Hub has changed is not known without reading it
        state = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else ()
        return recipe.pairs, *state, recipe.limit, recipe.validation, recipe.config.seed
