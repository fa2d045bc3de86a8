"""Pictures of training: arrays and rows of metrics in, matplotlib `Axes` out. No torch, no pyplot, no training.

Each function takes `ax=None` and returns the axes; for each picture a `describe_…` function says in words what it
shows, for alternative text. `style` holds colours and figures, `curves` what a run measured, `overlays` several
runs over each other, `margins` the histogram; `show` puts a figure into a notebook, with caption and alternative text.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "curves":
        "Curve PANELS Panel curves_figure curves_pngs describe_curves describe_panel metric_label panels_of "
        "plot_panel series smooth smoothing_window",
    "margins": "describe_margins plot_margins",
    "overlays": "blank_figure describe_runs describe_watch plot_runs runs_figure watch_figure",
    "show": "Shown show",
    "style": "CHOSEN PALETTE Picture REJECTED TRAINING add_legend add_title dress new_figure plain to_png",
    "token_rewards": "describe_tokens token_heatmap token_html",
})  # fmt: skip
