"""Supervised fine-tuning and DPO: what is learnt from, wired to the loop that learns.

`train_sft` and `train_dpo` check their arguments at once and return a stream of events; nothing is trained until the
stream is read. They print nothing and draw nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout, epoch_batches, make_batch, row_lengths, split_passes
from dpo_lab.compiling import compile_model
from dpo_lab.config import DPOConfig, SFTConfig, TrainingConfig
from dpo_lab.evaluation import evaluate_scores, pair_metrics, pair_scores_of, reward_beta, scored_lengths
from dpo_lab.logprobs import autocast, score, sum_per_sequence, usable_layout
from dpo_lab.loop import Event, optimise
from dpo_lab.lora import as_reference, has_adapter
from dpo_lab.losses import LOSSES, LossSpec, PairScores
from dpo_lab.models import check_length, disable_dropout, pick_device
from dpo_lab.preferences import TokenData, tokenize_examples, tokenize_pairs
from dpo_lab.preferences.token_files import parts, release
from dpo_lab.processes import ALONE, Processes, join
from dpo_lab.reference import ReferenceCache, fingerprint
from dpo_lab.side_by_side import halves

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
    data = _tokens(preferences, tokenizer, config, tokenize_pairs, "preferences")
    held = None if held_out is None else _tokens(held_out, tokenizer, config, tokenize_pairs, "held_out")
    for name, pairs in (("preferences", data), ("held_out", held)):
        if pairs is not None and pairs.num_completions != 2:
            raise ValueError(
                f"{name} must hold 2 completions per prompt (chosen, rejected), got {pairs.num_completions}"
            )
    for name, pairs in (("preferences", data), ("held_out", held)):
        _check_fit(model, pairs, name)
    processes = join(pick_device(config.device))
    model.to(processes.device)
    if not config.dropout:
        disable_dropout(model)
    layout = usable_layout(model, config.layout, data)

    reference_name = "none"
    reference_logps = {id(part): np.zeros((len(part), 2), np.float32) for part in (data, held) if part is not None}
    if spec.needs_reference:
        frozen = model if reference is None else reference.to(processes.device)
        if config.compile:  # as the policy will be, so that at the first step they agree
            compile_model(frozen)
        with as_reference(frozen):
            reference_name = fingerprint(frozen)
            if processes.count > 1:
                processes.check_same({"reference": reference_name, "data": content_hash(data)})
            for part in (data, held):
                if part is not None:
                    reference_logps[id(part)] = _reference_logps(
                        frozen, part, config, layout, cache, on_reference, processes
                    )
    work = PreferenceWork(
        data, held, loss, beta, reference_logps[id(data)],
        None if held is None else reference_logps[id(held)], config, layout, reference_name, processes,
        begins_at_reference=spec.needs_reference and reference is None and resume is None and not has_adapter(model),
    )  # fmt: skip
    return optimise(model, work, config, checkpoints=_path(checkpoints), resume=_path(resume), stop=stop)


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
    data = _tokens(examples, tokenizer, config, tokenize_examples, "examples")
    held = None if held_out is None else _tokens(held_out, tokenizer, config, tokenize_examples, "held_out")
    for name, rows in (("examples", data), ("held_out", held)):
        _check_fit(model, rows, name)
    processes = join(pick_device(config.device))
    model.to(processes.device)
    layout = usable_layout(model, config.layout, data)
    work = ExampleWork(data, held, config, layout, processes)
    return optimise(model, work, config, checkpoints=_path(checkpoints), resume=_path(resume), stop=stop)


def loss_of(config: DPOConfig) -> tuple[LossSpec, Callable[[PairScores], Tensor], float]:
    """The loss that a configuration names: its row of the table, the function with its knobs settled, and its β.

    Raises ValueError for a knob that the loss lacks.
    """
    spec = LOSSES[config.loss]
    named = {"beta": config.beta, "label_smoothing": config.label_smoothing}
    knobs = {name: float(value) for name, value in named.items() if value is not None} | dict(config.knobs)
    return spec, spec.bind(divergence=config.divergence, **knobs), reward_beta(spec, knobs)


class ExampleWork:
    """Cross-entropy of completions: one completion per prompt."""

    def __init__(
        self,
        data: TokenData,
        held: TokenData | None,
        config: TrainingConfig,
        layout: Layout,
        processes: Processes = ALONE,
    ) -> None:
        self.data, self.held, self.config, self.processes = data, held, config, processes
        self.layout: Layout = layout
        self.order_lengths = row_lengths(data, "shared")  # the order of the data does not depend on the layout
        self.lengths = self.order_lengths if layout == "shared" else row_lengths(data, layout)

    def epoch(self, epoch: int) -> Sequence[np.ndarray]:
        config = self.config
        return epoch_batches(
            self.order_lengths, config.batch_size, seed=config.seed, epoch=epoch, group_by_length=config.group_by_length
        )

    def passes(self, indices: np.ndarray) -> list[np.ndarray]:
        config = self.config
        return split_passes(
            indices, self.lengths, tokens_per_pass=config.tokens_per_pass, micro_batch_size=config.micro_batch_size
        )

    def halves(self, indices: np.ndarray) -> list[np.ndarray]:
        return halves(indices, self.lengths)

    def size(self, indices: np.ndarray) -> float:
        return float(scored_lengths(self.data.select(indices)).sum())

    def batch(self, indices: np.ndarray, device: torch.device) -> Batch:
        """A run as tensors. The pages of mapped data that it was read from need not stay in memory."""
        batch = make_batch(self.data, indices, self.layout).to(device)
        release(self.data.ids)
        release(self.data.bounds)
        return batch

    def loss(self, scorer: nn.Module, indices: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.batch(indices, device)
        with autocast(device, self.config.precision):
            token_logps = scorer(batch)
        per_example = -sum_per_sequence(token_logps, batch)[:, 0] * batch.weights  # (B,)
        return per_example.sum(), {"loss": per_example.detach().sum()}

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None:
            return {}, ()
        logps = self.score_held(model, self.held)
        loss = -float(logps.astype(np.float64).sum()) / float(scored_lengths(self.held).sum())
        return {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}, ()

    def score_held(self, model: nn.Module, held: TokenData) -> np.ndarray:
        """Log-probs of the held-out completions, (N, K), under the model as it is now."""
        config = self.config
        return score(
            model, held, layout=self.layout, tokens_per_pass=config.tokens_per_pass, precision=config.precision,
            processes=self.processes,
        )  # fmt: skip

    def describe(self, indices: np.ndarray) -> str:
        rows = self.data.source_rows[indices]
        shown = ", ".join(str(int(row)) for row in rows[:8])
        return f"rows {shown}{f' and {len(rows) - 8} more' if len(rows) > 8 else ''}"

    def identity(self) -> dict[str, Any]:
        return {"data": content_hash(self.data), "layout": self.layout}


class PreferenceWork(ExampleWork):
    """A preference loss on pairs: two completions per prompt, and the reference's log-probs of both."""

    def __init__(
        self,
        data: TokenData,
        held: TokenData | None,
        loss: Callable[[PairScores], Tensor],
        beta: float,
        reference: np.ndarray,
        held_reference: np.ndarray | None,
        config: DPOConfig,
        layout: Layout,
        reference_name: str,
        processes: Processes = ALONE,
        *,
        begins_at_reference: bool = False,
    ) -> None:
        super().__init__(data, held, config, layout, processes)
        self.pair_loss, self.beta = loss, beta
        self.reference, self.held_reference, self.reference_name = reference, held_reference, reference_name
        self.is_at_reference = begins_at_reference  # until the first evaluation, which comes before the first step

    def size(self, indices: np.ndarray) -> float:
        return float(len(indices))

    def loss(self, scorer: nn.Module, indices: np.ndarray, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.batch(indices, device)
        with autocast(device, self.config.precision):
            token_logps = scorer(batch)
        losses, scores = self.pair_losses(token_logps, batch, indices)
        metrics = pair_metrics(scores, losses, self.beta)
        return (losses * batch.weights).sum(), {name: value.sum() for name, value in metrics.items()}

    def pair_losses(self, token_logps: Tensor, batch: Batch, indices: np.ndarray) -> tuple[Tensor, PairScores]:
        """The loss of each pair of a run, (B,), and what it was computed from."""
        policy = sum_per_sequence(token_logps, batch)  # (B, 2), float32: bf16 sums drift on long replies
        reference = torch.from_numpy(self.reference[indices]).to(policy.device)
        lengths = batch.lengths.float()
        scores = PairScores(*policy.unbind(1), *reference.unbind(1), *lengths.unbind(1))
        return self.pair_loss(scores), scores

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], tuple[float, ...]]:
        if self.held is None or self.held_reference is None:
            return {}, ()
        logps = self.held_reference if self.is_at_reference else self.score_held(model, self.held)
        self.is_at_reference = False
        result = evaluate_scores(
            pair_scores_of(logps, self.held_reference, self.held), self.pair_loss, self.beta, self.held
        )
        return result.metrics, tuple(result.table["margin"].tolist())

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"reference": self.reference_name}


def content_hash(data: TokenData) -> str:
    """SHA-256 over token ids, bounds and weights, as hex: two data sets with the same hash train alike."""
    digest = hashlib.sha256()
    for array, kind in ((data.ids, "<i4"), (data.bounds, "<i8"), (data.weights, "<f4")):
        for part in parts(array):
            digest.update(np.ascontiguousarray(part, kind).tobytes())
    return digest.hexdigest()


def _reference_logps(
    model: nn.Module,
    data: TokenData,
    config: DPOConfig,
    layout: Layout,
    cache: ReferenceCache | None,
    progress: Callable[[int, int], None] | None,
    processes: Processes,
) -> np.ndarray:
    if not config.dropout:
        disable_dropout(model)
    options: dict[str, Any] = {
        "layout": layout,
        "precision": config.precision,
        "tokens_per_pass": config.tokens_per_pass,
        "processes": processes,
    }
    if cache is not None:
        return cache.logps(model, data, progress=progress, **options).values
    return score(model, data, **options)


def _tokens(rows: Rows, tokenizer: Any, config: TrainingConfig, tokenize: Callable[..., Any], name: str) -> TokenData:
    data = rows if isinstance(rows, TokenData) else tokenize(rows, tokenizer, max_length=config.max_length)[0]
    if len(data) == 0:
        raise ValueError(f"{name} holds no usable rows; look at the report that load_preferences logged")
    return data


def _check_fit(model: nn.Module, data: TokenData | None, name: str) -> None:
    """Every token needs an embedding, and every position a row where positions are a table."""
    if data is None:
        return
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
    largest = max(int(part.max()) for part in parts(data.ids))
    if largest >= rows:
        raise ValueError(
            f"token id {largest} has no embedding: the model has {rows}; tokenise {name} with this model's tokenizer"
        )
    check_length(model, data.longest(), name)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
