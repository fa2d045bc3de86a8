"""DPO and supervised fine-tuning: what is learnt from, wired to the loop that learns.

`train_dpo` and `train_sft` check their arguments at once and return a stream of events; nothing is trained until the
stream is read. They print nothing and draw nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout
from dpo_lab.config import DPOConfig, SFTConfig, TrainingConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import score, sum_per_sequence, usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.loss import PairScores, pair_metrics
from dpo_lab.losses.table import loss_of
from dpo_lab.metrics import evaluate_scores, pair_scores_of, scored_lengths
from dpo_lab.models.inside import check_fit, warn_of_rate
from dpo_lab.models.lora import as_reference, has_adapter
from dpo_lab.objectives.base import TokenObjective
from dpo_lab.objectives.options import MovingReference, self_weights, tail_discounted, tail_weights
from dpo_lab.objectives.unpaired import Labelled, UnpairedObjective
from dpo_lab.preferences.token_data import TokenData, content_hash
from dpo_lab.preferences.unpaired import is_good, mismatched, taken_apart
from dpo_lab.reference import ReferenceCache, fingerprint

logger = logging.getLogger("dpo_lab")

Rows = Sequence[dict[str, Any]] | TokenData | Any
"""Rows as `load_preferences` gives them (a `datasets.Dataset` or a list of dicts), or token ids made from them."""


def train_dpo(
    model: nn.Module,
    tokenizer: Any,
    preferences: Rows,
    config: DPOConfig | None = None,
    *,
    held_out: Rows | None = None,
    reference: nn.Module | None = None,
    cache: ReferenceCache | None = None,
    checkpoints: str | Path | None = None,
    resume: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
    on_reference: Callable[[int, int], None] | None = None,
) -> Iterator[Event]:
    """Align `model` (in place) with preference pairs; yields `Step`, `Evaluation`, `Checkpoint`, `Finished`.

    The loss is `LOSSES[config.loss]`; for "dpo" it is −log σ(β·(log-ratio of chosen − log-ratio of rejected)),
    Rafailov et al. 2023, arXiv 2305.18290, Eq. 7. One of `UNPAIRED_LOSSES` learns from rows of prompt, completion and
    label; pairs are taken apart for it, and `config.batch_size` counts answers then.

    reference: the frozen model; None takes the policy as it is now: with a fresh adapter that is its base. Either way
        it is scored once, before the first step, and its log-probs come from `cache` where they are stored. Only with
        `config.sync_reference` it moves: a copy of it is scored in every step, and nothing is stored.
    held_out: pairs to evaluate on at the start, at the end and every `config.evaluate_every` steps.
    resume: a checkpoint folder to go on from; the model must be as it was when the run began.
    on_reference: called with (pairs done, pairs to compute) while the reference is scored.

    Started by `accelerate launch` or `torchrun`, several processes train one model: each calls this with the same
    arguments and reads its stream to the end. The steps are those of one process, for `config.batch_size` counts the
    pairs of all.
    """
    config = config or DPOConfig()
    spec, loss, beta = loss_of(config)
    warn_of_rate(model, config.learning_rate, highest=1e-5)
    parts, probes = token_parts(preferences, held_out, model, tokenizer, config)
    data, held = parts[0], None if held_out is None else parts[1]
    if config.sync_reference and (resume is not None or not spec.needs_reference):
        why = f"and {config.loss} has none" if resume is None else "and no checkpoint holds it, so the run cannot go on"
        raise ValueError(f"sync_reference moves the reference, {why}; leave it out, or begin a new run")
    engine = Engine.open(model, config)
    layout = usable_layout(model, config.layout, data)

    none = [np.zeros((len(part), part.num_completions), np.float32) for part in parts]
    reference_name, logps, frozen = "none", none, model if reference is None else reference
    if spec.needs_reference:  # where not, rewards in the metrics are β·log π
        engine.place(frozen, config)
        with as_reference(frozen):
            reference_name = fingerprint(frozen)
            if engine.processes.count > 1:
                engine.processes.check_same({"reference": reference_name, "data": content_hash(data)})
            if config.sync_reference is None:
                logps_of = lambda part: _reference_logps(frozen, part, layout, config, engine, cache, on_reference)
                logps = [tail_discounted(logps_of, part, config.ld_alpha) for part in (*parts, *probes)]
    shared = (data, held, config, layout, engine)
    if config.is_unpaired:
        labelled = [Labelled(*some) for some in zip(parts, logps, probes or parts, logps[-len(parts) :], strict=False)]
        objective = UnpairedObjective(*shared, loss, beta, spec.baseline, labelled, reference_name)
    else:
        moving = None
        if config.sync_reference is not None:
            moving = MovingReference(frozen, config.precision, config.sync_reference, config.sync_mixup)
        # An adapter that does something is its own reference too, but scored with it on: rounding tells them apart.
        is_own = spec.needs_reference and reference is None and resume is None and not has_adapter(model)
        objective = DPOObjective(
            *shared, pair_loss=loss, beta=beta, reference_logps=logps[0], held_reference_logps=logps[-1],
            reference_name=reference_name, is_at_reference=is_own and moving is None,
            ld_alpha=config.ld_alpha, weighting=config.weighting, moving=moving,
        )  # fmt: skip
    return optimise(model, objective, engine, config, checkpoints=checkpoints, resume=resume, stop=stop)


def _reference_logps(
    frozen: nn.Module, data: TokenData, layout: Layout, config: DPOConfig, engine: Engine,
    cache: ReferenceCache | None, progress: Callable[[int, int], None] | None,
) -> np.ndarray:  # fmt: skip
    """log π_ref(y|x) of every completion, (N, K): scored now, but for what the cache has."""
    options: dict[str, Any] = {"tokens_per_pass": config.tokens_per_pass, "precision": config.precision}
    if cache is None:
        return score(frozen, data, layout=layout, engine=engine, **options)
    return cache.logps(frozen, data, layout=layout, engine=engine, progress=progress, **options).values


def train_sft(
    model: nn.Module,
    tokenizer: Any,
    examples: Rows,
    config: SFTConfig | None = None,
    *,
    held_out: Rows | None = None,
    checkpoints: str | Path | None = None,
    resume: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """Fine-tune `model` (in place) on completions; yields the same events as `train_dpo`.

    The loss is the cross-entropy of the completion's tokens, −log π(y_t | x, y_<t), as a mean over all completion
    tokens of the batch; the prompt is not learnt. Preference rows are taken by their chosen answer.
    """
    config = config or SFTConfig()
    warn_of_rate(model, config.learning_rate, highest=1e-4)
    data = example_tokens(examples, "examples", model, tokenizer, config)
    held = None if held_out is None else example_tokens(held_out, "held_out", model, tokenizer, config)
    engine = Engine.open(model, config)
    objective = SFTObjective(data, held, config, usable_layout(model, config.layout, data), engine)
    return optimise(model, objective, engine, config, checkpoints=checkpoints, resume=resume, stop=stop)


def token_parts(
    preferences: Rows, held_out: Rows | None, model: nn.Module, tokenizer: Any, config: DPOConfig
) -> tuple[list[TokenData], list[TokenData]]:
    """What the reference scores, as token ids: the rows to learn from and those held out, if any; and of each the
    mismatched answers on which the loss measures its baseline, if it does."""
    tokens_of = unpaired_tokens if config.is_unpaired else pair_tokens
    named = [(preferences, "preferences"), (held_out, "held_out")][: 1 if held_out is None else 2]
    parts = [tokens_of(rows, name, model, tokenizer, config) for rows, name in named]
    is_mismatched = loss_of(config)[0].baseline == "mismatched"
    return parts, [mismatched(part, config.max_length) for part in parts] if is_mismatched else []


def pair_tokens(rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig) -> TokenData:
    """Pairs as token ids that fit the model. name: of the argument, for messages."""
    from dpo_lab.preferences.tokens import tokenize_pairs  # whoever brings token ids need not load it

    data = fitting_tokens(rows, name, model, tokenizer, config, tokenize_pairs)
    if data.num_completions != 2:
        raise ValueError(f"{name} must hold 2 completions per prompt (chosen, rejected), got {data.num_completions}")
    return data


def unpaired_tokens(rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig) -> TokenData:
    """As `pair_tokens`, of single answers with a label, or of pairs, which are taken apart."""
    from dpo_lab.preferences.tokens import tokenize_unpaired

    data = taken_apart(fitting_tokens(rows, name, model, tokenizer, config, tokenize_unpaired))
    if name == "preferences" and len(set(is_good(data).tolist())) < 2:
        kind = "good" if is_good(data).all() else "bad"
        raise ValueError(f"all {len(data)} answers of {name} are labelled {kind}; an unpaired loss needs good and bad "
                         "ones: bring both, or imitate good ones with train_sft (dpo-lab sft)")  # fmt: skip
    return data


def example_tokens(rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig) -> TokenData:
    """As `pair_tokens`, of prompts with one completion each."""
    from dpo_lab.preferences.tokens import tokenize_examples

    data = fitting_tokens(rows, name, model, tokenizer, config, tokenize_examples)
    if not is_good(data).all():
        raise ValueError(f"{name} holds answers labelled as bad, and examples are imitated; leave them out")
    return data


def fitting_tokens(
    rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig, tokenize: Callable[..., Any]
) -> TokenData:
    """Rows as token ids. ValueError where there are none, or where the model has no embedding or position for one."""
    given = isinstance(rows, TokenData)
    data, report = (
        (rows, None)
        if given
        else tokenize(rows, tokenizer, max_length=config.max_length, score_turns=config.score_turns)
    )
    if len(data) == 0:
        raise ValueError(f"{name} holds no usable rows" + (f":\n{report.summary()}" if report else ""))
    if report is not None and report.leaving_out:  # what nobody would see in the numbers
        logger.warning("%s: %s", name, report.summary())
    check_fit(model, data, name)
    return data


# ── what is learnt from ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class DPOObjective(TokenObjective):
    """A preference loss on pairs: two completions per prompt, and the reference's log-probs of both."""

    pair_loss: Callable[[PairScores], Tensor]
    beta: float
    reference_logps: np.ndarray  # (N, 2), nats
    held_reference_logps: np.ndarray
    reference_name: str = "none"
    is_at_reference: bool = False  # the policy is its own reference until the first step
    ld_alpha: float | None = None
    weighting: str | None = None
    moving: MovingReference | None = None

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        if self.moving is not None:
            with self.engine.whole_weights():
                self.moving.begin_step(self.engine.model)
        return super().begin_step(examples)

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        if self.is_mapped:
            self.release()
        token_logps = scorer(batch)
        policy = self.summed(token_logps, batch)  # (B, 2), float32: bf16 sums drift on long replies
        if self.moving is None:
            reference = torch.from_numpy(self.reference_logps[rows]).to(device)
        else:
            reference = self.summed(self.moving.token_logps(batch), batch)
        scores = PairScores(*policy.unbind(1), *reference.unbind(1), *batch.lengths.float().unbind(1))
        losses = self.pair_loss(scores)  # (B,)
        if self.weighting == "wpo":
            losses = losses * self_weights(scorer, batch, token_logps, scores)
        metrics = pair_metrics(scores, losses, self.beta)
        return (losses * batch.weights).sum(), {name: value.sum() for name, value in metrics.items()}

    def summed(self, token_logps: Tensor, batch: Batch) -> Tensor:
        """Sums over the completions, (B, 2); with LD-DPO the longer one's tail counts less."""
        weighted = token_logps if self.ld_alpha is None else token_logps * tail_weights(batch, self.ld_alpha)
        return sum_per_sequence(weighted, batch)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if (held := self.held) is None:
            return {}, ()
        held_logps = lambda scored: tail_discounted(partial(self.score_held, scored), held, self.ld_alpha)
        if self.moving is not None:  # rewards are measured against the reference as it is now
            self.held_reference_logps = held_logps(self.moving.model)
        logps = self.held_reference_logps if self.is_at_reference else held_logps(model)
        self.is_at_reference = False  # the first evaluation comes before the first step, and only that one
        scores = pair_scores_of(logps, self.held_reference_logps, held)
        result = evaluate_scores(scores, self.pair_loss, self.beta, held)
        return result.metrics, tuple(result.table["margin"].tolist())

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"reference": self.reference_name}


class SFTObjective(TokenObjective):
    """Cross-entropy of completions: one completion per prompt, and a mean over their tokens."""

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        return examples, float(scored_lengths(self.data.select(examples)).sum())

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        if self.is_mapped:
            self.release()
        per_example = -sum_per_sequence(scorer(batch), batch)[:, 0] * batch.weights  # (B,)
        return per_example.sum(), {"loss": per_example.detach().sum()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        logps = self.score_held(model, self.held)
        loss = -float(logps.astype(np.float64).sum()) / float(scored_lengths(self.held).sum())
        return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}, ()
