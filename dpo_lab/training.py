"""DPO and supervised fine-tuning: what is learnt from, wired to the loop that learns.

`train_dpo` and `train_sft` check their arguments at once and return a stream of events; nothing is trained until the
stream is read. They print nothing and draw nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Layout, epoch_batches, row_lengths, separate_rows, shared_rows
from dpo_lab.config import DPOConfig, SFTConfig, TrainingConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import score, sum_per_sequence, usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.loss import PairScores, pair_metrics
from dpo_lab.losses.table import loss_of
from dpo_lab.metrics import evaluate_scores, pair_scores_of, scored_lengths
from dpo_lab.models.inside import check_fit
from dpo_lab.models.lora import as_reference, has_adapter
from dpo_lab.preferences.token_data import TokenData, content_hash
from dpo_lab.reference import ReferenceCache, fingerprint
from dpo_lab.storage.token_files import release

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
    Rafailov et al. 2023, arXiv 2305.18290, Eq. 7.

    reference: the frozen model; None takes the policy as it is now: with a fresh adapter that is its base. Either way
        it is scored once, before the first step, and its log-probs come from `cache` where they are stored.
    held_out: pairs to evaluate on at the start, at the end and every `config.evaluate_every` steps.
    resume: a checkpoint folder to go on from; the model must be as it was when the run began.
    on_reference: called with (pairs done, pairs to compute) while the reference is scored.

    Started by `accelerate launch` or `torchrun`, several processes train one model: each calls this with the same
    arguments and reads its stream to the end. The steps are those of one process, for `config.batch_size` counts the
    pairs of all.
    """
    config = config or DPOConfig()
    spec, loss, beta = loss_of(config)
    data = pair_tokens(preferences, "preferences", model, tokenizer, config)
    held = None if held_out is None else pair_tokens(held_out, "held_out", model, tokenizer, config)
    engine = Engine.open(model, config)
    layout = usable_layout(model, config.layout, data)

    parts = [data] if held is None else [data, held]
    reference_name, logps = "none", [np.zeros((len(part), 2), np.float32) for part in parts]
    if spec.needs_reference:  # where not, rewards in the metrics are β·log π
        frozen = model if reference is None else reference
        engine.place(frozen, config)
        with as_reference(frozen):
            reference_name = fingerprint(frozen)
            if engine.processes.count > 1:
                engine.processes.check_same({"reference": reference_name, "data": content_hash(data)})
            logps = [_reference_logps(frozen, part, layout, config, engine, cache, on_reference) for part in parts]
    objective = DPOObjective(
        data, held, config, layout, engine,
        pair_loss=loss, beta=beta, reference_logps=logps[0], held_reference_logps=logps[-1],
        reference_name=reference_name,
        # An adapter that does something is its own reference too, but scored with it on: rounding tells them apart.
        is_at_reference=spec.needs_reference and reference is None and resume is None and not has_adapter(model),
    )  # fmt: skip
    return optimise(model, objective, engine, config, checkpoints=checkpoints, resume=resume, stop=stop)


def _reference_logps(
    frozen: nn.Module, data: TokenData, layout: Layout, config: DPOConfig, engine: Engine,
    cache: ReferenceCache | None, progress: Callable[[int, int], None] | None,
) -> np.ndarray:  # fmt: skip
    """log π_ref(y|x) of every pair, (N, 2): scored now, but for what the cache has."""
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
    data = example_tokens(examples, "examples", model, tokenizer, config)
    held = None if held_out is None else example_tokens(held_out, "held_out", model, tokenizer, config)
    engine = Engine.open(model, config)
    objective = SFTObjective(data, held, config, usable_layout(model, config.layout, data), engine)
    return optimise(model, objective, engine, config, checkpoints=checkpoints, resume=resume, stop=stop)


def pair_tokens(rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig) -> TokenData:
    """Pairs as token ids that fit the model. name: of the argument, for messages."""
    from dpo_lab.preferences.tokens import tokenize_pairs  # whoever brings token ids need not load it

    data = fitting_tokens(rows, name, model, tokenizer, config, tokenize_pairs)
    if data.num_completions != 2:
        raise ValueError(f"{name} must hold 2 completions per prompt (chosen, rejected), got {data.num_completions}")
    return data


def example_tokens(rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig) -> TokenData:
    """As `pair_tokens`, of prompts with one completion each."""
    from dpo_lab.preferences.tokens import tokenize_examples

    return fitting_tokens(rows, name, model, tokenizer, config, tokenize_examples)


def fitting_tokens(
    rows: Rows, name: str, model: nn.Module, tokenizer: Any, config: TrainingConfig, tokenize: Callable[..., Any]
) -> TokenData:
    """Rows as token ids. ValueError where there are none, or where the model has no embedding or position for one."""
    data = rows if isinstance(rows, TokenData) else tokenize(rows, tokenizer, max_length=config.max_length)[0]
    if len(data) == 0:
        raise ValueError(f"{name} holds no usable rows; look at the report that load_preferences logged")
    check_fit(model, data, name)
    return data


# ── what is learnt from ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class TokenObjective:
    """An objective on token ids: their order, how they are cut, held-out ones. What is missing is the loss."""

    data: TokenData
    held: TokenData | None
    config: TrainingConfig
    layout: Layout
    engine: Engine

    def __post_init__(self) -> None:
        self.make_batch = shared_rows if self.layout == "shared" else separate_rows
        self.order_lengths = row_lengths(self.data, "shared")  # the order of the data does not depend on the layout
        self.lengths = self.order_lengths if self.layout == "shared" else row_lengths(self.data, self.layout)
        self.is_mapped = hasattr(self.data.ids, "_mmap")

    def epoch(self, epoch: int) -> list[np.ndarray]:
        config = self.config
        return epoch_batches(
            self.order_lengths, config.batch_size, seed=config.seed, epoch=epoch, group_by_length=config.group_by_length
        )

    def begin_step(self, examples: np.ndarray) -> tuple[np.ndarray, float]:
        return examples, float(len(examples))

    def release(self) -> None:
        """The pages of mapped data that a batch was read from need not stay in memory."""
        release(self.data.ids)
        release(self.data.bounds)

    def score_held(self, model: nn.Module, held: TokenData) -> np.ndarray:
        """Log-probs of the held-out completions, (N, K), under the model as it is now."""
        return score(
            model, held, layout=self.layout, tokens_per_pass=self.config.tokens_per_pass,
            precision=self.config.precision, engine=self.engine,
        )  # fmt: skip

    def describe(self, examples: np.ndarray) -> str:
        rows = self.data.source_rows[examples]
        shown = ", ".join(str(int(row)) for row in rows[:8])
        return f"rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''}"

    def identity(self) -> dict[str, Any]:
        return {"data": content_hash(self.data), "layout": self.layout}


@dataclass
class DPOObjective(TokenObjective):
    """A preference loss on pairs: two completions per prompt, and the reference's log-probs of both."""

    pair_loss: Callable[[PairScores], Tensor]
    beta: float
    reference_logps: np.ndarray  # (N, 2), nats
    held_reference_logps: np.ndarray
    reference_name: str = "none"
    is_at_reference: bool = False  # the policy is its own reference until the first step

    def loss(self, scorer: nn.Module, rows: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.make_batch(self.data, rows).to(device)
        if self.is_mapped:
            self.release()
        policy = sum_per_sequence(scorer(batch), batch)  # (B, 2), float32: bf16 sums drift on long replies
        reference = torch.from_numpy(self.reference_logps[rows]).to(device)
        scores = PairScores(*policy.unbind(1), *reference.unbind(1), *batch.lengths.float().unbind(1))
        losses = self.pair_loss(scores)  # (B,)
        metrics = pair_metrics(scores, losses, self.beta)
        return (losses * batch.weights).sum(), {name: value.sum() for name, value in metrics.items()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        logps = self.held_reference_logps if self.is_at_reference else self.score_held(model, self.held)
        self.is_at_reference = False  # the first evaluation comes before the first step, and only that one
        scores = pair_scores_of(logps, self.held_reference_logps, self.held)
        result = evaluate_scores(scores, self.pair_loss, self.beta, self.held)
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
