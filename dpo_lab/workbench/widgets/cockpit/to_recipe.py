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

PRESETS: dict[str, dict[str, Any]] = {
    "as given": {},
    "a good run": {"limit": 1024, "batch_size": 16, "learning_rate": 5e-4, "beta": 0.5, "epochs": 1.0},
    "β too small": {"limit": 1024, "batch_size": 16, "learning_rate": 1e-3, "beta": 0.02, "epochs": 2.0},
    "rate too high": {"limit": 1024, "batch_size": 16, "learning_rate": 3e-3, "beta": 0.5, "epochs": 1.0},
    "noisy labels": {"limit": 1024, "batch_size": 16, "learning_rate": 5e-4, "beta": 0.5, "epochs": 1.0, "flip": 0.4},
}
"""Runs of the embedded model worth seeing, as the controls that they set; the others go back to where they began."""


def knobs_of(loss: str) -> dict[str, float]:
    """The loss's own knobs as it starts with them."""
    return dict(loss_of(DPOConfig(loss=loss))[0].knobs)


def own_knobs(loss: str) -> dict[str, float]:
    """β and label smoothing as the loss starts with them; those that it lacks are left out."""
    return {name: value for name, value in knobs_of(loss).items() if name in SHARED_KNOBS}


def further_knobs(loss: str) -> str:
    """The other knobs as the field of the panel has them: "gamma=0.5 lam=1"."""
    return " ".join(f"{name}={value:g}" for name, value in knobs_of(loss).items() if name not in SHARED_KNOBS)


def recipe_of(values: Mapping[str, Any], base: Recipe) -> Recipe:
    """`base` with the values of the controls. ValueError names what the configuration or the loss refuses.

    β and label smoothing are written out, so that the run's settings say what it was trained with; a knob that the
    loss lacks is left out.
    """
    values = {name: tidy(value) for name, value in values.items()}
    known = own_knobs(values["loss"])
    values |= {name: values[name] or None for name in ("limit", "job", "lora") if name in values}  # 0 or "": none
    for name in SHARED_KNOBS:
        values[name] = values.get(name) if name in known else None
    if "knobs" in values:  # those of "gamma=0.5 lam=1" that differ from the loss's own
        written = {
            name: float(value or "nan") for name, _, value in (w.partition("=") for w in values["knobs"].split())
        }
        values["knobs"] = dict(written.items() - knobs_of(values["loss"]).items())
    of_config = {entry.name for entry in fields(DPOConfig)}
    config = replace(base.config, **{name: value for name, value in values.items() if name in of_config})
    loss_of(config)
    return replace(base, config=config, **{name: value for name, value in values.items() if name not in of_config})
