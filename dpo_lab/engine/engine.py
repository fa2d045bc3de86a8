"""The one door to this folder: all that a training needs to know of devices, processes, threads, shards, compiling.

`train_dpo` opens an `Engine` once and hands it on: the reference is scored with it, and the loop steps with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import split_passes
from dpo_lab.config import TrainingConfig
from dpo_lab.engine.processes import ALONE, Processes, join, make_accelerator
from dpo_lab.engine.two_halves import halves, share_a_heap, two_threads
from dpo_lab.models.inside import disable_dropout, pick_device
from dpo_lab.storage.checkpoints import load_checkpoint, save_checkpoint

Sums = dict[str, Tensor]
"""Metrics of a pass, summed over its rows."""


@dataclass
class Engine:
    """Where passes through a model run, and how many at once. `prepare` adds what an optimiser step needs."""

    device: torch.device
    processes: Processes = ALONE

    @classmethod
    def open(cls, model: nn.Module, config: TrainingConfig) -> Engine:
        """Meet the other processes that were launched, and make `model` ready to be scored and trained."""
        device = pick_device(config.device)
        if config.precision == "float16" and device.type == "cpu":
            raise ValueError(
                "precision float16 needs a GPU, whose loss scaling it relies on; on a CPU use bfloat16 or float32"
            )
        processes = join(device)
        engine = cls(processes.device, processes)
        engine.place(model, config)
        return engine

    def place(self, model: nn.Module, config: TrainingConfig) -> None:
        """Move a model to the device. A reference is made ready as the policy is, so that at the start they agree."""
        model.to(self.device)
        if not config.dropout:
            disable_dropout(model)
        if config.compile:
            _compile(model)

    # ── a training ───────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(
        self,
        model: nn.Module,
        scorer: nn.Module,
        config: TrainingConfig,
        make_optimizer: Callable[[nn.Module, TrainingConfig], torch.optim.Optimizer],
    ) -> None:
        """Give every process its part of a training.

        scorer: `model`, or a module that holds it; its forward pass is trained.

        Then `scorer` and `optimizer` are what steps on, `backward` adds a loss's gradient, `clip` clips it whole and
        returns the norm that it had, and `map` applies a function to the parts of a pass, at once where that pays.
        """
        self.model, self.config = model, config
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
        self.accelerator = make_accelerator(self.processes, scale_loss=config.precision == "float16")
        self.shards = None
        if self.accelerator.is_fsdp2:
            from dpo_lab.engine.shards import Shards

            self.shards = Shards(scorer, self.device)
            scorer = self.shards.twin
            if config.compile:  # a copy is not compiled, whatever it was copied from
                _compile(scorer)
        self.scorer, self.optimizer = self.accelerator.prepare(scorer, make_optimizer(scorer, config))
        if self.shards is not None:
            self.shards.optimizer = self.optimizer
        if config.dropout:
            torch.manual_seed(config.seed + self.processes.index)
        self.backward: Callable[[Tensor], None] = self.accelerator.backward
        # Of locals, not of `self`: in a circle the model's gradients would stay in memory after the training.
        accelerator, scorer, shards = self.accelerator, self.scorer, self.shards
        max_norm = config.max_grad_norm or math.inf  # the norm is reported in any case
        clip: Callable[[], Any] = lambda: accelerator.clip_grad_norm_(scorer.parameters(), max_norm)
        self.clip: Callable[[], Tensor] = clip if shards is None else lambda: shards.full_tensor(clip())
        # Both halves would draw from one random state, or recompute through hooks that know of one pass only.
        is_plain = self.processes.count == 1 and not (config.dropout or config.gradient_checkpointing)
        threads = two_threads(model, self.device) if is_plain else None
        if self.device.type == "cpu":
            share_a_heap()
        self.is_halved = threads is not None
        self.map: Callable[[Callable[[np.ndarray], Sums], list[np.ndarray]], Iterable[Sums]] = (
            map if threads is None else threads.map
        )

    def passes(self, rows: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[list[np.ndarray], float]]:
        """A batch cut into what goes through the model at a time: parts that `map` works on at once, and their weight.

        lengths: tokens of every row of the data. Of several processes each takes every n-th row, and all make the same
        number of passes, since those that share weights or gradients meet in each: one that has fewer repeats the
        batch's first row, with weight 0. The weight of all others is the number of processes, for gradients are
        averaged over these.
        """
        config, count = self.config, self.processes.count
        shares = [
            split_passes(
                rows[start::count], lengths,
                tokens_per_pass=config.tokens_per_pass, micro_batch_size=config.micro_batch_size,
            )
            for start in range(count)
        ]  # fmt: skip
        own, num_passes = shares[self.processes.index], max(map(len, shares))
        if self.is_halved and num_passes == 1:  # of several passes' gradients the order of adding would matter
            yield halves(own[0], lengths), 1.0
            return
        for i in range(num_passes):
            # Whole gradients are added up over the processes at the last pass; split ones at each, to stay small.
            joins = self.shards is not None or i == num_passes - 1
            with nullcontext() if joins else self.accelerator.no_sync(self.scorer):
                yield ([own[i]], float(count)) if i < len(own) else ([rows[:1]], 0.0)

    # ── its weights, whole ───────────────────────────────────────────────────────────────────────────────────────

    def whole_weights(self) -> AbstractContextManager[None]:
        """While it is entered, the model holds the weights as they are now."""
        return nullcontext() if self.shards is None else self.shards.gathered()

    def save(self, folder: Path, step: int, identity: dict[str, Any]) -> str:
        """Write a checkpoint, which is the one that a single process would write; returns its path."""
        with self.whole_weights():
            if self.shards is not None:
                self.shards.collect_state()
            optimizer, keep = self.shards or self.optimizer, self.config.keep_checkpoints
            return self.processes.broadcast_from_main(
                lambda: str(save_checkpoint(folder, step, self.model, optimizer, identity, keep=keep))
            )

    def load(self, path: Path, identity: dict[str, Any]) -> int:
        """Go on from a checkpoint; returns its step."""
        step = load_checkpoint(path, self.model, self.shards or self.optimizer, identity)
        if self.shards is not None:
            self.shards.scatter()
        return step

    def finish(self) -> None:
        """Leave the trained weights in the model, whole and on its device."""
        if self.shards is not None:
            self.shards.gather()
        self.model.eval()
        share_a_heap(keep=False)


def _compile(module: nn.Module) -> None:
    from dpo_lab.engine.compiling import compile_model  # loaded where it is wanted: most runs compile nothing

    compile_model(module)
