"""DPO in rounds, over the same loop as DPO on a fixed set of pairs.

`train_rounds` is `loop.optimise` with an objective that makes its pairs when a round begins; the loss is
`training.DPOObjective`'s. So there is one optimiser, whose state lasts over the rounds, one schedule of the learning
rate, and checkpoints where rounds begin. A round depends on the weights, the seed and its number alone: a run that is
killed and goes on from a checkpoint samples the same answers again.

    rounds/0001/answers.jsonl    the answers to each prompt: text, token ids, log-probs
    rounds/0001/verdicts.jsonl   their scores, and what was compared
    rounds/0001/pairs.jsonl      the pairs made of them, which `load_preferences` reads

P prompts with K answers each. Log-probs in nats.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import epoch_batches
from dpo_lab.config import DPOConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import score, usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import warn_of_rate
from dpo_lab.models.lora import adapter_off, adds_nothing
from dpo_lab.objectives.options import tail_discounted
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.reference import fingerprint
from dpo_lab.sampling import Completion, generate_ids
from dpo_lab.storage.files import read_lines, write_lines
from dpo_lab.training import DPOObjective
from dpo_lab.workbench.rounds.config import RoundsConfig
from dpo_lab.workbench.rounds.judges import Judge, Row, Verdicts, is_pairwise, judge_answers
from dpo_lab.workbench.rounds.pairing import Places, make_pairs
from dpo_lab.workbench.runs.provenance import plain_json

ROUNDS, ANSWERS, VERDICTS, PAIRS = "rounds", "answers.jsonl", "verdicts.jsonl", "pairs.jsonl"
OF_PAIRS = ("chosen", "rejected", "completion", "label", "weight")
"""Columns of a row that are no part of its prompt."""

Progress = Callable[[str, int, int], None]
TokenPair = tuple[list[int], tuple[np.ndarray, np.ndarray]]

logger = logging.getLogger("dpo_lab")


@dataclass(frozen=True)
class Round:
    """A round's pairs are made, after `step` steps, by the policy that these gave; its first step has been taken."""

    round: int  # from 1
    num_rounds: int
    step: int
    metrics: dict[str, float]
    seconds: float  # since this process started training


def train_rounds(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Row | str], judge: Judge, config: RoundsConfig | None = None,
    *, reference: nn.Module | None = None, held_out: Sequence[Row | str] | None = None,
    folder: str | Path | None = None, checkpoints: str | Path | None = None, resume: str | Path | None = None,
    stop: Callable[[], bool] | None = None, progress: Progress | None = None,
) -> Iterator[Event | Round]:  # fmt: skip
    """Align `model` (in place) with its own answers; yields a `Round` for each round beside the events of `train_dpo`.

    Each round takes `config.prompts` prompts, samples `config.answers` answers to each, has them judged, makes pairs,
    and takes `config.steps` steps of DPO on these. Iterative DPO: Xu et al. 2023 (arXiv 2312.16682); online DPO: Guo
    et al. 2024 (arXiv 2402.04792); offline, semi-online and online compared: Lanchantin et al. 2025 (arXiv 2506.21495).

    prompts: rows as `load_preferences` gives them, whose answers are not looked at, or texts.
    judge: see `judges`: a function that scores answers, or one that compares two; `true_reward`, `ImplicitReward`,
        `EndpointJudge`, or a learnt reward model as the course's `LearntReward`.
    reference: the frozen model; None takes the policy as it is now.
    held_out: prompts with which the policy is measured at the start, at the end and every `config.evaluate_every`
        steps: reward (of a judge of single answers), kl, answer_length, from one answer each at temperature 1.
    folder: where the folder `rounds` is written. checkpoints, resume, stop: as in `train_dpo`, but a run stops and goes
        on only where a round begins. A resumed run that replays pairs needs the folder that it was begun with.
    progress: called with (what is done, how much of it, how much there is) while a round is made.

    Metrics of a round, of the policy that begins it: reward (mean score), kl (from the reference, per answer at
    temperature 1), answer_length (tokens), finished (share with an end token), empty (share of the sampled
    answers without text, which make no pair), mixed (share of prompts whose scores differ by more than the margin; the
    others teach nothing), pairs (new ones), replayed, cost/sampled_answers and cost/judged_answers since the beginning,
    and what a judge of two answers reports (judge/…).
    A round that gives no pair takes its steps with a gradient of zero, as policy gradient does, and is logged.
    """
    config = (config or RoundsConfig()).by_sampling()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("rounds run in one process here; start it without torchrun or accelerate launch")
    if not len(prompts):
        raise ValueError("there are no prompts to answer; give rows or texts")
    if resume is not None and config.replay and folder is None:
        raise ValueError("pairs of earlier rounds are replayed, and the folder that holds them is missing; give folder")
    if reference is model:
        raise ValueError("reference is the model that is trained; give a copy, or None to have one made")
    is_pairwise(judge)  # what is no judge is refused before anything is loaded
    warn_of_rate(model, config.learning_rate, highest=1e-5)
    shared: dict[str, Any] = {entry.name: getattr(config, entry.name) for entry in fields(DPOConfig)}
    shared["epochs"] = config.rounds
    plan = DPOConfig(**shared)
    engine = Engine.open(model, plan)
    start = None
    if not adds_nothing(model) and (reference is None or config.sampler == "never"):
        start = copy.deepcopy(model)  # behind a fresh adapter it is there already
    reference = start if reference is None else reference
    for frozen in filter(None, (reference, start)):
        engine.place(frozen, plan)
    rows, held = (None if some is None else [prompt_row(one) for one in some] for some in (prompts, held_out))
    objective = RoundsObjective(
        model, reference, start, tokenizer, rows or [], held, judge, config, plan, engine,
        None if folder is None else Path(folder) / ROUNDS, progress or (lambda *_: None),
    )  # fmt: skip
    at_border = None if stop is None else lambda: objective.is_spent and stop()
    events = optimise(model, objective, engine, plan, checkpoints=checkpoints, resume=resume, stop=at_border)
    return _with_rounds(events, objective)


def _with_rounds(events: Iterator[Event], objective: RoundsObjective) -> Iterator[Event | Round]:
    began = time.perf_counter()
    for event in events:
        while objective.begun:
            yield Round(**objective.begun.pop(0), seconds=time.perf_counter() - began)
        yield event


def prompt_row(prompt: Row | str) -> dict[str, Any]:
    """A row's prompt with the columns beside it, without answers."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if not isinstance(prompt, Mapping) or "prompt" not in prompt:
        raise ValueError(f"prompts must be texts or rows with a prompt, got {type(prompt).__name__} {prompt!r:.60}; a "
                         "judge can't read token ids")  # fmt: skip
    row = {name: value for name, value in prompt.items() if name not in OF_PAIRS and value is not None}
    return plain_json(row, "a prompt's")  # for the files of a round


@dataclass
class RoundsObjective:
    """What the loop learns from: `DPOObjective` on the pairs of the round in hand."""

    policy: nn.Module
    reference: nn.Module | None  # None: the base behind the policy's adapter
    start: nn.Module | None  # what an offline run samples from: the policy as it was; None as above
    tokenizer: Any
    rows: list[dict[str, Any]]
    held: list[dict[str, Any]] | None
    judge: Judge
    config: RoundsConfig
    plan: DPOConfig
    engine: Engine
    folder: Path | None
    progress: Progress

    def __post_init__(self) -> None:
        self.spec, self.pair_loss, self.beta = loss_of(self.plan)
        self.number, self.steps_taken = -1, 0
        self.begun: list[dict[str, Any]] = []
        """Rounds that nobody has been shown yet, as the arguments of `Round`."""
        self.earlier: list[TokenPair] = []  # pairs of the rounds before, where they are replayed
        self.longest_prompt = self.config.max_length - self.config.max_new_tokens

    # ── what the loop wants to know ──────────────────────────────────────────────────────────────────────────────

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """A round is an epoch; its steps go by their numbers, for its pairs are not there yet."""
        first = epoch * self.config.steps
        return [np.array([step]) for step in range(first, first + self.config.steps)]

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        number, place = divmod(int(examples[0]), self.config.steps)
        if number != self.number:
            self.begin(number)
        self.steps_taken = place + 1
        return self.batches[place], float(len(self.batches[place]))

    @property
    def is_spent(self) -> bool:
        """Whether all steps of the round in hand have been taken."""
        return self.steps_taken == self.config.steps

    @property
    def lengths(self) -> np.ndarray:
        return self.learning.lengths

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        return self.learning.loss(scorer, rows, device)

    def describe(self, examples: np.ndarray) -> str:
        return f"pairs of round {int(examples[0]) // self.config.steps + 1}"

    def identity(self) -> dict[str, Any]:
        own = {entry.name for entry in fields(RoundsConfig)} - {entry.name for entry in fields(DPOConfig)}
        settings = {name: getattr(self.config, name) for name in sorted(own - {"sampling_batch_size"})}
        prompts = hashlib.sha256(json.dumps(self.rows, sort_keys=True, default=str).encode()).hexdigest()
        with self.as_it_was(self.reference) as frozen:
            return {"rounds": settings, "prompts": prompts, "reference": fingerprint(frozen)}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if not self.held:
            return {}, ()
        answers = self.sample(self.policy, self.held, 2**31, num_samples=1, temperature=1.0)
        found = self.described(self.held, answers)
        if not is_pairwise(self.judge):
            found = {"reward": float(judge_answers(self.judge, self.held, answers).scores.mean())} | found
        return found, ()

    # ── a round ──────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self, number: int) -> None:
        """Sample, judge, pair; then what is learnt from is fixed until the next round."""
        config, num = self.config, number * self.config.prompts
        if config.replay and number and self.number != number - 1:  # the run goes on: earlier rounds are on the disk
            self.earlier = [pair for other in range(number) for pair in self.saved_pairs(other)]
        self.number = number
        places = [self.place(slot) for slot in range(num, num + config.prompts)]
        rows, rng = [self.rows[place] for place in places], np.random.default_rng([config.seed, number, 1])
        self.progress("sampling answers", number + 1, config.rounds)
        with self.as_it_was(self.start if config.sampler == "never" else self.policy) as sampler:
            answers = self.sample(sampler, rows, number, num_samples=config.answers, temperature=config.temperature)
        self.save(number, ANSWERS, [{"row": place, "answers": [
            {"text": one.text, "ids": one.ids.tolist(), "finished": one.is_finished, "logps": one.logps.tolist()}
            for one in own]} for place, own in zip(places, answers, strict=True)])  # fmt: skip
        self.progress("judging answers", number + 1, config.rounds)
        verdicts = judge_answers(self.judge, rows, answers)
        self.save(number, VERDICTS, [{"row": place, "scores": scores.tolist()} for place, scores in
                                     zip(places, verdicts.scores, strict=True)], verdicts.comparisons)  # fmt: skip
        pairs = make_pairs(verdicts.scores, [[one.text for one in own] for own in answers], config, rng)
        self.save(number, PAIRS, [rows[p] | {
            "chosen": answers[p][i].text, "rejected": answers[p][j].text, "round": number + 1, "places": [p, i, j],
            "score_chosen": float(verdicts.scores[p, i]), "score_rejected": float(verdicts.scores[p, j]),
        } for p, i, j in pairs])  # fmt: skip
        *new, spare = self.token_pairs(rows, answers, [*pairs, Places(0, 0, 1)])
        num_replayed = self.learn_from(new, spare, rng)
        self.begun.append({
            "round": number + 1, "num_rounds": config.rounds, "step": number * config.steps,
            "metrics": self.measured(number, rows, answers, verdicts, len(pairs), num_replayed),
        })  # fmt: skip

    def learn_from(self, new: list[TokenPair], spare: TokenPair, rng: np.random.Generator) -> int:
        """Fix the round's pairs, with some of earlier rounds, and their order; returns how many are old.

        spare: two answers that stand with weight 0 where there is no pair at all.
        """
        config = self.config
        num_old = min(len(self.earlier), round(len(new) * config.replay / (1 - config.replay)))
        pool = new + [self.earlier[i] for i in rng.choice(len(self.earlier), num_old, replace=False)]
        if config.replay:
            self.earlier += new
        if not pool:
            logger.warning("round %d gives no pair: no two answers to a prompt differ in their score by more than %g; "
                           "its steps have a gradient of zero", self.number + 1, config.margin)  # fmt: skip
        data = TokenData.from_rows(pool or [(*spare, 0.0)])
        logps = np.zeros((len(data), 2), np.float32)
        if self.spec.needs_reference:
            with self.as_it_was(self.policy if config.reference_follows else self.reference) as model:
                logps = tail_discounted(lambda part: self.scored(model, part), data, config.ld_alpha)
        self.learning = DPOObjective(
            data, None, self.plan, usable_layout(self.policy, config.layout, data), self.engine,
            pair_loss=self.pair_loss, beta=self.beta, reference_logps=logps, held_reference_logps=logps,
            ld_alpha=config.ld_alpha, weighting=config.weighting,
        )  # fmt: skip
        self.batches: list[np.ndarray] = []
        while len(self.batches) < config.steps:
            self.batches += epoch_batches(
                self.learning.order_lengths, config.batch_size, seed=config.seed,
                epoch=self.number * 2**16 + len(self.batches), group_by_length=config.group_by_length,
            )  # fmt: skip
        return num_old

    def measured(
        self, number: int, rows: list[dict[str, Any]], answers: list[list[Completion]], verdicts: Verdicts,
        num_pairs: int, num_replayed: int,
    ) -> dict[str, float]:  # fmt: skip
        """The metrics of a `Round`."""
        config, scores = self.config, verdicts.scores
        own = answers
        if config.sampler == "never" or config.temperature != 1:  # the answers are not the policy's own
            own = self.sample(self.policy, rows, number, num_samples=1, temperature=1.0)
        num = float((number + 1) * config.prompts * config.answers)
        return {"reward": float(scores.mean())} | self.described(rows, own) | {
            "empty": float(np.mean([not one.text for own in answers for one in own])),
            "mixed": float((np.ptp(scores, axis=1) > config.margin).mean()),
            "pairs": float(num_pairs), "replayed": float(num_replayed),
            "cost/sampled_answers": num, "cost/judged_answers": num,
        } | verdicts.counts  # fmt: skip

    def described(self, rows: list[dict[str, Any]], answers: list[list[Completion]]) -> dict[str, float]:
        """KL from the reference, length, share of whole ones, of answers sampled from the policy at temperature 1."""
        data = TokenData.from_rows(
            (encode_prompt(row, self.tokenizer, self.longest_prompt), tuple(one.ids for one in own))
            for row, own in zip(rows, answers, strict=True)
        )
        ratios = self.scored(self.policy, data)
        with self.as_it_was(self.reference) as frozen:
            ratios = ratios - self.scored(frozen, data)
        return {"kl": float(ratios.astype(np.float64).mean()), "answer_length": float(data.completion_lengths.mean()),
                "finished": float(np.mean([one.is_finished for own in answers for one in own]))}  # fmt: skip

    # ── its parts ────────────────────────────────────────────────────────────────────────────────────────────────

    def place(self, slot: int) -> int:
        """The prompt in slot `slot` of an endless list, in which each comes once before any comes twice."""
        again, place = divmod(slot, len(self.rows))
        return int(np.random.default_rng([self.config.seed, again]).permutation(len(self.rows))[place])

    def sample(
        self, model: nn.Module, rows: list[dict[str, Any]], number: int, *, num_samples: int, temperature: float
    ) -> list[list[Completion]]:
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        return generate_ids(
            model, self.tokenizer, [encode_prompt(row, self.tokenizer, self.longest_prompt) for row in rows],
            max_new_tokens=self.config.max_new_tokens, temperature=temperature, num_samples=num_samples, seed=seed,
            batch_size=self.config.sampling_batch_size, precision=self.config.precision,
        )  # fmt: skip

    def scored(self, model: nn.Module, data: TokenData) -> np.ndarray:
        layout = usable_layout(model, self.config.layout, data)
        return score(model, data, layout=layout, tokens_per_pass=self.config.tokens_per_pass,
                     precision=self.config.precision, engine=self.engine)  # fmt: skip

    @contextmanager
    def as_it_was(self, model: nn.Module | None) -> Iterator[nn.Module]:
        """A frozen model; None is the base behind the policy's adapter."""
        if model is not None:
            yield model
        else:
            with adapter_off(self.policy):
                yield self.policy

    def token_pairs(
        self, rows: list[dict[str, Any]], answers: list[list[Completion]], pairs: list[Places]
    ) -> list[TokenPair]:
        """The very tokens that were sampled, not their texts anew."""
        prompts = {p: encode_prompt(rows[p], self.tokenizer, self.longest_prompt) for p, _, _ in pairs}
        return [(prompts[p], (answers[p][i].ids, answers[p][j].ids)) for p, i, j in pairs]

    # ── its files ────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, number: int, name: str, lines: list[dict[str, Any]], comparisons: list[Any] | None = None) -> None:
        if self.folder is not None:
            more = [{"comparisons": one} for one in comparisons] if comparisons else [{} for _ in lines]
            write_lines(self.folder / f"{number + 1:04d}" / name, [a | b for a, b in zip(lines, more, strict=True)])

    def saved_pairs(self, number: int) -> list[TokenPair]:
        """The pairs of an earlier round, read back."""
        assert self.folder is not None, "train_rounds wants a folder where this may be needed"
        folder = self.folder / f"{number + 1:04d}"
        if not (folder / PAIRS).is_file():
            raise ValueError(f"{folder / PAIRS} is missing, and its pairs are replayed; restore it, or begin a new run")
        lines = read_lines(folder / ANSWERS).rows
        rows = [self.rows[line["row"]] for line in lines]
        answers = [[Completion(one["text"], np.array(one["ids"], np.int32), one["finished"], np.array(one["logps"]))
                    for one in line["answers"]] for line in lines]  # fmt: skip
        return self.token_pairs(rows, answers, [Places(*row["places"]) for row in read_lines(folder / PAIRS).rows])
