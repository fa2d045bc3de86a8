"""One optimiser loop, as a stream of events. Knows nothing about preferences.

What is learnt from is an `Objective`: it says which examples make up a step, what their loss is, and how to evaluate.
The loop does the rest: learning rate, accumulation, clipping, the step, metrics, checkpoints, resuming. How passes run
(devices, processes, threads) is the `Engine`'s.

Gradients are of the mean over the whole batch, however it is cut into passes and spread over processes: every pass
contributes the sum of its losses divided by the size of the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.config import TrainingConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import Scorer
from dpo_lab.models.lora import adapter_settings
from dpo_lab.storage.checkpoints import frozen_hash


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
    """The last event of a run. `is_complete` is False when it was stopped before its last step."""

    step: int
    num_steps: int
    is_complete: bool
    metrics: dict[str, float]  # the last value of each metric
    seconds: float


Event = Step | Evaluation | Checkpoint | Finished


class TrainingDiverged(ArithmeticError):
    """The loss, the gradient or a weight is no longer a number."""


class Objective(Protocol):
    """What the loop needs to know of what it learns from."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that each row brings to a pass, by which batches are cut. (N,)"""
        ...

    def epoch(self, epoch: int) -> Sequence[np.ndarray]:
        """The epoch's batches, one array of examples per optimiser step."""
        ...

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        """The rows that a step on these examples learns from, and how many pairs (or tokens) its mean is over.

        For DPO both are plain; PPO samples its answers here.
        """
        ...

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over some rows, with gradient, and metrics summed over them, without."""
        ...

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        """Metrics on held-out data (without the eval_ prefix) and margins; empty where there is none."""
        ...

    def describe(self, examples: np.ndarray) -> str:
        """Name examples for an error message."""
        ...

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed, beside the settings: hashes of the data and the reference."""
        ...


def optimise(
    model: nn.Module, objective: Objective, engine: Engine, config: TrainingConfig,
    *, scorer: nn.Module | None = None, checkpoints: str | Path | None = None, resume: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:  # fmt: skip
    """Train `model` in place and yield what happens.

    scorer: the module whose forward pass `objective.loss` calls; None is `Scorer(model)`, which gives log-probs per
        token.
    checkpoints: the folder for checkpoints; none are written without it.
    resume: a checkpoint to go on from. The events that follow are those of the uninterrupted run, bit for bit on CPU.
    stop: called after every step; when it says True, a checkpoint is written and the stream ends.

    Of several processes each calls this with the same arguments and reads its stream to the end; all get the same
    events. The main one writes the checkpoints, which are those that one process would write.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("no weight of the model requires a gradient; unfreeze some, or add an adapter")
    schedule = Schedule(objective, config)
    settings = deciding_settings(config)
    identity = {"settings": settings, **objective.identity()}
    engine.processes.check_same(settings | objective.identity())
    needs_identity = checkpoints is not None or resume is not None
    if needs_identity and (frozen := frozen_hash(model)):  # not in the checkpoints: whoever loads them must have it
        identity |= {"frozen": frozen, "adapters": adapter_settings(model)}
    engine.prepare(model, Scorer(model, config.precision) if scorer is None else scorer, config, make_optimizer)
    step = 0 if resume is None else engine.load(Path(resume), identity)
    folder = None if checkpoints is None else Path(checkpoints)
    return _Loop(objective, engine, config, schedule, identity, folder, stop, step).events()


@dataclass
class _Loop:
    """What the stream of events carries from step to step."""

    objective: Objective
    engine: Engine
    config: TrainingConfig
    schedule: Schedule
    identity: dict[str, Any]
    checkpoints: Path | None
    stop: Callable[[], bool] | None
    step: int  # optimiser steps taken

    def events(self) -> Iterator[Event]:
        num_steps = self.schedule.num_steps
        self.began, self.saved_at, self.is_stopped = time.perf_counter(), self.step, False
        self.last_saved = time.monotonic()
        self.step_metrics = StepMetrics(self.engine, self.objective)
        self.last: dict[str, float] = {}  # the last value of each metric
        with self.engine.processes.explain_lost_peer():
            if self.step == 0:  # a resumed run has it already
                yield from self.evaluate()
            while self.step < num_steps and not self.is_stopped:
                plan = self.schedule.plan(self.step)
                metrics = self.take_step(plan)
                if plan.is_logged:
                    self.last |= metrics
                    yield Step(self.step, num_steps, metrics, time.perf_counter() - self.began)
                if plan.is_evaluated:
                    yield from self.evaluate()
                if plan.is_saved or self.is_save_due:  # after the evaluation: a resumed run does not evaluate again
                    self.check_weights()
                    yield from self.save()
            is_complete = self.step == num_steps
            self.check_weights()
            if is_complete:
                yield from self.evaluate()
            yield from self.save()
            self.engine.finish()
        yield Finished(self.step, num_steps, is_complete, self.last, time.perf_counter() - self.began)

    def take_step(self, plan: Plan) -> dict[str, float]:
        """For each pass the loss and its gradient; then clip, step, and the metrics where somebody looks at them."""
        engine, optimizer = self.engine, self.engine.optimizer
        for group in optimizer.param_groups:  # set, not scheduled by an object of torch's: a resumed run needs no state
            group["lr"] = plan.learning_rate
        engine.scorer.train()  # models are loaded for evaluation; dropout is off all the same, unless wanted

        rows, size = self.objective.begin_step(plan.examples)
        totals: dict[str, Tensor] = {}
        for parts, weight in engine.passes(rows, self.objective.lengths):
            for sums in engine.map(partial(self.forward_backward, weight / size), parts):
                for name, value in sums.items():
                    # With weight 0 a process only keeps the others company; its rows are counted elsewhere.
                    totals[name] = totals.get(name, 0) + (value if weight else 0 * value)
        self.step_metrics.add(self.step + 1, plan.examples, totals, size, norm=engine.clip())

        # Of several processes one alone may know of the stop, and their clocks differ; all must do the same.
        self.is_stopped = engine.processes.any_process(self.stop is not None and self.stop())
        age, limit = time.monotonic() - self.last_saved, 60 * self.config.checkpoint_minutes
        # Who learns from rounds of its own answers goes on only where one begins.
        can_save = self.checkpoints is not None and getattr(self.objective, "is_spent", True)
        self.is_save_due = engine.processes.any_process(can_save and 0 < limit <= age)
        metrics: dict[str, float] = {}
        if plan.metrics_due or self.is_stopped or self.is_save_due:
            # Only here the device is waited for; before the step, so that no broken weights are logged or saved.
            metrics = self.step_metrics.read() | {"learning_rate": plan.learning_rate, "epoch": plan.epoch}
        optimizer.step()
        optimizer.zero_grad()
        self.step += 1
        return metrics

    def forward_backward(self, scale: float, rows: np.ndarray) -> dict[str, Tensor]:
        """Forward, loss, backward of some rows; the sums of their metrics. Gradients add up until the step."""
        loss, sums = self.objective.loss(self.engine.scorer, rows, self.engine.device)
        # A sum over the batch's size, not a mean over the pass: passes may hold different numbers of pairs.
        self.engine.backward(loss * scale)
        return sums

    def evaluate(self) -> Iterator[Evaluation]:
        with self.engine.whole_weights():
            metrics, margins = self.objective.evaluate(self.engine.model)
        if metrics:
            named = {f"eval_{name}": value for name, value in metrics.items()}
            self.last |= named
            yield Evaluation(self.step, named, margins, time.perf_counter() - self.began)

    def save(self) -> Iterator[Checkpoint]:
        if self.checkpoints is not None and self.saved_at != self.step:
            self.saved_at = self.step  # the last step may be due, and the end of the run comes after it
            self.last_saved = time.monotonic()
            yield Checkpoint(self.step, self.engine.save(self.checkpoints, self.step, self.identity))

    def check_weights(self) -> None:
        """The last step is followed by no loss that would show what it broke."""
        with self.engine.whole_weights():
            if not all(bool(weight.isfinite().all()) for weight in self.engine.model.parameters()):
                raise TrainingDiverged(
                    f"weights are no longer numbers after step {self.step}; lower learning_rate "
                    f"({self.config.learning_rate:g}), or begin from other weights"
                )


class Plan(NamedTuple):
    """What belongs to a step: its examples, its learning rate, and what follows it."""

    examples: np.ndarray
    epoch: float  # reached after the step
    learning_rate: float
    is_logged: bool
    is_evaluated: bool
    is_saved: bool
    metrics_due: bool
    """One of these follows: the metrics are read, which also refuses a loss that is no number before it is saved."""


class Schedule:
    """Which batch and which learning rate belong to a step: functions of the step alone, so resuming needs no state."""

    def __init__(self, objective: Objective, config: TrainingConfig) -> None:
        self.objective, self.config = objective, config
        self._epoch, self._batches = 0, objective.epoch(0)
        if not len(self._batches):
            raise ValueError("there is nothing to train on: the training data is empty")
        self.steps_per_epoch = len(self._batches)
        self.num_steps = num_steps(config, self.steps_per_epoch)
        self.num_warmup = min(round(config.warmup * self.num_steps), self.num_steps - 1)

    def plan(self, step: int) -> Plan:
        """Of step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:  # an order is drawn once an epoch, and anew after resuming
            self._epoch, self._batches = epoch, self.objective.epoch(epoch)
        config, after, is_last = self.config, step + 1, step + 1 == self.num_steps
        # The rate rises linearly over the warm-up, then falls to zero along a line or half a cosine, or stays.
        share_left = 1 - (step - self.num_warmup) / (self.num_steps - self.num_warmup)
        rate = config.learning_rate
        if step < self.num_warmup:
            rate = rate * after / (self.num_warmup + 1)
        elif config.schedule == "linear":
            rate *= share_left
        elif config.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * (1 - share_left)))
        log, evaluate, save = (
            every is not None and after % every == 0
            for every in (config.log_every, config.evaluate_every, config.checkpoint_every)
        )
        return Plan(
            self._batches[position], after / self.steps_per_epoch, rate,
            is_logged=log or is_last, is_evaluated=evaluate and not is_last, is_saved=save,
            metrics_due=log or evaluate or save or is_last,
        )  # fmt: skip


def deciding_settings(config: TrainingConfig) -> dict[str, Any]:
    """Every setting that decides the numbers; not when to look or how numbers are rounded. `score_turns` decides the
    tokens, which an identity has by their content."""
    others = {"log_every", "evaluate_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints"}
    others |= {"device", "compile", "score_turns"}
    return {name: value for name, value in vars(config).items() if name not in others}


def num_steps(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of a run; the last epoch may be a fraction."""
    steps = max(1, math.ceil(config.epochs * steps_per_epoch - 1e-9))
    return steps if config.max_steps is None else min(steps, config.max_steps)


class StepMetrics:
    """Metrics of the last step, and the losses that nobody has looked at: all stay on the device until `read`."""

    def __init__(self, engine: Engine, objective: Objective) -> None:
        self.engine, self.objective = engine, objective
        self.unseen: list[tuple[int, np.ndarray, Tensor, Tensor]] = []  # step, its examples, loss, gradient norm

    def add(self, step: int, examples: np.ndarray, totals: dict[str, Tensor], size: float, norm: Tensor) -> None:
        """A step's passes are through: turn sums into means over its whole batch."""
        self.names = list(totals)
        # In double precision: sums of many float32 rewards would lose digits that a curve shows.
        self.means = torch.stack([total.double() for total in totals.values()]) / size
        self.unseen.append((step, examples, self.means[self.names.index("loss")], norm.detach().double()))

    def read(self) -> dict[str, float]:
        """The last step's metrics over all processes; waits for the device. Raises TrainingDiverged."""
        # One message for all of it: each process has the means of its own share, over the size of the whole batch.
        own = torch.cat([self.means, torch.stack([loss for _, _, loss, _ in self.unseen])])
        every: Tensor = self.engine.accelerator.reduce(own, "sum")  # pyright: ignore[reportAssignmentType]
        means, losses = every[: len(self.names)], every[len(self.names) :]
        is_scaled = self.engine.accelerator.scaler is not None  # float16 skips a step whose gradient overflows
        for (step, examples, _, norm), loss in zip(self.unseen, losses, strict=True):
            if not math.isfinite(float(loss)) or not (math.isfinite(float(norm)) or is_scaled):
                raise TrainingDiverged(
                    f"step {step}: the loss is {float(loss):.4g} and the gradient norm {float(norm):.4g}, on "
                    f"{self.objective.describe(examples)}. The last checkpoint is from before this step. "
                    "Try a lower learning rate, a longer warm-up or precision float32, and look at those rows"
                )
        norm = float(self.unseen[-1][3])
        self.unseen = []
        return dict(zip(self.names, means.tolist(), strict=True)) | {"grad_norm": norm}


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The named update rule. Weight decay is for matrices only: norms and biases have no reason to be small."""
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
