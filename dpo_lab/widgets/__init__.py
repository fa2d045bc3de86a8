"""Figures with controls, each a thin layer over a plain function of `dpo_lab.plots` that draws the same without it.

`live_figure` has the box of controls and a picture; the other modules each have one widget of the course. ipywidgets
loads with the first name that is used, so the package works without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpo_lab.widgets.arena import Arena
    from dpo_lab.widgets.cockpit.panel import Cockpit
    from dpo_lab.widgets.comparer import Comparer
    from dpo_lab.widgets.finite_world import optimum_widget
    from dpo_lab.widgets.inspector import Inspector
    from dpo_lab.widgets.labeller import Labeller
    from dpo_lab.widgets.live_figure import LiveFigure, choice, log_slider, slider
    from dpo_lab.widgets.loss import loss_widget
    from dpo_lab.widgets.preferences import bradley_terry_widget
    from dpo_lab.widgets.scaling import scaling_widget
    from dpo_lab.widgets.sweep import SweepPanel

_HOME = {
    "Cockpit": "cockpit.panel",
    "Comparer": "comparer",
    "Arena": "arena",
    "Inspector": "inspector",
    "Labeller": "labeller",
    "LiveFigure": "live_figure",
    "choice": "live_figure",
    "log_slider": "live_figure",
    "slider": "live_figure",
    "loss_widget": "loss",
    "optimum_widget": "finite_world",
    "bradley_terry_widget": "preferences",
    "scaling_widget": "scaling",
    "SweepPanel": "sweep",
}

__all__ = [
    "Arena",
    "Cockpit",
    "Comparer",
    "Inspector",
    "Labeller",
    "LiveFigure",
    "SweepPanel",
    "bradley_terry_widget",
    "choice",
    "log_slider",
    "loss_widget",
    "optimum_widget",
    "scaling_widget",
    "slider",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dpo_lab.widgets' has no attribute {name!r}; it offers {', '.join(__all__)}")
    try:
        value = getattr(import_module(f"dpo_lab.widgets.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "ipywidgets":
            raise
        raise ModuleNotFoundError(
            "widgets need ipywidgets, which is not installed; `pip install 'dpo-lab[course]'` brings it along",
            name=error.name,
        ) from None
    globals()[name] = value
    return value
