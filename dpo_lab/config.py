"""The knobs of a run: what they are called, what they do, what they start at.

Plain dataclasses without torch, so that `dpo-lab train --help` answers at once. The string under each field is its
one-line documentation: the command line prints it, the widgets show it as a tooltip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

LossName = Literal[
    "dpo", "cdpo", "robust", "ipo", "hinge", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "discopop", "dpop", "rpo", "simpo", "orpo", "cpo", "simper",
]  # fmt: skip
"""The keys of `losses.LOSSES`, which this file must not import (a test holds the two together)."""
UnpairedLossName = Literal["kto", "bco", "apo_zero_unpaired"]
"""The keys of `losses.UNPAIRED_LOSSES`: losses of single answers with a label."""

DivergenceName = Literal["reverse_kl", "forward_kl", "js", "alpha"]
OptimizerName = Literal["adamw", "adam", "sgd", "rmsprop", "adafactor"]
ScheduleName = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bfloat16", "float16"]
ScoreTurns = Literal["assistant", "all", "last"]
AutoPrecision = Literal["auto", "float32", "bfloat16", "float16"]
"""What a command takes; `auto` is settled before anything is computed."""
TrackerName = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
]  # fmt: skip
"""The trackers of accelerate (a test holds the two together)."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What SFT and DPO share: data shape, optimiser, schedule, and how often to look."""

    epochs: float = 1.0
    """Passes over the training data; fractions are allowed."""
    max_steps: int | None = None
    """Stop after this many optimiser steps, whatever `epochs` says."""
    batch_size: int = 32
    """Pairs (SFT: examples) per optimiser step, over all processes."""
    micro_batch_size: int | None = None
    """Pairs that one process puts through the model at a time; None lets `tokens_per_pass` decide."""
    tokens_per_pass: int = 16384
    """Most tokens that go through the model at a time; a larger batch is split and its gradients accumulated."""
    learning_rate: float = 2e-4
    """Peak learning rate; large pretrained models want 5e-7 to 5e-6."""
    schedule: ScheduleName = "linear"
    """How the learning rate falls after the warm-up: to zero, or not at all."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    optimizer: OptimizerName = "adamw"
    """The update rule."""
    weight_decay: float = 0.0
    """Decay of weight matrices (not of biases or norms), decoupled for AdamW."""
    adam_beta1: float = 0.9
    """Memory of the gradient's mean (Adam, AdamW; momentum for SGD and RMSprop)."""
    adam_beta2: float = 0.999
    """Memory of the gradient's square (Adam, AdamW; RMSprop's alpha)."""
    adam_epsilon: float = 1e-8
    """Added to the root of the gradient's square."""
    max_grad_norm: float | None = 1.0
    """Clip the gradient to this norm; None leaves it."""
    max_length: int = 1024
    """Most tokens of prompt plus one completion; the prompt is shortened first, at its oldest part."""
    score_turns: ScoreTurns = "assistant"
    """Of an answer of several turns: score those of the assistant, also what users and tools say (`all`), or `last`."""
    precision: Precision = "float32"
    """Arithmetic of the forward pass; weights, log-sum-exp and sums stay in float32."""
    layout: Literal["shared", "separate"] = "shared"
    """Rows: the prompt once with both completions (`shared`), or one row per completion (`separate`)."""
    group_by_length: bool = True
    """Put pairs of similar length into the same batch; the order of the batches stays random."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model's parts and, on a GPU, attend in blocks: the first steps take long, the others less."""
    dropout: bool = False
    """Keep the model's dropout; off by default, since policy and reference must be scored alike."""
    seed: int = 0
    """The one source of randomness: split, order, dropout, sampling."""
    device: str = "auto"
    """`auto` takes the GPU where there is one; or `cpu`, `cuda`, `cuda:1`, `mps`."""
    log_every: int = 1
    """Steps between two `Step` events; the device is waited for only then."""
    evaluate_every: int | None = None
    """Steps between two evaluations on the held-out data; None evaluates at the start and at the end."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; None leaves it to the clock, the end of the run, and an interruption."""
    checkpoint_minutes: float = 10.0
    """Minutes after which the next step is followed by a checkpoint; 0 writes none by the clock."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""

    precisions = Precision.__args__  # no field: those that are accepted

    def __post_init__(self) -> None:
        check = _Check(self)
        check("epochs", self.epochs > 0, "must be positive", "1 to 3 are usual")
        check("max_steps", self.max_steps is None or self.max_steps > 0, "must be positive", "None leaves it to epochs")
        check("batch_size", self.batch_size >= 1, "must be at least 1", "16 or 32 is the usual start")
        check("micro_batch_size", self.micro_batch_size is None or self.micro_batch_size >= 1, "must be at least 1",
              "None lets tokens_per_pass decide")  # fmt: skip
        check("tokens_per_pass", self.tokens_per_pass >= 1, "must be at least 1", "16384 is the usual start")
        is_open = self.learning_rate is None  # only in a command's options, until the model is known
        check("seed", 0 <= self.seed < 2**32, "must be a whole number from 0 to 2^32 − 1", "0 is usual")
        check("learning_rate", is_open or 0 < self.learning_rate <= 1e9, "must be positive and at most 1e9",
              "1e-4 for small models, 5e-7 to 5e-6 for large ones")  # fmt: skip
        check("warmup", 0 <= self.warmup <= 1, "is a share of the steps and must lie in [0, 1]", "0.1 is usual")
        check("weight_decay", 0 <= self.weight_decay < math.inf, "must not be negative", "0 or 0.01 are usual")
        check("adam_beta1", 0 <= self.adam_beta1 < 1, "must lie in [0, 1)", "0.9 is usual")
        check("adam_beta2", 0 <= self.adam_beta2 < 1, "must lie in [0, 1)", "0.999 is usual")
        check("adam_epsilon", self.adam_epsilon > 0, "must be positive", "1e-8 is usual")
        check("max_grad_norm", self.max_grad_norm is None or self.max_grad_norm > 0, "must be positive",
              "1.0 is usual, None does not clip")  # fmt: skip
        check("max_length", self.max_length >= 2, "must be at least 2", "it counts prompt plus completion")
        check("log_every", self.log_every >= 1, "must be at least 1", "1 logs every step")
        check("evaluate_every", self.evaluate_every is None or self.evaluate_every >= 1, "must be at least 1",
              "None evaluates at the start and the end")  # fmt: skip
        check("checkpoint_every", self.checkpoint_every is None or self.checkpoint_every >= 1, "must be at least 1",
              "None leaves it to checkpoint_minutes")  # fmt: skip
        check("checkpoint_minutes", 0 <= self.checkpoint_minutes < math.inf, "must be finite and not negative",
              "10 is usual, 0 writes none by the clock")  # fmt: skip
        check("keep_checkpoints", self.keep_checkpoints >= 1, "must be at least 1", "2 is usual")
        for name, allowed in (("optimizer", OptimizerName.__args__), ("schedule", ScheduleName.__args__),
                              ("precision", self.precisions)):  # fmt: skip
            check(name, getattr(self, name) in allowed, "is not known", f"choose one of {', '.join(allowed)}")
        check("score_turns", self.score_turns in ScoreTurns.__args__, "is not known", "choose assistant, all or last")
        check("layout", self.layout in ("shared", "separate"), "is not known", "choose shared or separate")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Settings of a preference-tuning run."""

    loss: str = "dpo"
    """Which loss of the tables (`dpo-lab losses`); or a sum of them and of sft, each with its weight: dpo:1+sft:0.1."""
    beta: float | None = None
    """Price of drifting from the reference: larger stays closer. None takes the loss's own (0.5 for dpo)."""
    label_smoothing: float | None = None
    """Share of labels believed to be flipped, in [0, ½), for the losses that have it."""
    divergence: DivergenceName = "reverse_kl"
    """What keeps the policy near the reference, for losses of the log-ratio gap; reverse_kl is plain DPO."""
    knobs: dict[str, float] = field(default_factory=dict)
    """Further knobs of the chosen loss, such as `gamma` of simpo."""
    ld_alpha: float | None = None
    """LD-DPO: what each token beyond the shorter answer's length counts, 0 to 1; None counts it like the others."""
    weighting: Literal["wpo"] | None = None
    """`wpo` counts a pair more the likelier the policy is to write it; that takes one more pass. None: all alike.
    Held-out losses stay unweighted."""
    sync_reference: int | None = None
    """TR-DPO: the reference moves to the policy after every so many steps, so it is scored live; None leaves it."""
    sync_mixup: float | None = None
    """How far it moves, in (0, 1]; None goes all the way."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = _Check(self)
        parts_of_loss(self.loss)
        check("beta", self.beta is None or 0 < self.beta < math.inf, "must be positive and finite",
              "smaller values allow more drift from the reference, 0.1 is the usual start")  # fmt: skip
        check("divergence", self.divergence in DivergenceName.__args__, "is not known",
              f"choose one of {', '.join(DivergenceName.__args__)}")  # fmt: skip
        check("label_smoothing", self.label_smoothing is None or 0 <= self.label_smoothing < 0.5,
              "must lie in [0, 0.5)", "at one half the labels say nothing; 0.1 is a usual guess")  # fmt: skip
        check("ld_alpha", self.ld_alpha is None or 0 <= self.ld_alpha <= 1, "must lie in [0, 1]",
              "1 keeps all, 0 forgets the tokens beyond the shorter answer's length")  # fmt: skip
        check("weighting", self.weighting in ("wpo", None), "is not known", "choose wpo, or None to weigh all alike")
        check("sync_reference", self.sync_reference is None or self.sync_reference >= 1, "must be at least 1",
              "None leaves the reference where it is")  # fmt: skip
        check("sync_mixup", self.sync_mixup is None or (self.sync_reference is not None and 0 < self.sync_mixup <= 1),
              "must lie in (0, 1] and needs sync_reference", "None goes all the way")  # fmt: skip
        for name in ("ld_alpha", "weighting", "sync_reference"):
            check(name, getattr(self, name) is None or not self.is_unpaired, "is for losses of pairs",
                  f"leave it out with the loss {self.loss}")  # fmt: skip

    @property
    def is_unpaired(self) -> bool:
        """Whether the loss learns from single answers with a label."""
        return self.loss in UnpairedLossName.__args__


def parts_of_loss(loss: str) -> dict[str, float]:
    """The weight of each part: `dpo` → {dpo: 1}, `dpo:1+sft:0.1` → {dpo: 1, sft: 0.1}. ValueError where it is none."""
    alone, summed = (*LossName.__args__, *UnpairedLossName.__args__), (*LossName.__args__, "sft")
    if loss in alone:
        return {loss: 1.0}
    split = [part.strip().partition(":") for part in loss.split("+")]
    for name, _, _ in split:
        if name in UnpairedLossName.__args__:
            raise ValueError(
                f"loss must name {name} alone, got {loss!r}; it takes single answers, and a sum takes pairs"
            )
        if name not in summed:
            known = ", ".join(alone)
            raise ValueError(f"loss is not known, got {name!r}; choose one of {known}, or a sum as dpo:1+sft:0.1")
    try:
        parts = {name: float(weight or 1) for name, _, weight in split}
    except ValueError:
        parts = {}
    if len(parts) < len(split) or not all(0 < weight < math.inf for weight in parts.values()) or split[0][0] == "sft":
        raise ValueError(f"loss must be a sum of different losses, sft not first, with positive weights, got {loss!r}; "
                         "write it as dpo:1+sft:0.1")  # fmt: skip
    return parts


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """A small adapter instead of all weights (`dpo_lab.models.lora`)."""

    lora: int | None = None
    """Train a LoRA adapter of this rank beside frozen weights (8 to 64 are usual); None trains all weights."""
    lora_alpha: float | None = None
    """The adapter's part is scaled by this over the rank; None takes twice the rank."""
    lora_targets: tuple[str, ...] = ()
    """Layers with an adapter, as q_proj v_proj; none takes every linear layer but the output layer."""
    lora_dropout: float = 0.0
    """Dropout on the adapter's input while training; it needs --dropout too."""

    def check_lora(self, dropout: bool) -> None:
        """ValueError for an adapter's setting that would do nothing. dropout: whether the run has any."""
        requested = {
            "lora_alpha": self.lora_alpha,
            "lora_targets": self.lora_targets,
            "lora_dropout": self.lora_dropout,
        }
        for name, value in requested.items():
            if value and self.lora is None:
                raise ValueError(f"{name} is {value!r} without an adapter; give lora as well, a rank such as 16")
        if self.lora_dropout and not dropout:
            raise ValueError(
                f"lora_dropout is {self.lora_dropout}, and dropout is off for the whole run; switch it on with "
                "dropout=True (--dropout), or leave lora_dropout at 0"
            )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Settings of a supervised fine-tuning run: cross-entropy on the completions."""

    learning_rate: float = 1e-3
    """Peak learning rate; large pretrained models want 1e-5 to 2e-5."""


class _Check:
    """Raises with the value, the rule and the remedy."""

    def __init__(self, config: object) -> None:
        self.config = config

    def __call__(self, name: str, holds: bool, rule: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name} {rule}, got {getattr(self.config, name)!r}; {remedy}")
