"""The cockpit's controls: the knobs, made from the recipe and its configuration."""

from __future__ import annotations

from typing import Any

import ipywidgets

from dpo_lab.config import DPOConfig, LossName, UnpairedLossName
from dpo_lab.workbench.recipes.recipe import Recipe
from dpo_lab.workbench.widgets.cockpit.to_recipe import ALL, SHARED_KNOBS, further_knobs, own_knobs
from dpo_lab.workbench.widgets.controls import control, control_of, source_box
from dpo_lab.workbench.widgets.layout import FULL_WIDTH
from dpo_lab.worlds.pocket.schema import JOBS

SIZES = (256, 512, 1024, 2048, 4096, 8192)
FOLDED = (
    "model", "pairs", "knobs", "label_smoothing", "schedule", "warmup", "lora", "batch_size", "max_length",
    "evaluate_every",
)  # fmt: skip
"""The controls behind "more"."""
LABEL = "7.4em"  # room for a control's label in the narrow column


def controls_of(recipe: Recipe) -> dict[str, Any]:
    """The controls of a recipe, by the name of what they set."""
    config, known = recipe.config, own_knobs(recipe.config.loss)
    sizes = sorted({*SIZES, *([recipe.limit] if recipe.limit else [])})
    controls: dict[str, Any] = {
        "model": source_box(Recipe, "model", recipe.model, options=("embedded",)),
        "pairs": source_box(Recipe, "pairs", recipe.pairs, options=("embedded",)),
        "limit": control_of(ipywidgets.Dropdown, Recipe, "limit", value=recipe.limit or ALL,
                            options=[*((f"{size:,}", size) for size in sizes), ("all", ALL)]),
        "job": control_of(ipywidgets.Dropdown, Recipe, "job", value=recipe.job or "",
                          options=[("all", ""), *((job, job) for job in JOBS)]),
        "flip": control(Recipe, "flip", recipe.flip),
        "loss": control_of(ipywidgets.Dropdown, DPOConfig, "loss", value=config.loss,
                           options=tuple(dict.fromkeys((*LossName.__args__, *UnpairedLossName.__args__, config.loss)))),
    }  # fmt: skip
    for name in SHARED_KNOBS:
        value = getattr(config, name)
        start = known.get(name, 0.1) if value is None else value
        controls[name] = control(DPOConfig, name, start, disabled=name not in known)
    for name in ("learning_rate", "epochs", "seed", "schedule", "warmup", "batch_size", "max_length"):
        controls[name] = control(DPOConfig, name, getattr(config, name))
    controls["evaluate_every"] = control(DPOConfig, "evaluate_every", config.evaluate_every or 10)
    written = " ".join(f"{name}={value:g}" for name, value in config.knobs.items())
    controls["knobs"] = control(DPOConfig, "knobs", written or further_knobs(config.loss))
    controls["lora"] = control_of(ipywidgets.BoundedIntText, Recipe, "lora", value=recipe.lora or 0, min=0, max=1024)
    for one in controls.values():
        one.layout = ipywidgets.Layout(width="auto", max_width=FULL_WIDTH)
        one.style.description_width = LABEL
    return controls
