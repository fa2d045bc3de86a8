"""The knobs of a sweep itself: what is searched, by which measure, for how long. No torch, no Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from dpo_lab.config import DPOConfig
from dpo_lab.workbench.runs.settings import PassSettings, ReadingSettings
from dpo_lab.workbench.sweeps.space import SEARCHED, Range, Space, parse_space

ObjectiveName = Literal["accuracy", "loss", "reward", "success"]
SamplerName = Literal["tpe", "random", "grid"]

DEFAULT_TRIALS = 20


class Objective(NamedTuple):
    """What a sweep chooses by."""

    title: str
    metric: str  # of an evaluation, or of `worlds.pocket.quality` where answers are judged
    is_larger_better: bool
    needs_judge: bool


OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective("validation pairs ranked right", "eval_rewards/accuracies", True, False),
    "loss": Objective("validation loss", "eval_loss", False, False),
    "reward": Objective("mean true reward of answers", "reward", True, True),
    "success": Objective("share of answers that do all that was asked", "success", True, True),
}


@dataclass(frozen=True, kw_only=True)
class SweepSettings(PassSettings, ReadingSettings):
    """A sweep. Each knob takes one value, a list `a,b,c`, a range `low:high`, or `low:high:log`."""

    loss: str | None = None
    """Losses of the table to try, as dpo,ipo."""
    beta: str | None = None
    """Price of drifting from the reference, as 0.05:1:log."""
    label_smoothing: str | None = None
    """Share of labels believed to be flipped, as 0:0.3."""
    divergence: str | None = None
    """What keeps the policy near the reference, as reverse_kl,js."""
    learning_rate: str | None = None
    """Peak learning rate, as 5e-5:1e-3:log."""
    schedule: str | None = None
    """How the learning rate falls, as linear,cosine."""
    warmup: str | None = None
    """Share of the steps over which the learning rate rises, as 0:0.3."""
    epochs: str | None = None
    """Passes over the training data, as 0.5,1,2."""
    max_steps: str | None = None
    """Most optimiser steps of a trial, as 40 or 40,80."""
    batch_size: str | None = None
    """Pairs per optimiser step, as 16,32,64."""
    optimizer: str | None = None
    """Update rules, as adamw,rmsprop."""
    weight_decay: str | None = None
    """Decay of weight matrices, as 0,0.01."""
    adam_beta1: str | None = None
    """Memory of the gradient's mean, as 0.8:0.95."""
    adam_beta2: str | None = None
    """Memory of the gradient's square, as 0.98,0.999."""
    max_grad_norm: str | None = None
    """Norm that the gradient is clipped to, as none,1."""

    objective: ObjectiveName = "accuracy"
    """What to choose by: accuracy or loss on validation pairs; reward or success where the judge knows the prompts."""
    trials: int | None = None
    """Trials in the study, of all processes together; None takes 20, or all cells of a grid."""
    sampler: SamplerName = "tpe"
    """`tpe` learns from the trials so far, `random` does not, `grid` tries every combination of listed values."""
    prune: bool = True
    """End a trial early when it stands below the median of the earlier ones."""
    evaluations: int = 4
    """How often a trial is looked at, its end included."""
    seed: int = 0
    """Seed of the search, and of every trial's training: trials differ by their knobs alone."""

    validation: float = 0.1
    """Share of the rows, by prompt, that trials are compared on; the test split is left for the last judgement."""
    judged_prompts: int = 64
    """Validation prompts that are answered and judged, for the objectives reward and success."""
    max_new_tokens: int = 80
    """Longest answer that is judged, in tokens."""

    def space(self) -> Space:
        """The space of the knobs. ValueError where they make none."""
        texts = {name: getattr(self, name) for name in SEARCHED}
        return parse_space({name: text for name, text in texts.items() if text is not None})

    def check(self) -> Space:
        """The space, after everything that can be checked without a model was checked."""
        space = self.space()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective {self.objective!r} is not known; choose one of {', '.join(OBJECTIVES)}")
        if self.sampler not in SamplerName.__args__:
            raise ValueError(f"sampler {self.sampler!r} is not known; choose one of {', '.join(SamplerName.__args__)}")
        for name, least, usual in (
            ("trials", 1, "20 is a usual start"),
            ("evaluations", 1, "4 looks at every quarter"),
            ("judged_prompts", 1, "64 is a usual start"),
            ("max_new_tokens", 1, "80 is a usual start"),
            ("limit", 2, "None takes all rows"),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}; {usual}")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is a share and must lie between 0 and 1, got {self.validation}; trials are compared on it"
            )
        if self.objective == "loss" and (mixed := [n for n in _CHANGES_LOSS if n in space.searched]):
            raise ValueError(
                f"the objective loss can't compare trials that differ in {' and '.join(mixed)}: their losses are "
                "different functions; choose by accuracy, or by reward where there is a judge"
            )
        if self.sampler == "grid":
            space.grid()
        return space

    def num_trials(self, space: Space) -> int:
        """The budget of the study."""
        if self.sampler != "grid":
            return self.trials or DEFAULT_TRIALS
        cells = sum(1 for _ in space.grid())
        return min(self.trials or cells, cells)

    def trial_config(self, values: dict, *, evaluate_every: int | None = None) -> DPOConfig:
        """The configuration of a trial with these values of its knobs."""
        own = {name: getattr(self, name) for name in ("seed", "max_length", "score_turns", "precision", "device")}
        return DPOConfig(**values, **own, evaluate_every=evaluate_every)


_CHANGES_LOSS = ("loss", "label_smoothing", "divergence")
"""Knobs under which a loss is another function. β is not among them: for `dpo`, log σ(βh) is the log-likelihood of the
labels at every β, and log-likelihoods compare."""

WATCHING = ("trials", "device")
"""Settings that a process which joins a study may choose for itself."""


def is_logarithmic(space: Space, name: str) -> bool:
    """Whether a knob's axis is drawn in factors: log ranges, and lists of positive numbers that span a factor of 4."""
    dimension = space.searched[name]
    if isinstance(dimension, Range):
        return dimension.is_log
    numbers = [value for value in dimension.values if isinstance(value, int | float)]
    return len(numbers) == len(dimension.values) and min(numbers) > 0 and max(numbers) >= 4 * min(numbers)
