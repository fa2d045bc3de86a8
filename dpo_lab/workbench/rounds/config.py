"""Settings of DPO in rounds. A plain dataclass without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from dpo_lab.config import DPOConfig, _Check

PairingName = Literal["best_worst", "best_random", "all", "bradley_terry"]
SamplerName = Literal["step", "round", "never"]


@dataclass(frozen=True, kw_only=True)
class RoundsConfig(DPOConfig):
    """A run of `rounds` rounds, each of `steps` optimiser steps on pairs of the answers that it samples.

    The learning rate's schedule spans all rounds, and the optimiser keeps its state over them. `epochs` and `max_steps`
    have no say.
    """

    rounds: int = 3
    """How often new prompts are taken, answered, judged and learnt from."""
    prompts: int = 256
    """Prompts a round; every prompt comes once before any comes twice."""
    answers: int = 4
    """Answers sampled to each prompt."""
    steps: int = 16
    """Optimiser steps a round, over as many passes through its pairs as they take."""
    sampler: SamplerName = "round"
    """When the weights that sample follow the policy: at each `round` (semi-online DPO), at each `step`, which then has
    its share of the round's prompts (online), or `never` (offline)."""
    temperature: float = 1.0
    """Temperature of the answers; 1 is the model's own distribution."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    sampling_batch_size: int = 256
    """Answers sampled side by side; changes speed and memory, and no text up to rounding."""
    pair_by: PairingName = "best_worst"
    """Which pairs a prompt gives: its best answer with the worst, the best with a random worse one, all, or a random
    pair whose label is drawn from the Bradley-Terry model."""
    margin: float = 0.0
    """A pair's scores must differ by more than this; answers that tie never make a pair."""
    label_temperature: float = 1.0
    """Of bradley_terry: the better answer is chosen with probability σ(difference of scores / this)."""
    reference_follows: bool = False
    """Measure each round against the policy as it began the round; else the reference stays where the run began."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, a multiple of `steps`; None writes one after each round."""
    replay: float = 0.0
    """Share of a round's pairs that is drawn from earlier rounds, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check = _Check(self)
        for name in ("rounds", "prompts", "steps", "sampling_batch_size"):
            check(name, getattr(self, name) >= 1, "must be at least 1", "3 rounds of 16 steps are a start")
        check("answers", self.answers >= 2, "must be at least 2", "a pair needs two answers; 4 to 8 are usual")
        check("max_new_tokens", 1 <= self.max_new_tokens < self.max_length, "must be at least 1 and below max_length",
              "the prompt needs room too")  # fmt: skip
        check("temperature", 0 < self.temperature < math.inf, "must be positive and finite",
              "1 is the model's own; greedy answers are all the same")  # fmt: skip
        check("margin", 0 <= self.margin < math.inf, "must be finite and not negative", "0 leaves out ties alone")
        check("label_temperature", 0 < self.label_temperature < math.inf, "must be positive and finite",
              "1 is the Bradley-Terry model of the scores as they are")  # fmt: skip
        check("replay", 0 <= self.replay < 1, "is a share of the pairs and must lie in [0, 1)", "0 replays none")
        for name, allowed in (("sampler", SamplerName), ("pair_by", PairingName)):
            check(name, getattr(self, name) in allowed.__args__, "is not known",
                  f"choose one of {', '.join(allowed.__args__)}")  # fmt: skip
        check("prompts", self.sampler != "step" or self.prompts % self.steps == 0,
              f"must be a multiple of the {self.steps} steps where each step samples", "each gets as many")  # fmt: skip
        check("checkpoint_every", self.checkpoint_every is None or self.checkpoint_every % self.steps == 0,
              f"must be a multiple of the {self.steps} steps a round", "runs go on where a round begins")  # fmt: skip
        check("epochs", self.epochs == 1, "has no say here", "set rounds and steps")
        check("max_steps", self.max_steps is None, "has no say here", "set rounds and steps")
        check("loss", not self.is_unpaired, "must be a loss of pairs", "dpo is the usual one")
        check("sync_reference", self.sync_reference is None, "moves the reference by steps, here it moves by rounds",
              "set reference_follows")  # fmt: skip
        check("precision", self.precision != "float16", "must be one that answers are sampled in",
              "choose bfloat16 or float32")  # fmt: skip

    def by_sampling(self) -> RoundsConfig:
        """The same run with one sampling a round: online, every step is a round of its own."""
        every = self.checkpoint_every or self.steps
        if self.sampler != "step":
            return replace(self, checkpoint_every=every)
        return replace(self, rounds=self.rounds * self.steps, prompts=self.prompts // self.steps, steps=1,
                       sampler="round", checkpoint_every=every)  # fmt: skip
