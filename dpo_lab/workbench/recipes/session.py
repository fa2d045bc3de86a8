"""From a recipe to a run folder, told as a stream that can be stopped at any moment.

Whenever it is stopped, the run is usable: the model as it stands is saved, curves and report are written, and what was
measured is on the disk already, for each line is written as it comes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch

from dpo_lab.loop import Evaluation, Event, Finished, Step
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import inner_model
from dpo_lab.models.loading import load_policy, save_policy
from dpo_lab.models.lora import adapted, has_adapter, save_adapter
from dpo_lab.preferences.token_cache import prepare
from dpo_lab.reference import ReferenceCache
from dpo_lab.storage.logp_store import token_cache_folder
from dpo_lab.training import train_dpo
from dpo_lab.workbench.recipes.answers import answer_rows, sample_rows, true_reward
from dpo_lab.workbench.recipes.recipe import Recipe
from dpo_lab.workbench.runs.run import CONFIG, METRICS, Run

GRACE = 1.0
"""Seconds that a step in hand is given when the run shall stop; a longer one is broken off between two passes."""

Score = Callable[[Mapping[str, Any], str], float | None]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """Everything is loaded and training begins."""

    num_pairs: int
    num_held_out: int
    num_scored: int  # pairs that the reference had to be run on
    prompts: tuple[str, ...]  # those that are answered on the way
    notes: tuple[str, ...]  # what was left out or shortened, in words


@dataclass(frozen=True)
class Answers:
    """What the model says after `step` steps, to the prompts of `Prepared`."""

    step: int
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]  # true rewards; None where nobody knows


class Stopped(Exception):
    """The run was asked to stop and something long was broken off."""


def carry_out(
    recipe: Recipe,
    folder: str | Path,
    *,
    stop: Flag | None = None,
    tell: Tell | None = None,
    score: Score | None = true_reward,
    cache: str | Path | None = None,
) -> Iterator[Event | Prepared | Answers]:
    """Train as the recipe says and keep the run in `folder`, new or empty.

    Yields `Prepared`, then the events of `train_dpo`, and `Answers` after each evaluation. When `Finished` comes the
    model is saved; the report is written after it. The numbers are those that
    `command_line(recipe)` gives, bit for bit on CPU: watching changes nothing.

    stop: when it is set, the stream ends soon, with a `Finished` that is not complete. A run that has not begun to
        train leaves no folder.
    tell: called with (what is done, how much of it, how much there is) where that takes a while.
    score: the true reward of an answer to a row, or None where it is not known. The mean over the sampled prompts
        stands in the record as eval_true_reward.
    cache: file or folder of the reference's log-probs; None takes the usual one. What is found there, or beside it of
        the data's token ids, is not made again.
    """
    loss_of(recipe.config)  # a knob that the loss lacks is told before anything is made
    run = Run.create(folder, {"command": "train", "settings": recipe.settings})
    return _Session(recipe, run, stop or Flag(), tell or (lambda *_: None), score, cache).events()


class _Session:
    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        stop: Flag,
        tell: Tell,
        score: Score | None,
        cache: str | Path | None,
    ) -> None:
        self.recipe, self.run, self.stop, self.tell, self.score, self.cache = recipe, run, stop, tell, score, cache
        self.rows: list[dict[str, Any]] = []  # those whose prompts are answered
        self.answers: list[Answers] = []
        self.num_scored = 0

    def events(self) -> Iterator[Event | Prepared | Answers]:
        try:
            with suppress(Stopped):
                yield from self.train()
        except Exception:
            if self.has_record:
                with suppress(Exception):  # the failure itself is what matters
                    self.run.write_report()
            raise
        finally:
            if not self.has_record:  # nothing was measured: after a slip the same folder can be given again
                with suppress(OSError):
                    (self.run.folder / CONFIG).unlink()
                    self.run.folder.rmdir()

    @property
    def has_record(self) -> bool:
        return (self.run.folder / METRICS).exists()

    def train(self) -> Iterator[Event | Prepared | Answers]:
        recipe, config = self.recipe, self.recipe.config
        self.tell("loading the model", 0, 0)
        model, tokenizer = load_policy(recipe.model, device=config.device)
        model = adapted(model, recipe, config.seed)
        with interruptible(model, self.stop), ReferenceCache(self.cache) as cache:
            self.tell("reading the pairs", 0, 0)
            self.check()
            notes: list[str] = []
            pairs, held_pairs, held = prepare(
                recipe.data, tokenizer, folder=token_cache_folder(self.cache), log=notes.append, check=self.check
            )
            self.rows = held[: recipe.samples]
            self.check()
            self.tell("looking for the reference's log-probs", 0, 0)
            stream = train_dpo(
                model, tokenizer, pairs, config, held_out=held_pairs, cache=cache, checkpoints=self.run.checkpoints,
                stop=self.stop.is_set, on_reference=self.on_reference,
            )  # fmt: skip
            yield Prepared(
                len(pairs), 0 if held_pairs is None else len(held_pairs), self.num_scored,
                tuple(sample_prompts(self.rows)), tuple(note for note in notes if note),
            )  # fmt: skip
            num_steps = planned_steps(config, len(pairs))
            for event in self.run.follow(self.watched(stream, model, tokenizer, num_steps)):
                if isinstance(event, Finished):
                    self.save(model, tokenizer)
                yield event
                if isinstance(event, Evaluation) and self.answers and self.answers[-1].step == event.step:
                    yield self.answers[-1]
        self.tell("writing the report", 0, 0)
        self.run.write_report()
        self.run.write_card()

    def watched(self, stream: Iterator[Event], model: Any, tokenizer: Any, num_steps: int) -> Iterator[Event]:
        """The training's events; at each evaluation the model answers, and its answers' true reward is added."""
        began, step = time.perf_counter(), 0
        try:
            for event in stream:
                if isinstance(event, Step):
                    step = event.step
                elif isinstance(event, Evaluation) and self.rows:
                    event = self.answered(event, model, tokenizer)
                yield event
        except Stopped:
            if not self.has_record:
                raise
            yield Finished(step, num_steps, False, {}, time.perf_counter() - began)

    def answered(self, event: Evaluation, model: Any, tokenizer: Any) -> Evaluation:
        self.tell("answering prompts", 0, 0)
        try:
            texts = answer_rows(model, tokenizer, self.rows, self.recipe)
        except Stopped:  # the evaluation itself is worth keeping; the loop sees after the next step that it shall stop
            return event
        score = self.score
        rewards = [score(row, text) if score else None for row, text in zip(self.rows, texts, strict=True)]
        self.answers.append(Answers(event.step, tuple(texts), tuple(rewards)))
        known = [reward for reward in rewards if reward is not None]
        return replace(event, metrics=event.metrics | {"eval_true_reward": sum(known) / len(known)}) if known else event

    def save(self, model: Any, tokenizer: Any) -> None:
        """The model and the samples: what the run is for. They are there when `Finished` is told."""
        self.tell("saving the model", 0, 0)
        save_policy(model, tokenizer, self.run.model_folder)
        if has_adapter(model):
            save_adapter(model, self.run.adapter_folder)
        if self.answers:
            first, last = self.answers[0], self.answers[-1]
            self.run.add_samples(
                line | {"after_step": last.step}
                for line in sample_rows(self.rows, first.texts, last.texts,
                                        rewards_before=first.rewards, rewards_after=last.rewards)
            )  # fmt: skip

    def on_reference(self, done: int, total: int) -> None:
        self.num_scored += total if done == total else 0
        self.tell("scoring the reference, pairs", done, total)

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped


def sample_prompts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompts as `samples.jsonl` names them."""
    return [line["prompt"] for line in sample_rows(rows, [""] * len(rows), [""] * len(rows))]


def planned_steps(config: Any, num_pairs: int) -> int:
    """Optimiser steps of a run over so many pairs."""
    steps = max(1, math.ceil(config.epochs * math.ceil(num_pairs / config.batch_size) - 1e-9))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def next_folder(parent: str | Path, name: str = "run") -> Path:
    """The first of parent/name-01, parent/name-02, … that is free, made at once so that nobody else takes it."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((_number(path.name, name) for path in parent.iterdir()), default=0)
    while True:
        folder = parent / f"{name}-{number:02d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def _number(text: str, name: str) -> int:
    rest = text.removeprefix(f"{name}-")
    return int(rest) if rest != text and rest.isdecimal() else 0


@contextmanager
def interruptible(model: Any, stop: Flag) -> Iterator[None]:
    """While it is entered, a pass through the model raises `Stopped` once the flag is set.

    A training step in hand is first given a moment to end, so that a checkpoint can follow it. Breaking it off later
    costs only its gradient: the weights are those of the last whole step.
    """
    seen: list[float] = []

    def check(*_: Any) -> None:
        if not stop.is_set():
            return
        seen.append(time.perf_counter())
        if not torch.is_grad_enabled() or seen[-1] - seen[0] > GRACE:
            raise Stopped

    hook = inner_model(model).get_input_embeddings().register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
