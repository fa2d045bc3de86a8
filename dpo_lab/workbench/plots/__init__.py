"""Pictures of training: arrays and rows of metrics in, matplotlib `Axes` out. No torch, no pyplot, no training.

Each function takes `ax=None` and returns the axes; a `describe_…` function says in words what a picture shows, for
alternative text.

style          colours, figures, axes, letters
curves         what a run measured, step by step
overlays       several runs over each other, and the sheet that a training is watched on
margins        the histogram of margins
sweeps         the trials of a sweep
token_rewards  the reward of every token, over the words; `token_text` lays them out
captions       how a notebook shows a figure, with caption and alternative text
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "curves":
        "Curve PANELS Panel curves_figure curves_pngs describe_curves describe_panel metric_label panels_of "
        "plot_panel series smooth smoothing_window",
    "margins": "describe_margins plot_margins",
    "overlays": "describe_runs describe_watch over_seeds plot_runs runs_figure watch_figure",
    "captions": "Shown show",
    "style": "CHOSEN PALETTE Picture REJECTED TRAINING add_legend add_title dress new_figure plain to_png",
    "token_rewards": "token_heatmap token_html",
})  # fmt: skip
