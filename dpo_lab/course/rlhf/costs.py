"""What a training costs, counted where it happens: a hook on every model that takes part, whatever the method.

Tokens, not seconds, so that methods can be compared across machines. Padding counts, for it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import nn

from dpo_lab.course.rlhf.reward_model import RewardModel
from dpo_lab.models.inside import inner_model


class Meter:
    """Counts calls and tokens of some models while it is entered.

        with Meter(policy, reference) as meter:
            for event in train_dpo(policy, tokenizer, pairs, reference=reference): ...
        meter.counts()

    Hand over models, adapters or reward models; one that is given twice is one model in memory.
    """

    def __init__(self, *models: nn.Module) -> None:
        inner = [inner_model(model.backbone if isinstance(model, RewardModel) else model) for model in models]
        distinct = {id(model): model for model in inner}
        self.models, self.is_paused = len(distinct), False
        self.sampled_answers = self.judged_answers = 0
        self.generated_tokens = self.forward_passes = self.forward_tokens = self.trained_tokens = 0
        self._counting = Lock()  # the halves of a pass go through a model at once
        self._watched, self._handles = [model.base_model for model in distinct.values()], []

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.is_paused:
            return
        tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        with self._counting:
            self.forward_passes += 1
            if torch.is_grad_enabled():
                self.trained_tokens += tokens.numel()
            else:
                self.forward_tokens += tokens.numel()

    def count_rollout(self, num_tokens: int, num_answers: int) -> None:
        """Answers were sampled to be learnt from, and each is judged."""
        self.generated_tokens += num_tokens
        self.sampled_answers += num_answers
        self.judged_answers += num_answers

    def counts(self) -> dict[str, float]:
        """The counts so far, as metrics.

        cost/models: models in memory. cost/sampled_answers, cost/judged_answers: answers that were sampled, and whose
        reward was computed, to learn from. cost/generated_tokens: tokens of sampled answers. cost/forward_passes: calls
        of a model; sampling takes one per token, a pass in two halves (`side_by_side`) two. cost/forward_tokens: tokens
        that went through a model without a gradient, sampling included. cost/trained_tokens: tokens that went forward
        and back.
        """
        names = ("models", "sampled_answers", "judged_answers", "generated_tokens", "forward_passes", "forward_tokens",
                 "trained_tokens")  # fmt: skip
        return {f"cost/{name}": float(getattr(self, name)) for name in names}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts inside: looking at held-out prompts is no cost of training."""
        was_paused, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = was_paused

    def __enter__(self) -> Meter:
        self._handles = [model.register_forward_hook(self._count, with_kwargs=True) for model in self._watched]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
