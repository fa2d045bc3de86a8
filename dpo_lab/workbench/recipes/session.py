"""From a recipe to a run folder, as a stream of events that can be stopped at any moment.

Whenever it is stopped, the run is usable: the model as it stands is saved, curves and report are written, and what was
measured is on the disk already, for each line is written as it comes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Evaluation, Event, Finished, Step, num_steps
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import inner_model
from dpo_lab.models.loading import load_policy, save_policy
from dpo_lab.models.lora import adapted, has_adapter, save_adapter
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.preferences.token_cache import PAIRS, UNPAIRED, prepare
from dpo_lab.reference import ReferenceCache
from dpo_lab.storage.logp_store import token_cache_folder
from dpo_lab.training import train_dpo
from dpo_lab.workbench.evaluation.kl import kl_of_samples
from dpo_lab.workbench.recipes.answers import sample_answers, sample_row, true_reward, well_formed_share
from dpo_lab.workbench.recipes.recipe import Recipe
from dpo_lab.workbench.runs.run import Run

GRACE = 1.0
"""Seconds that a step in hand is given when the run shall stop; a longer one is broken off between two passes."""

Score = Callable[[Mapping[str, Any], str], float | None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Prepared:
    """Everything is loaded and training begins."""

    num_pairs: int
    num_held_out: int
    num_scored: int  # pairs that the reference had to be run on
    prompts: tuple[str, ...]  # those that the model answers at each evaluation
    notes: tuple[str, ...]  # what was left out or shortened, in words


@dataclass(frozen=True)
class Answers:
    """What the model answers after `step` steps to the prompts of `Prepared`."""

    step: int
    texts: tuple[str, ...]
    rewards: tuple[float | None, ...]  # true rewards; None where they are not known


class Stopped(Exception):
    """A stop was requested and something long was broken off."""


def carry_out(
    recipe: Recipe, folder: str | Path, *, stop: Flag | None = None, progress: Progress | None = None,
    score: Score | None = true_reward, cache: str | Path | None = None,
) -> Iterator[Event | Prepared | Answers]:  # fmt: skip
    """Train as the recipe says and record the run in `folder`, new or empty.

    Yields `Prepared`, then the events of `train_dpo`, and `Answers` after each evaluation. When `Finished` comes the
    model is saved; the report is written after it. The numbers are those that
    `command_line(recipe)` gives, bit for bit on CPU: watching changes nothing.

    stop: when it is set, the stream ends soon, with a `Finished` that is not complete. A run that has not begun to
        train leaves no folder.
    progress: called with (what is done, how much of it, how much there is) where that takes a while.
    score: the true reward of an answer to a row, or None where it is not known. The mean over the sampled prompts
        stands in the record as eval_true_reward, beside eval_answer_length in tokens and, of the pocket world's
        prompts, eval_well_formed. Answers at temperature 1 also give eval_kl, the KL from the model that the run began
        from, which for that stays in memory too where there is no adapter.
    cache: file or folder of the reference's log-probs; None takes the usual one. What is found there, or beside it of
        the data's token ids, is not made again.
    """
    loss_of(recipe.config)  # a knob that the loss lacks is refused before anything is made
    run = Run.create(folder, {"command": "train", "settings": recipe.settings})
    return _Session(recipe, run, stop or Flag(), progress or (lambda *_: None), score, cache).events()


@dataclass
class _Session:
    recipe: Recipe
    run: Run
    stop: Flag
    progress: Progress
    score: Score | None
    cache: str | Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)  # those whose prompts are answered
    answers: list[Answers] = field(default_factory=list)
    num_scored: int = 0
    start: Any = None  # the model as it was; None where that is not needed, or behind the adapter

    def events(self) -> Iterator[Event | Prepared | Answers]:
        with suppress(Stopped), self.run.held():
            try:
                yield from self.train()
            except Exception:
                if self.run.has_metrics:
                    with suppress(Exception):  # the failure itself is what matters
                        self.run.write_report()
                raise
            finally:
                self.run.discard_if_empty()

    def train(self) -> Iterator[Event | Prepared | Answers]:
        recipe, config = self.recipe, self.recipe.config
        self.progress("loading the model", 0, 0)
        model, tokenizer = load_policy(recipe.model, device=config.device)
        model = adapted(model, recipe, config.seed)
        if recipe.samples and recipe.sample_temperature == 1 and not has_adapter(model):
            self.start = copy.deepcopy(model)
        with interruptible(model, self.stop), ReferenceCache(self.cache) as cache:
            self.progress("reading the pairs", 0, 0)
            self.check()
            notes: list[str] = []
            pairs, held_pairs, held = prepare(
                recipe.data, tokenizer, UNPAIRED if config.is_unpaired else PAIRS,
                folder=token_cache_folder(self.cache), log=notes.append, check=self.check,
            )  # fmt: skip
            self.rows = held[: recipe.samples]
            self.check()
            self.progress("looking for the reference's log-probs", 0, 0)
            stream = train_dpo(
                model, tokenizer, pairs, config, held_out=held_pairs, cache=cache, checkpoints=self.run.checkpoints,
                stop=self.stop.is_set, on_reference=self.on_reference,
            )  # fmt: skip
            self.run.add_facts(num_examples=len(pairs))
            yield Prepared(
                len(pairs), 0 if held_pairs is None else len(held_pairs), self.num_scored,
                tuple(map(prompt_text, self.rows)), tuple(filter(None, notes)),
            )  # fmt: skip
            for event in self.run.follow(self.watched(stream, model, tokenizer, planned_steps(config, len(pairs)))):
                if isinstance(event, Finished):
                    self.progress("saving the model", 0, 0)
                    save_outcome(self.run, model, tokenizer, self.samples())
                yield event
                if isinstance(event, Evaluation) and self.answers and self.answers[-1].step == event.step:
                    yield self.answers[-1]
        self.progress("writing the report", 0, 0)
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
            if not self.run.has_metrics:
                raise
            yield Finished(step, num_steps, False, {}, time.perf_counter() - began)

    def answered(self, event: Evaluation, model: Any, tokenizer: Any) -> Evaluation:
        self.progress("answering prompts", 0, 0)
        config, score = self.recipe.config, self.score
        try:
            prompts, answers = sample_answers(
                model, tokenizer, self.rows, self.recipe, max_length=config.max_length, seed=config.seed
            )
            texts = [one.text for one in answers]
            found = {
                "eval_answer_length": sum(len(one.ids) for one in answers) / len(answers),
                "eval_well_formed": well_formed_share(self.rows, texts),
            }
            if self.recipe.sample_temperature == 1:
                found["eval_kl"] = kl_of_samples(model, self.start, prompts, [[one.ids] for one in answers]).mean
        except Stopped:  # the evaluation is worth recording; the loop sees after the next step that it shall stop
            return event
        rewards = [score(row, text) if score else None for row, text in zip(self.rows, texts, strict=True)]
        self.answers.append(Answers(event.step, tuple(texts), tuple(rewards)))
        known = [reward for reward in rewards if reward is not None]
        found["eval_true_reward"] = sum(known) / len(known) if known else None
        return replace(event, metrics=event.metrics | {k: v for k, v in found.items() if v is not None})

    def samples(self) -> list[dict[str, Any]]:
        """Lines of samples.jsonl: the first answers and the last."""
        if not self.answers:
            return []
        first, last = self.answers[0], self.answers[-1]
        sides = zip(self.rows, first.texts, last.texts, first.rewards, last.rewards, strict=True)
        return [sample_row(*side) | {"after_step": last.step} for side in sides]

    def on_reference(self, done: int, total: int) -> None:
        self.num_scored += total if done == total else 0
        self.progress("scoring the reference, pairs", done, total)

    def check(self) -> None:
        if self.stop.is_set():
            raise Stopped


def save_outcome(
    run: Run, model: Any, tokenizer: Any, samples: Iterable[Mapping[str, Any]], *, dtype: Any = "base"
) -> None:
    """The model, the adapter where it has one, and the answers: what a run is for."""
    save_policy(model, tokenizer, run.model_folder, dtype=dtype)
    if has_adapter(model):
        save_adapter(model, run.adapter_folder)
    run.add_samples(samples)


def planned_steps(config: DPOConfig, num_pairs: int) -> int:
    """Optimiser steps of a run over so many pairs."""
    return num_steps(config, math.ceil(num_pairs / config.batch_size))


def next_folder(parent: str | Path, name: str = "run") -> Path:
    """The first of parent/name-01, parent/name-02, … that is free, made at once so that nobody else takes it."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    endings = [path.name.removeprefix(f"{name}-") for path in parent.glob(f"{name}-*")]
    number = max((int(ending) for ending in endings if ending.isdecimal()), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            (folder := parent / f"{name}-{number:02d}").mkdir()
            return folder


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
