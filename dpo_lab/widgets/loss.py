"""The DPO loss and its pull, under sliders for the gap and β."""

from __future__ import annotations

from dpo_lab.plots.loss import WIDEST_GAP, describe_loss, loss_figure
from dpo_lab.widgets.live_figure import LiveFigure, log_slider, slider


def loss_widget(gap: float = 0.0, beta: float = 0.1) -> LiveFigure:
    """`loss_figure` with a slider for the log-ratio gap h and a logarithmic one for β."""
    return LiveFigure(
        loss_figure,
        describe=describe_loss,
        gap=slider("gap h (nats)", gap, low=-WIDEST_GAP, high=WIDEST_GAP, step=0.5),
        beta=log_slider("β", beta, low=0.01, high=1.0),
    )
