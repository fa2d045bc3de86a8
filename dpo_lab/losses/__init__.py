"""Losses: `PairScores` in, one loss per pair out. No models, no tokenizers, no means over the batch.

What a loss sees (`PairScores`) and the DPO loss itself are in `dpo_lab.loss`. Then read in this order: `family` (one
function per loss), `unpaired` (losses of single answers with a label), `modifiers` (divergences, LD-DPO, WPO), `table`
(all of them by name, with formulas, sources, and what each assumes).
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "dpo_lab.loss": "PairScores dpo implicit_rewards log_ratio_gap log_ratios mean_logps",
    "family":
        "apo_down apo_zero bco_pair cdpo cpo discopop dpop exo_pair hinge ipo nca_pair orpo robust rpo sigmoid_norm "
        "sft simper simpo sppo_hard",
    "modifiers":
        "DIVERGENCES Divergence alpha_divergence discount_tail divergence_named forward_kl jensen_shannon "
        "reverse_kl under_divergence wpo_weights",
    "table": "LOSSES LossSpec SYMBOLS UNPAIRED_LOSSES loss_of reward_beta",
    "unpaired": "UnpairedScores apo_zero_unpaired bco kto midpoint",
})  # fmt: skip
