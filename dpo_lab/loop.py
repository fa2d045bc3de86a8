"""One optimiser loop, told as a stream of events. Knows nothing about preferences.

What is learnt from is a `Work`: it says which examples make up a step, what their loss is, and how to evaluate. The
loop does the rest: learning rate, accumulation, clipping, the step, metrics, checkpoints, resuming.

Gradients are of the mean over the whole batch, however it is cut into passes and spread over processes: every pass
contributes the sum of its losses divided by the size of the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpo_lab.checkpoints import frozen_hash, load_checkpoint, save_checkpoint
from dpo_lab.compiling import compile_model
from dpo_lab.config import TrainingConfig
from dpo_lab.logprobs import Scorer, adopt_paths
from dpo_lab.lora import adapter_settings
from dpo_lab.models import disable_dropout, pick_device
from dpo_lab.processes import Processes, Shards, join, make_accelerator, plain
from dpo_lab.side_by_side import SideBySide, side_by_side


@dataclass(frozen=True)
class Step:
    """One optimiser step was taken. Metrics are means over its batch, before the step."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    seconds: float  # since this process started training


@dataclass(frozen=True)
class Evaluation:
    """The held-out data was scored after `step` steps."""

    step: int
    metrics: dict[str, float]  # names begin with eval_
    margins: tuple[float, ...] = ()  # implicit reward margin of every held-out pair, in the order of the data
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint stands complete on disk; training can go on from it."""

    step: int
    path: str


@dataclass(frozen=True)
class Finished:
    """The last event of a run. `is_complete` is False when it was asked to stop before its last step."""

    step: int
    num_steps: int
    is_complete: bool
    metrics: dict[str, float]  # the last value of each metric
    seconds: float


Event = Step | Evaluation | Checkpoint | Finished


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient is no longer a number."""


class Work(Protocol):
    """What the loop needs to know of what it learns from. Indices are those of the training data."""

    def epoch(self, epoch: int) -> Sequence[np.ndarray]:
        """The epoch's batches, one array of indices per optimiser step."""
        ...

    def passes(self, indices: np.ndarray) -> list[np.ndarray]:
        """A batch cut into runs that go through the model one at a time."""
        ...

    def halves(self, indices: np.ndarray) -> list[np.ndarray]:
        """A pass in two parts that can be worked on at once, or in one part where that would not pay."""
        ...

    def size(self, indices: np.ndarray) -> float:
        """What the mean of the loss is over: pairs, or tokens."""
        ...

    def loss(self, scorer: nn.Module, indices: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over a run, with gradient, and metrics summed over it, without."""
        ...

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        """Metrics on held-out data (without the eval_ prefix) and margins; empty where there is none."""
        ...

    def describe(self, indices: np.ndarray) -> str:
        """Name examples for an error message."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed: hashes of the data, the loss, the reference."""
        ...


def optimise(
    model: nn.Module,
    work: Work,
    config: TrainingConfig,
    *,
    scorer: nn.Module | None = None,
    checkpoints: Path | None = None,
    resume: Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Train `model` in place and tell what happens.

    scorer: the module whose forward pass `work.loss` calls; None is `Scorer(model)`, which gives log-probs per token.
    checkpoints: the folder for checkpoints; none are written without it.
    resume: a checkpoint to go on from. The events that follow are those of the uninterrupted run, bit for bit on CPU.
    stop: asked after every step; when it says True, a checkpoint is written and the stream ends.

    Of several processes each calls this with the same arguments and reads its stream to the end; all get the same
    events. The main one writes the checkpoints, which are those that one process would write.
    """
    if config.precision == "float16" and pick_device(config.device).type == "cpu":
        raise ValueError(
            "precision float16 needs a GPU, whose loss scaling it relies on; on a CPU use bfloat16 or float32"
        )
    if not config.dropout:
        disable_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    processes = join(pick_device(config.device))
    accelerator = make_accelerator(processes, scale_loss=config.precision == "float16")
    model.to(processes.device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no weight of the model requires a gradient; unfreeze some, or add an adapter")
    schedule = Schedule(work, config)
    identity = {"settings": schedule.settings(), **work.identity()}
    is_kept = checkpoints is not None or resume is not None
    if is_kept and (frozen := frozen_hash(model)):  # not in the checkpoints: what they are loaded into must have it
        identity |= {"frozen": frozen, "adapters": adapter_settings(model)}
    processes.check_same(schedule.settings() | work.identity())
    scorer = Scorer(model) if scorer is None else scorer
    shards = Shards(scorer, processes.device) if accelerator.is_fsdp2 else None
    trained = scorer if shards is None else shards.twin
    adopt_paths(scorer, trained)
    if config.compile:
        compile_model(trained)
    prepared, optimizer = accelerator.prepare(trained, make_optimizer(trained, config))
    if config.dropout:
        torch.manual_seed(config.seed + processes.index)
    step = 0
    if shards is not None:
        shards.optimizer = optimizer
    if resume is not None:
        step = load_checkpoint(resume, model, shards or optimizer, identity)
        if shards is not None:
            shards.scatter()
    # Both halves would draw from one random state, or recompute through hooks that know of one pass only.
    is_plain = processes.count == 1 and not (config.dropout or config.gradient_checkpointing)
    workers = side_by_side(model, processes.device, precision=config.precision) if is_plain else None
    loop = _Loop(
        model, prepared, optimizer, shards, accelerator, processes, workers, work, config, schedule, identity,
        checkpoints, stop, step,
    )  # fmt: skip
    return loop.events()


@dataclass
class _Loop:
    """What the stream of events carries from step to step."""

    model: nn.Module
    scorer: nn.Module  # the same model, as accelerate prepared it
    optimizer: Any
    shards: Shards | None  # where weights are split over processes, and `model` waits meanwhile
    accelerator: Accelerator
    processes: Processes
    workers: SideBySide | None  # on a CPU: two threads for the halves of a pass
    work: Work
    config: TrainingConfig
    schedule: Schedule
    identity: dict[str, Any]
    checkpoints: Path | None
    stop: Callable[[], bool] | None
    step: int  # optimiser steps taken

    def events(self) -> Iterator[Event]:
        with self.processes.listening():
            yield from self.train()

    def train(self) -> Iterator[Event]:
        config, num_steps = self.config, self.schedule.num_steps
        self.began, self.saved_at, self.is_stopped = time.perf_counter(), self.step, False
        self.tally, self.last = Tally(self.accelerator, self.work), {}
        if self.step == 0:
            yield from self.evaluate()
        while self.step < num_steps and not self.is_stopped:
            metrics = self.take_step()
            if is_due(config.log_every, self.step) or self.step == num_steps:
                self.last |= metrics
                yield Step(self.step, num_steps, metrics, self.seconds())
            if is_due(config.evaluate_every, self.step) and self.step < num_steps:
                yield from self.evaluate()
            if is_due(config.checkpoint_every, self.step):
                yield from self.save()
        is_complete = self.step == num_steps
        if is_complete:
            yield from self.evaluate()
        yield from self.save()
        if self.shards is not None:
            self.shards.gather()
        self.model.eval()
        yield Finished(self.step, num_steps, is_complete, dict(self.last), self.seconds())

    def take_step(self) -> dict[str, float]:
        """Forward, loss, backward, clip, step. The metrics, or nothing where nobody is to look at them."""
        indices, epoch = self.schedule.batch(self.step)
        learning_rate = self.schedule.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.scorer.train()

        passes = self.processes.passes(self.work.passes, indices)
        size = self.work.size(indices)
        for i, (part, counts) in enumerate(passes):
            # Whole gradients are added up over the processes at the last pass; split ones at each, to stay small.
            joins = self.shards is not None or i == len(passes) - 1
            with nullcontext() if joins else self.accelerator.no_sync(self.scorer):
                weight = counts * self.processes.count / size  # over processes the mean of gradients is taken
                for sums in self.learn(part, weight, is_whole_batch=len(passes) == 1):
                    self.tally.add(sums if counts else {name: 0 * value for name, value in sums.items()})
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), self.config.max_grad_norm or math.inf)
        self.tally.close_step(self.step + 1, indices, size, plain(torch.as_tensor(norm)))

        metrics: dict[str, float] = {}
        self.is_stopped = self.processes.any(self.stop is not None and self.stop())
        if self.is_looked_at(self.step + 1):  # waits for the device; raises before broken weights are kept
            metrics = self.tally.read() | {"learning_rate": learning_rate, "epoch": epoch}
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return metrics

    def learn(self, part: np.ndarray, weight: float, *, is_whole_batch: bool) -> list[dict[str, Tensor]]:
        """Forward, loss and backward of a pass; one that is a whole batch as two halves side by side, where that pays.
        The sums of its metrics, once or per half."""

        def forward_and_backward(indices: np.ndarray) -> dict[str, Tensor]:
            loss, sums = self.work.loss(self.scorer, indices, self.processes.device)
            self.accelerator.backward(loss * weight)
            return sums

        if self.workers is None or not is_whole_batch:  # of several passes' gradients the order of adding would matter
            return [forward_and_backward(part)]
        return self.workers.map(forward_and_backward, self.work.halves(part))

    def is_looked_at(self, step: int) -> bool:
        config = self.config
        dues = (config.log_every, config.checkpoint_every, config.evaluate_every, self.schedule.num_steps)
        return self.is_stopped or any(is_due(every, step) for every in dues)

    def evaluate(self) -> Iterator[Evaluation]:
        with self.whole_weights():
            metrics, margins = self.work.evaluate(self.model)
        if metrics:
            named = {f"eval_{name}": value for name, value in metrics.items()}
            self.last |= named
            yield Evaluation(self.step, named, margins, self.seconds())

    def save(self) -> Iterator[Checkpoint]:
        if self.checkpoints is None or self.saved_at == self.step:
            return
        self.saved_at = self.step
        folder, keep, optimizer = self.checkpoints, self.config.keep_checkpoints, self.shards or self.optimizer
        with self.whole_weights():
            if self.shards is not None:
                self.shards.collect_state()
            path = self.processes.from_main(
                lambda: save_checkpoint(folder, self.step, self.model, optimizer, self.identity, keep=keep)
            )
        yield Checkpoint(self.step, str(path))

    def whole_weights(self) -> AbstractContextManager[None]:
        """While it is entered, `model` holds the weights as they are now."""
        return nullcontext() if self.shards is None else self.shards.gathered()

    def seconds(self) -> float:
        return time.perf_counter() - self.began


def is_due(every: int | None, step: int) -> bool:
    """Whether something that happens every `every` steps happens after `step` steps."""
    return every is not None and step % every == 0


class Schedule:
    """Which batch and which learning rate belong to a step: functions of the step alone, so resuming needs no state."""

    def __init__(self, work: Work, config: TrainingConfig) -> None:
        self.work, self.config = work, config
        self._epoch, self._batches = 0, work.epoch(0)
        if not len(self._batches):
            raise ValueError("there is nothing to train on: the training data is empty")
        self.steps_per_epoch = len(self._batches)
        num_steps = math.ceil(config.epochs * self.steps_per_epoch - 1e-9)
        self.num_steps = max(1, num_steps if config.max_steps is None else min(num_steps, config.max_steps))
        self.num_warmup = min(round(config.warmup * self.num_steps), self.num_steps - 1)

    def batch(self, step: int) -> tuple[np.ndarray, float]:
        """The indices of step `step` (counted from 0), and the epoch reached after it."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self.work.epoch(epoch)
        return self._batches[position], (step + 1) / self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Rises linearly over the warm-up, then falls to zero along a line or half a cosine, or stays."""
        if step < self.num_warmup:
            return self.config.learning_rate * (step + 1) / (self.num_warmup + 1)
        share_left = 1 - (step - self.num_warmup) / max(1, self.num_steps - self.num_warmup)
        match self.config.schedule:
            case "constant":
                factor = 1.0
            case "linear":
                factor = share_left
            case "cosine":
                factor = 0.5 * (1 + math.cos(math.pi * (1 - share_left)))
        return self.config.learning_rate * factor

    def settings(self) -> dict[str, Any]:
        """Every setting that decides the numbers; not when to look or how numbers are rounded."""
        watching = {"log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "device", "compile"}
        return {name: value for name, value in vars(self.config).items() if name not in watching}


class Tally:
    """Metrics of the step in hand, and the losses not yet looked at: all stay on the device until someone asks."""

    def __init__(self, accelerator: Accelerator, work: Work) -> None:
        self.accelerator, self.work = accelerator, work
        self.sums: dict[str, Tensor] = {}
        self.unseen: list[tuple[int, np.ndarray, Tensor, Tensor]] = []  # step, its examples, loss, gradient norm

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add one pass's sums to the step."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def close_step(self, step: int, indices: np.ndarray, size: float, norm: Tensor) -> None:
        """The step's passes are through: turn sums into means over its whole batch."""
        self.names = list(self.sums)
        self.means = torch.stack([self.sums[name].double() for name in self.names]) / size
        self.norm = norm.detach().double()
        self.unseen.append((step, indices, self.means[self.names.index("loss")], self.norm))
        self.sums = {}

    def read(self) -> dict[str, float]:
        """The step's metrics over all processes; waits for the device. Raises TrainingDiverged."""
        own = torch.cat([self.means, torch.stack([loss for _, _, loss, _ in self.unseen])])
        every: Tensor = self.accelerator.reduce(own, "sum")  # pyright: ignore[reportAssignmentType]
        means, losses = every[: len(self.names)], every[len(self.names) :]
        for (step, indices, _, norm), loss in zip(self.unseen, losses, strict=True):
            is_scaled = self.accelerator.scaler is not None  # float16 skips a step whose gradient overflows
            if not math.isfinite(float(loss)) or not (math.isfinite(float(norm)) or is_scaled):
                raise TrainingDiverged(
                    f"step {step}: the loss is {float(loss):.4g} and the gradient norm {float(norm):.4g}, on "
                    f"{self.work.describe(indices)}. The last checkpoint is from before this step. "
                    "Try a lower learning rate, a longer warm-up or precision float32, and look at those rows"
                )
        self.unseen = []
        return dict(zip(self.names, means.tolist(), strict=True)) | {"grad_norm": float(self.norm)}


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The named update rule. Weight decay is for matrices only."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr, betas, eps = config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=config.adam_beta1)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=lr, alpha=config.adam_beta2, eps=eps, momentum=config.adam_beta1)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=lr)
