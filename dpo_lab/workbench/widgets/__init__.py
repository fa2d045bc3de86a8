"""Figures with controls, each a thin layer over a plain function of `workbench.plots` that draws the same without it.

live_figure    a picture that is drawn anew when a control changes
comparer       runs side by side
sweep          a sweep: what may be tried, the budget, the trials
inspector      preference pairs, token by token
labeller       which of two answers is better
arena          two models answer the same prompts; then the labeller
cockpit        a panel that trains
rounds         rounds as they come: sample, judge, pair, learn
doctor         what the curves of a log say
controls       controls made from a configuration dataclass
layout         parts of every panel
markup         everything that panels show as HTML, escaped
background     a training in a thread of its own
sources        what a panel may be given for a model

ipywidgets loads with the first name that is used, so the package works without it.
"""

from typing import Any

from dpo_lab import face

_load, __dir__ = face(__name__, {
    "arena": "Arena",
    "cockpit.panel": "Cockpit",
    "comparer": "Comparer",
    "doctor": "DoctorPanel",
    "inspector": "Inspector",
    "labeller": "Labeller",
    "live_figure": "LiveFigure choice log_slider slider",
    "rounds": "RoundsPanel",
    "sweep": "SweepPanel",
})  # fmt: skip


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name != "ipywidgets":
            raise
        message = "widgets need ipywidgets, which is not installed; `pip install 'dpo-lab[course]'` brings it along"
        raise ModuleNotFoundError(message, name="ipywidgets") from error
