"""Figures with controls, each a thin layer over a plain function of `workbench.plots` that draws the same without it.

`live_figure` has the box of controls and a picture; the other modules each have one widget of the course. ipywidgets
loads with the first name that is used, so the package works without it.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "arena": "Arena",
    "cockpit.panel": "Cockpit",
    "comparer": "Comparer",
    "inspector": "Inspector",
    "labeller": "Labeller",
    "live_figure": "LiveFigure choice log_slider slider",
    "sweep": "SweepPanel",
})  # fmt: skip
