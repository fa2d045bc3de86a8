"""Parts of the cockpit: the controls of a recipe, the figure of the runs, the buttons."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ipywidgets

from dpo_lab.config import DPOConfig
from dpo_lab.recipes import Recipe
from dpo_lab.widgets.cockpit.asked import SHARED_KNOBS, own_knobs
from dpo_lab.widgets.controls import control, control_of, source_box
from dpo_lab.widgets.live_figure import LiveFigure

SIZES = (256, 512, 1024, 2048, 4096, 8192)


class Curves(LiveFigure):
    """The live figure of the runs; new runs come in without drawing twice."""

    _is_quiet = False

    def offer(self, options: Sequence[tuple[str, str]], chosen: tuple[str, ...]) -> None:
        """Another list of runs, of which some are shown."""
        self._is_quiet = True
        try:
            self.controls["runs"].options = options
            self.controls["runs"].value = chosen
        finally:
            self._is_quiet = False
        self.try_redraw()

    def try_redraw(self) -> None:
        """Draw; a failure is said under the picture, and is no reason to end a training."""
        with suppress(Exception):
            self.redraw()

    def _on_change(self, change: object) -> None:
        if not self._is_quiet:
            super()._on_change(change)


def controls_of(recipe: Recipe) -> dict[str, Any]:
    """The controls of a recipe, by the name of what they set."""
    config, known = recipe.config, own_knobs(recipe.config.loss)
    sizes = sorted({*SIZES, *([recipe.limit] if recipe.limit else [])})
    found: dict[str, Any] = {
        "model": source_box(Recipe, "model", recipe.model, options=("embedded",)),
        "pairs": source_box(Recipe, "pairs", recipe.pairs, options=("embedded",)),
        "limit": control_of(ipywidgets.Dropdown, Recipe, "limit", value=recipe.limit,
                            options=[*((f"{size:,}", size) for size in sizes), ("all", None)]),
        "loss": control(DPOConfig, "loss", config.loss),
    }  # fmt: skip
    for name in SHARED_KNOBS:
        value = getattr(config, name)
        start = known.get(name, 0.1) if value is None else value
        found[name] = control(DPOConfig, name, start, disabled=name not in known)
    for name in ("learning_rate", "epochs", "batch_size", "max_length", "seed"):
        found[name] = control(DPOConfig, name, getattr(config, name))
    found["evaluate_every"] = control(DPOConfig, "evaluate_every", config.evaluate_every or 10)
    return found
