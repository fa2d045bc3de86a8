"""Answers sampled token by token, many at once, by the model's own layers over a store of keys and values.

A prompt goes through the model once, whatever the number of its answers: prompts of any lengths stand in one row
without padding, as shared rows do. After that the model gets a row of n tokens at every step, the last of each of n
answers; its attention is replaced by one that writes each token's key and value into the store, in place, and attends
to those of the token's own answer. An answer that has ended leaves the store, and a waiting one enters.

n answers at a time, V vocabulary, H heads, H_kv heads of keys, d their width, L places for an answer and its prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, GenerationConfig, LogitsProcessorList
from transformers.masking_utils import sdpa_mask

from dpo_lab.batching import Spans
from dpo_lab.engine.attention import can_share, shared_attention
from dpo_lab.engine.paths import sliding_window
from dpo_lab.engine.two_halves import has_steady_rotations
from dpo_lab.models.inside import in_precision

SAMPLING_ATTENTION = "sampling"
PROMPT_TOKENS = 8192
"""Most tokens of prompts that go through the model at once, where there is more than one prompt."""

logger = logging.getLogger("dpo_lab")

_REASONS: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_TOLD: WeakSet[nn.Module] = WeakSet()
_TOLERANCE = 1e-3  # nats per token in float32; a wrong place in the store is off by far more


@dataclass
class Answer:
    """One answer: which it is, its random numbers in [0, 1), one per token, and its tokens with their log-probs."""

    prompt: int
    sample: int
    uniforms: np.ndarray  # (most tokens,), float32
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Store:
    """Keys and values of n answers in every attention layer, (size, H_kv, L, d) each; answer i stands in place i."""

    def __init__(self, size: int, length: int) -> None:
        self.size, self.length = size, length
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def layer(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; key and value (1, H_kv, T, d) say how wide they are."""
        if module not in self.layers:
            # Zeros, for a place that was never written is masked and not left out: a NaN there would count.
            empty = lambda x: x.new_zeros(self.size, x.shape[1], self.length, x.shape[3])
            self.layers[module] = empty(key), empty(value)
        return self.layers[module]

    def move(self, places: Sequence[int], to: Sequence[int]) -> None:
        """Copy whole answers to other places."""
        if len(to):
            for layer in self.layers.values():
                for x in layer:
                    x[list(to)] = x[list(places)]


@dataclass
class PromptPass:
    """Prompts go through the model: (start, end) of each in the row; `kept` gets keys and values of all of them."""

    spans: Spans
    kept: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        self.kept[module] = key, value
        return shared_attention(module, query, key, value, None, spans=self.spans, **options)[0]


@dataclass
class TokenPass:
    """One token of each answer goes through the model: where in the store it comes, (n,), and what it sees, (n, W)."""

    store: Store
    positions: Tensor
    mask: Tensor

    @classmethod
    def at(cls, store: Store, positions: Tensor, dtype: torch.dtype) -> TokenPass:
        width = int(positions.max()) + 1
        is_hidden = torch.arange(width, device=positions.device) > positions[:, None]
        return cls(store, positions, torch.zeros_like(is_hidden, dtype=dtype).masked_fill_(is_hidden, -torch.inf))

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        """query (1, H, n, d), key and value (1, H_kv, n, d) → (1, n, H, d)."""
        (_, num_heads, n, _), num_groups, width = query.shape, key.shape[1], self.mask.shape[1]
        keys, values = self.store.layer(module, key, value)
        places = torch.arange(n, device=key.device)
        keys[places, :, self.positions] = key[0].transpose(0, 1)
        values[places, :, self.positions] = value[0].transpose(0, 1)
        # The heads that share a head of keys are queries of one attention: nothing is repeated.
        query = query[0].transpose(0, 1).reshape(n, num_groups, num_heads // num_groups, -1)
        output = F.scaled_dot_product_attention(
            query, keys[:n, :, :width], values[:n, :, :width], attn_mask=self.mask[:, None, None],
            scale=options.get("scaling"),
        )  # fmt: skip
        return output.reshape(1, n, num_heads, -1)


def sampling_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    step: PromptPass | TokenPass | None = None, spans: Spans | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What the layers call, by way of transformers' registry. Without `step` it is the attention of shared rows."""
    if step is None:
        return shared_attention(module, query, key, value, attention_mask, dropout, spans=spans, **options)
    for name in ("softcap", "s_aux"):
        if options.get(name) is not None:
            raise ValueError(f"this attention has no {name}")
    return step.attend(module, query, key, value, scaling=options.get("scaling")), None


AttentionInterface.register(SAMPLING_ATTENTION, sampling_attention)
AttentionMaskInterface.register(SAMPLING_ATTENTION, sdpa_mask)


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], *, temperature: float, top_p: float,
    ends: Sequence[int], batch_size: int, precision: str,
) -> None:  # fmt: skip
    """Sample the tokens of `answers` into them, each until one of `ends` or until its random numbers are used up.

    model: a transformers model in evaluation mode. Answers of one prompt stand side by side, prompts in the order of
    their lengths. At most `batch_size` answers are worked on at a time. Where a model cannot be sampled over a store,
    transformers' own `generate` does it, with the same random numbers. precision: "bfloat16" works with a copy of the
    weights. Raises FloatingPointError where probabilities are no numbers.
    """
    reason = why_plain(model, max(len(prompts[answer.prompt]) + len(answer.uniforms) for answer in answers))
    if reason and model not in _TOLD:
        logger.warning("answers are sampled by transformers' own loop, which takes longer: %s", reason)
        _TOLD.add(model)
    used = in_precision(model, torch.bfloat16) if precision == "bfloat16" else model
    way = _sample_plainly if reason else _sample_over_store
    way(used, prompts, answers, _Choice(temperature, top_p, frozenset(ends)), batch_size)


@dataclass(frozen=True)
class _Choice:
    temperature: float
    top_p: float
    ends: frozenset[int]

    def draw(self, answers: Sequence[Answer], logits: Tensor) -> Tensor:
        """The next token of each answer, (n,), from its logits (n, V); those that have ended stay as they are."""
        numbers = [answer.uniforms[min(len(answer.ids), len(answer.uniforms) - 1)] for answer in answers]
        uniforms = torch.from_numpy(np.array(numbers)).to(logits.device)
        tokens, logps = choose(logits.float(), uniforms, self.temperature, self.top_p)
        for answer, token, logp in zip(answers, tokens.tolist(), logps.tolist(), strict=True):
            if not self.is_over(answer):
                answer.ids.append(token)
                answer.logps.append(logp)
        return tokens

    def is_over(self, answer: Answer) -> bool:
        return len(answer.ids) == len(answer.uniforms) or (bool(answer.ids) and answer.ids[-1] in self.ends)


def _sample_plainly(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], choice: _Choice, batch_size: int
) -> None:
    """By the model's own `generate`, which is told each token by a processor of logits."""
    device, own = next(model.parameters()).device, model.generation_config
    settings = GenerationConfig(do_sample=False, eos_token_id=sorted(choice.ends) or None, pad_token_id=0)
    model.generation_config = settings  # transformers fills what is unset from here: penalties of the model
    try:
        for num, group in groupby(answers, lambda answer: len(answer.uniforms)):
            settings.max_new_tokens, same = num, list(group)
            for start in range(0, len(same), batch_size):
                part = same[start : start + batch_size]
                rows = [prompts[answer.prompt] for answer in part]
                width = max(map(len, rows))  # padded on the left, so that all prompts end where the answers begin
                ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)

                def only_drawn(_: Tensor, logits: Tensor, part: list[Answer] = part) -> Tensor:
                    tokens = choice.draw(part, logits)
                    return torch.full_like(logits, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

                model.generate(
                    ids,
                    attention_mask=mask,
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([only_drawn]),
                )
    finally:
        model.generation_config = own


def _sample_over_store(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], choice: _Choice, batch_size: int
) -> None:
    device = next(model.parameters()).device
    waiting = list(reversed(answers))
    size = min(batch_size, len(answers))
    active: list[Answer] = []
    store = Store(size, max(len(prompts[answer.prompt]) + len(answer.uniforms) for answer in answers))
    ready: dict[int, tuple[dict, Tensor]] = {}  # prompt → keys and values, and the logits of its first token

    def leave() -> None:
        """Close up: the last answers move to the places of those that have ended."""
        stays = [not choice.is_over(answer) for answer in active]
        num = sum(stays)
        holes = [i for i in range(num) if not stays[i]]
        movers = [i for i in range(num, len(active)) if stays[i]]
        store.move(movers, holes)
        for hole, mover in zip(holes, movers, strict=True):
            active[hole] = active[mover]
        del active[num:]

    with attention(model, SAMPLING_ATTENTION):
        while waiting or active:
            free = size - len(active)
            if waiting and free >= max(
                1, size // 8
            ):  # not one by one: a pass over few tokens costs as much as over many
                rows = [waiting.pop() for _ in range(min(free, len(waiting)))]
                new = dict.fromkeys(answer.prompt for answer in rows if answer.prompt not in ready)
                ready |= compute_prompts(model, {index: prompts[index] for index in new})
                for index, group in groupby(enumerate(rows, len(active)), lambda item: item[1].prompt):
                    places = [place for place, _ in group]
                    for module, pair in ready[index][0].items():
                        for x, kept in zip(store.layer(module, *pair), pair, strict=True):
                            x[places, :, : kept.shape[2]] = kept
                active += rows
                choice.draw(rows, torch.stack([ready[answer.prompt][1] for answer in rows]))
                ready = {index: ready[index] for index in ready if waiting and waiting[-1].prompt == index}
                leave()
                continue
            tokens = torch.tensor([[answer.ids[-1] for answer in active]], device=device)
            positions = [len(prompts[answer.prompt]) + len(answer.ids) - 1 for answer in active]
            choice.draw(active, token_logits(model, store, tokens, torch.tensor(positions, device=device)))
            leave()


def compute_prompts(model: Any, prompts: dict[int, Sequence[int]]) -> dict[int, tuple[dict, Tensor]]:
    """Of each prompt the keys and values in every layer, (1, H_kv, T, d), and the logits behind it, (V,)."""
    found: dict[int, tuple[dict, Tensor]] = {}
    for part in _passes(prompts):
        edges = [0, *accumulate(len(prompts[index]) for index in part)]
        step = PromptPass(tuple((start, start, end) for start, end in pairwise(edges)))
        ids = [token for index in part for token in prompts[index]]
        positions = [i for index in part for i in range(len(prompts[index]))]
        logits = _logits(model, [ids], [positions], step, last=[end - 1 for end in edges[1:]])
        for i, index in enumerate(part):
            cut = slice(edges[i], edges[i + 1])
            kept = {module: (key[:, :, cut], value[:, :, cut]) for module, (key, value) in step.kept.items()}
            found[index] = kept, logits[i]
    return found


def token_logits(model: Any, store: Store, tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits behind one token of each answer: tokens (1, n), positions (n,) → (n, V)."""
    step = TokenPass.at(store, positions, model.dtype)
    return _logits(model, tokens, positions[None], step)


def _logits(model: Any, ids: Any, positions: Any, step: PromptPass | TokenPass, last: Any = None) -> Tensor:
    device = next(model.parameters()).device
    ids, positions = torch.as_tensor(ids, device=device), torch.as_tensor(positions, device=device)
    # A four-dimensional mask is passed on as it is, so no mask is built; the attention has its own.
    mask = ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
    options = {} if last is None else {"logits_to_keep": torch.tensor(last, device=device)}
    output = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, step=step, **options)
    return output.logits[0]


def _passes(prompts: dict[int, Sequence[int]]) -> Iterator[list[int]]:
    part: list[int] = []
    for index, ids in prompts.items():
        if part and sum(len(prompts[i]) for i in part) + len(ids) > PROMPT_TOKENS:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """A token per row of logits (n, V), and its log-prob at temperature 1, both (n,).

    The token is the first one at which the cumulated probability, in the order of the vocabulary, is above the row's
    number in [0, 1). Temperature 0: the likeliest.
    """
    logps = logits.log_softmax(-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        weights = nucleus((logits / temperature).softmax(-1), top_p)
        sums = weights.cumsum(-1)
        if not bool(sums[:, -1].isfinite().all()):
            raise FloatingPointError(
                "the model gives probabilities that are no numbers; look at its weights, they may have diverged in "
                "training"
            )
        tokens = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)[:, 0]
    return tokens, logps.gather(-1, tokens[:, None])[:, 0]


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero but for the likeliest tokens, as few as reach `top_p` together; (n, V)."""
    if top_p == 1:
        return probabilities
    num = probabilities.shape[-1]
    k = min(num, 256)
    while True:  # few tokens hold most of the probability: no need to sort a large vocabulary
        largest, places = probabilities.topk(k)
        sums = largest.cumsum(-1)
        if k == num or bool((sums[:, -1] >= top_p).all()):
            break
        k = min(num, 8 * k)
    kept = largest * (sums - largest < top_p)
    return torch.zeros_like(probabilities).scatter_(-1, places, kept)


# ── which models ─────────────────────────────────────────────────────────────────────────────────────────────────────


def why_plain(model: Any, longest: int) -> str:
    """Why answers of up to `longest` tokens, prompt included, cannot be sampled here; nothing where they can.

    model: a transformers model in evaluation mode. Its values are compared with its own plain ones once.
    """
    window = sliding_window(model.config)
    if window is not None and longest > window:
        return f"it attends to a sliding window of {window} tokens, and an answer with its prompt may have {longest}"
    if model not in _REASONS:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            _REASONS[model] = _try(model)
    return _REASONS[model]


def _try(model: Any) -> str:
    name = type(model).__name__
    if not can_share(model):
        return f"{name} does not take another attention"
    if not has_steady_rotations(model):
        return f"{name} turns its positions by the length of the whole row"
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    ids = np.random.default_rng(0).integers(0, model.get_input_embeddings().weight.shape[0], (2, 8)).tolist()
    lengths = (5, 2)
    tolerance = _TOLERANCE if dtype is torch.float32 else 50 * _TOLERANCE
    try:
        plain = [model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0] for row in ids]
        with attention(model, SAMPLING_ATTENTION):
            prompts = {i: ids[i][: lengths[i]] for i in range(2)}
            store, ready = Store(2, 8), compute_prompts(model, prompts)
            for i, (kept, _) in ready.items():
                for module, pair in kept.items():
                    for x, own in zip(store.layer(module, *pair), pair, strict=True):
                        x[i, :, : own.shape[2]] = own[0]
            logits = [torch.stack([ready[i][1] for i in range(2)])]
            for t in range(3):
                tokens = torch.tensor([[ids[i][lengths[i] + t] for i in range(2)]], device=device)
                positions = torch.tensor([lengths[i] + t for i in range(2)], device=device)
                logits.append(token_logits(model, store, tokens, positions))
        found = torch.stack(logits, 1)  # (2, 4, V)
        expected = torch.stack([row[n - 1 : n + 3] for row, n in zip(plain, lengths, strict=True)])
        is_close = torch.allclose(
            found.float().log_softmax(-1), expected.float().log_softmax(-1), atol=tolerance, rtol=0, equal_nan=True
        )
        return "" if is_close else f"{name} gives other values with a store of keys"
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:  # it cannot take such a row
        logger.debug("sampling over a store fails in %s: %s", name, error)
        return f"{name} gives other values with a store of keys"


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Give a transformers model another attention, and then its own again."""
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
