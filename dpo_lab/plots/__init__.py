"""Pictures of training: arrays and rows of metrics in, matplotlib `Axes` out. No torch, no pyplot, no training.

Each function takes `ax=None` and returns the axes; for each picture a `describe_…` function says in words what it
shows, for alternative text. `style` holds colours and figures, `curves` what a run measured, `overlays` several
runs over each other, `margins` the histogram; `show` puts a figure into a notebook, with caption and alternative text.
"""

from dpo_lab.plots.curves import (
    PANELS,
    Curve,
    Panel,
    curves_figure,
    curves_pngs,
    describe_curves,
    describe_panel,
    metric_label,
    panels_of,
    plot_panel,
    series,
    smooth,
    smoothing_window,
)
from dpo_lab.plots.margins import describe_margins, plot_margins
from dpo_lab.plots.overlays import blank_figure, describe_runs, describe_watch, plot_runs, runs_figure, watch_figure
from dpo_lab.plots.show import Shown, show
from dpo_lab.plots.style import (
    CHOSEN,
    PALETTE,
    REJECTED,
    TRAINING,
    Picture,
    add_legend,
    add_title,
    dress,
    new_figure,
    plain,
    to_png,
)
from dpo_lab.plots.token_rewards import describe_tokens, token_heatmap, token_html

__all__ = [
    "CHOSEN",
    "PALETTE",
    "PANELS",
    "REJECTED",
    "TRAINING",
    "Curve",
    "Panel",
    "Picture",
    "Shown",
    "add_legend",
    "add_title",
    "blank_figure",
    "curves_figure",
    "curves_pngs",
    "describe_curves",
    "describe_margins",
    "describe_panel",
    "describe_runs",
    "describe_tokens",
    "describe_watch",
    "dress",
    "metric_label",
    "new_figure",
    "panels_of",
    "plain",
    "plot_margins",
    "plot_panel",
    "plot_runs",
    "runs_figure",
    "series",
    "show",
    "smooth",
    "smoothing_window",
    "to_png",
    "token_heatmap",
    "token_html",
    "watch_figure",
]
