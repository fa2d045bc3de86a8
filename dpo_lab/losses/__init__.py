"""Losses: `PairScores` in, one loss per pair out. No models, no tokenizers, no means over the batch.

Read in this order: `pairs` (what a loss sees), `gap` (DPO and what sees the gap only), `anchored`, `reference_free`,
`modifiers` (divergences, LD-DPO, WPO), `table` (all of them by name, with formulas and sources). Beside them `curves`
(a loss as a curve, its pulls, where it rests) and `assumptions` (what each takes for granted about its labels).
"""

from dpo_lab.losses.anchored import apo_down, apo_zero, bco_pair, dpop, nca_pair, rpo, sppo_hard
from dpo_lab.losses.gap import cdpo, discopop, dpo, exo_pair, hinge, ipo, robust, sigmoid_norm
from dpo_lab.losses.modifiers import (
    DIVERGENCES,
    Divergence,
    alpha_divergence,
    discount_tail,
    divergence_named,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    under_divergence,
    wpo_weights,
)
from dpo_lab.losses.pairs import PairScores, implicit_rewards, log_ratio_gap, log_ratios, mean_logps
from dpo_lab.losses.reference_free import cpo, orpo, simpo
from dpo_lab.losses.table import LOSSES, SYMBOLS, LossSpec, loss_named

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "SYMBOLS",
    "Divergence",
    "LossSpec",
    "PairScores",
    "alpha_divergence",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "cdpo",
    "cpo",
    "discopop",
    "discount_tail",
    "divergence_named",
    "dpo",
    "dpop",
    "exo_pair",
    "forward_kl",
    "hinge",
    "implicit_rewards",
    "ipo",
    "jensen_shannon",
    "log_ratio_gap",
    "log_ratios",
    "loss_named",
    "mean_logps",
    "nca_pair",
    "orpo",
    "reverse_kl",
    "robust",
    "rpo",
    "sigmoid_norm",
    "simpo",
    "sppo_hard",
    "under_divergence",
    "wpo_weights",
]
