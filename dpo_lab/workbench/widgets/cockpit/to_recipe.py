"""From what the controls say to the recipe of a run. No widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dpo_lab.config import DPOConfig
from dpo_lab.losses.table import loss_of
from dpo_lab.workbench.recipes.recipe import Recipe
from dpo_lab.workbench.widgets.controls import tidy

SHARED_KNOBS = ("beta", "label_smoothing")
"""Knobs of several losses that are fields of the configuration; the others are in its `knobs`."""

ALL = 0
"""What the menu of sizes says for all pairs: with None for a value it would show nothing."""


def own_knobs(loss: str) -> dict[str, float]:
    """β and label smoothing as the loss starts with them; those that it lacks are left out."""
    return {name: value for name, value in loss_of(DPOConfig(loss=loss))[0].knobs.items() if name in SHARED_KNOBS}


def recipe_of(values: Mapping[str, Any], base: Recipe) -> Recipe:
    """`base` with the values of the controls. ValueError names what the configuration or the loss refuses.

    β and label smoothing are written out, so that the run's settings say what it was trained with; a knob that the
    loss lacks is left out.
    """
    values = {name: tidy(value) for name, value in values.items()}
    known = own_knobs(values["loss"])
    if values.get("limit") == ALL:
        values["limit"] = None
    for name in SHARED_KNOBS:
        values[name] = values.get(name) if name in known else None
    of_config = {entry.name for entry in fields(DPOConfig)}
    config = replace(base.config, **{name: value for name, value in values.items() if name in of_config})
    loss_of(config)
    return replace(base, config=config, **{name: value for name, value in values.items() if name not in of_config})
