"""The Bradley–Terry gap under a slider."""

from __future__ import annotations

from dpo_lab.plots.preferences import bradley_terry_figure, describe_bradley_terry
from dpo_lab.widgets.live_figure import LiveFigure, slider


def bradley_terry_widget(gap: float = 1.0, *, temperature: float = 1.0, flip: float = 0.0) -> LiveFigure:
    """`bradley_terry_figure` with a slider for the reward gap and one for each kind of label noise."""
    return LiveFigure(
        bradley_terry_figure,
        describe=describe_bradley_terry,
        gap=slider("reward gap", gap, low=-6, high=6, step=0.1),
        temperature=slider("temperature", temperature, low=0.1, high=5, step=0.1),
        flip=slider("flipped labels", flip, low=0, high=0.5, step=0.01),
    )
