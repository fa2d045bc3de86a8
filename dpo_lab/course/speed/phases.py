"""DPO steps with a clock at every border. The steps are those of `train_dpo`: same batches, rates and losses; passes
are whole, where `train_dpo` on a CPU works on two halves at once.

On a GPU a border between phases waits for the device, which costs time of its own; `by_phase=False` waits once per
step, as a run that logs every step does, and is what speeds are taken from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, split_passes
from dpo_lab.config import DPOConfig
from dpo_lab.course.speed.rates import wait
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import Scorer, usable_layout
from dpo_lab.loop import Schedule, make_optimizer
from dpo_lab.losses.table import loss_of
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.training import DPOObjective

PHASES = ("batch", "forward", "loss", "backward", "clip", "step")


@dataclass(frozen=True)
class TimedStep:
    """One optimiser step: what it took and what it did."""

    seconds: dict[str, float]  # per phase; all in "step" where phases were not timed
    loss: float  # mean over its pairs, before the step
    pairs: int
    tokens: int  # that went through the model, padding included

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


def timed_steps(
    model: nn.Module,
    data: TokenData,
    reference: np.ndarray,
    config: DPOConfig,
    *,
    by_phase: bool = True,
    watch: Callable[[str, torch.optim.Optimizer], None] | None = None,
) -> Iterator[TimedStep]:
    """Train `model` (in place, where it lies) on pairs, and yield what every step took.

    reference: the reference's log-probs, (N, 2), as `logprobs.score` gives them.
    watch: called with the name of each phase as it begins, and the optimiser; its time is not counted.
    """
    if config.precision == "float16":
        raise ValueError("precision float16 needs the loss scaling of train_dpo; time bfloat16 or float32 here")
    _, pair_loss, beta = loss_of(config)
    layout = usable_layout(model, config.layout, data)
    engine = Engine(next(model.parameters()).device)
    engine.place(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    objective = DPOObjective(data, None, config, layout, engine, pair_loss, beta, reference, reference)
    return _steps(model, objective, Schedule(objective, config), config, by_phase, watch)


def _steps(
    model: nn.Module, objective: DPOObjective, schedule: Schedule, config: DPOConfig, by_phase: bool,
    watch: Callable[[str, torch.optim.Optimizer], None] | None,
) -> Iterator[TimedStep]:  # fmt: skip
    device = next(model.parameters()).device
    scorer, optimizer = Scorer(model, config.precision).train(), make_optimizer(model, config)
    clock = _Clock(device, by_phase, None if watch is None else lambda phase: watch(phase, optimizer))
    tokens = 0

    def timed(batch: Batch) -> Tensor:
        nonlocal tokens
        tokens += batch.num_tokens
        clock.begin("forward")
        logps = scorer(batch)
        clock.begin("loss")
        return logps

    for step in range(schedule.num_steps):
        plan = schedule.plan(step)
        rows, size = objective.begin_step(plan.examples)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate
        clock.start()
        losses, tokens = [], 0
        for part in split_passes(
            rows, objective.lengths, tokens_per_pass=config.tokens_per_pass, micro_batch_size=config.micro_batch_size
        ):
            clock.begin("batch")
            loss, _ = objective.loss(timed, part, device)  # pyright: ignore[reportArgumentType]
            clock.begin("backward")
            (loss / size).backward()
            losses.append(loss.detach())
            del loss  # nothing of one pass is held through the next
        clock.begin("clip")
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        clock.begin("step")
        optimizer.step()
        optimizer.zero_grad()
        seconds = clock.stop()
        yield TimedStep(seconds, float(torch.stack(losses).sum()) / len(rows), len(rows), tokens)


def summary(steps: Sequence[TimedStep], *, skip: int = 1) -> dict[str, Any]:
    """Of the steps after the first `skip`, which warm up: median seconds of each phase and of a step, pairs and tokens
    per second, tokens per pair (padding included)."""
    counted = steps[skip:]
    if not counted:
        raise ValueError(f"there are {len(steps)} steps and {skip} are for warming up; time more of them")
    phases = {phase: median(step.seconds.get(phase, 0.0) for step in counted) for phase in PHASES}
    total = sum(step.total for step in counted)
    return {
        "phases": phases,
        "seconds": median(step.total for step in counted),
        "pairs_per_second": sum(step.pairs for step in counted) / total,
        "tokens_per_second": sum(step.tokens for step in counted) / total,
        "tokens_per_pair": sum(step.tokens for step in counted) / sum(step.pairs for step in counted),
    }


class _Clock:
    """Adds up the seconds of each phase."""

    def __init__(self, device: torch.device, by_phase: bool, watch: Callable[[str], None] | None) -> None:
        self.device, self.by_phase, self.watch = device, by_phase, watch

    def start(self) -> None:
        wait(self.device)
        self.seconds: dict[str, float] = {}
        self.phase, self.began = "batch", time.perf_counter()

    def begin(self, phase: str) -> None:
        if self.by_phase:
            self._close()
        self.phase = phase if self.by_phase else "step"
        if self.watch is not None:
            paused = time.perf_counter()
            self.watch(phase)
            self.began += time.perf_counter() - paused  # looking is not part of the work
        if self.by_phase:
            self.began = time.perf_counter()

    def stop(self) -> dict[str, float]:
        self._close()
        return self.seconds

    def _close(self) -> None:
        wait(self.device)
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + time.perf_counter() - self.began
