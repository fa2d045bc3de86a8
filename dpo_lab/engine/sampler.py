"""Answers sampled token by token, many at once. Knows no tokenizer and no texts.

A prompt is computed once, whatever the number of its answers. An answer that has ended leaves the store of keys
(`engine.key_store`), and a waiting one enters. Each answer has random numbers of its own, so its tokens do not depend
on what else is sampled. n answers at a time, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from threading import Event
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from dpo_lab.engine.key_store import (
    ComputedPrompt,
    Store,
    attends_to_store,
    compute_prompts,
    token_logits,
    why_not_stored,
)
from dpo_lab.engine.two_halves import two_threads
from dpo_lab.models.inside import in_precision

LOGITS_IN_CACHE = 2**18
"""Most logits that a CPU works on at a time: each step of a softmax finds in its cache what the last one wrote."""

FEWEST_HALVED = 128
"""From so many answers at a time, each of two threads samples half. Each reads all weights for itself, which fewer
answers do not pay for."""

logger = logging.getLogger("dpo_lab")

_TOLD: WeakSet[nn.Module] = WeakSet()


@dataclass
class Answer:
    """One answer to be sampled; `sample` fills in its tokens and their log-probs."""

    prompt: int  # its place among the prompts
    uniforms: np.ndarray  # random numbers in [0, 1), one for each token that it may have, float32
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # log π(token | prompt, earlier tokens) at temperature 1


@dataclass(frozen=True)
class Choice:
    """How a token is chosen, and where an answer ends."""

    temperature: float
    top_p: float
    ends: frozenset[int]

    def extend(self, answers: Sequence[Answer], logits: Tensor) -> Tensor:
        """Give each answer that has not ended its next token; all tokens, (n,), from logits (n, V)."""
        numbers = [answer.uniforms[min(len(answer.ids), len(answer.uniforms) - 1)] for answer in answers]
        uniforms = torch.from_numpy(np.array(numbers)).to(logits.device)
        tokens, logps = choose(logits, uniforms, self.temperature, self.top_p)
        for answer, token, logp in zip(answers, tokens.tolist(), logps.tolist(), strict=True):
            if not self.has_ended(answer):
                answer.ids.append(token)
                answer.logps.append(logp)
        return tokens

    def has_ended(self, answer: Answer) -> bool:
        """Whether an answer has its end token, or all the tokens that it may have."""
        return len(answer.ids) == len(answer.uniforms) or (bool(answer.ids) and answer.ids[-1] in self.ends)


@torch.no_grad()
def sample(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], choice: Choice,
    *, batch_size: int, precision: str,
) -> None:  # fmt: skip
    """Fill in `answers`, at most `batch_size` at a time.

    model: a transformers model in evaluation mode. prompts: token ids. answers: those of one prompt side by side,
    prompts in the order of their lengths. precision: "bfloat16" works with a copy of the weights.
    Where a model cannot go on from a store, transformers' own `generate` is used, with the same random numbers.
    Raises FloatingPointError where probabilities are no numbers.
    """
    with torch.autocast(model.device.type, enabled=False):
        reason = why_not_stored(model, max(len(prompts[answer.prompt]) + len(answer.uniforms) for answer in answers))
        used = in_precision(model, torch.bfloat16) if precision == "bfloat16" else model
        if reason:
            if model not in _TOLD:
                logger.warning("answers are sampled by transformers' own loop, which takes longer: %s", reason)
                _TOLD.add(model)
            return _sample_plainly(used, prompts, answers, choice, batch_size)
        with attends_to_store(used):
            threads, is_over = two_threads(used, used.device), Event()
            if threads is None or min(len(answers), batch_size) < FEWEST_HALVED:
                return _sample_from_store(used, prompts, answers, choice, batch_size, is_over)
            work = zip(_halves(answers), (batch_size - batch_size // 2, batch_size // 2), strict=True)
            threads.map(lambda half: _sample_from_store(used, prompts, half[0], choice, half[1], is_over), list(work))
    return None


def _halves(answers: Sequence[Answer]) -> tuple[list[Answer], list[Answer]]:
    """Every other prompt with its answers; of a single prompt every other answer."""
    prompts = list(dict.fromkeys(answer.prompt for answer in answers))
    if len(prompts) == 1:
        return list(answers[::2]), list(answers[1::2])
    first = set(prompts[::2])
    return [a for a in answers if a.prompt in first], [a for a in answers if a.prompt not in first]


@torch.no_grad()  # it is a matter of the thread
def _sample_from_store(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], choice: Choice, batch_size: int,
    is_over: Event,
) -> None:  # fmt: skip
    """The loop of one thread: waiting answers enter where there is room, or every active one gets its next token.

    is_over: set where a thread fails or is interrupted; then the other one ends too.
    """
    size = min(batch_size, len(answers))
    store = Store(size, max(len(prompts[answer.prompt]) + len(answer.uniforms) for answer in answers))
    active: list[Answer] = []  # in the order of their places in the store
    computed: dict[int, ComputedPrompt] = {}  # prompts of which some answers have entered and others wait
    num_entered = 0
    try:
        while (num_entered < len(answers) or active) and not is_over.is_set():
            room = min(size - len(active), len(answers) - num_entered)
            if room and (room >= size // 8 or not active):  # not one by one: few tokens take as long as many
                entering = answers[num_entered : num_entered + room]
                num_entered += room
                new = {answer.prompt: prompts[answer.prompt] for answer in entering if answer.prompt not in computed}
                computed |= compute_prompts(model, new)
                for prompt, group in groupby(enumerate(entering, len(active)), lambda item: item[1].prompt):
                    store.enter([place for place, _ in group], computed[prompt])
                active += entering
                choice.extend(entering, torch.stack([computed[answer.prompt].logits for answer in entering]))
                unfinished = {answer.prompt for answer in answers[num_entered : num_entered + 1]}
                computed = {prompt: computed[prompt] for prompt in computed if prompt in unfinished}
            else:
                positions = [len(prompts[answer.prompt]) + len(answer.ids) - 1 for answer in active]
                choice.extend(active, token_logits(model, store, [answer.ids[-1] for answer in active], positions))
            _close_up(store, active, choice)
    except BaseException:
        is_over.set()
        raise


def _close_up(store: Store, active: list[Answer], choice: Choice) -> None:
    """Take out the answers that have ended; the last ones move to their places."""
    stays = [not choice.has_ended(answer) for answer in active]
    num = sum(stays)
    holes = [place for place in range(num) if not stays[place]]
    movers = [place for place in range(num, len(active)) if stays[place]]
    store.move(movers, holes)
    for hole, mover in zip(holes, movers, strict=True):
        active[hole] = active[mover]
    del active[num:]


def _sample_plainly(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Answer], choice: Choice, batch_size: int
) -> None:
    """By the model's own `generate`: a processor of logits tells it each token."""
    own = model.generation_config
    settings = GenerationConfig(do_sample=False, eos_token_id=sorted(choice.ends) or None, pad_token_id=0)
    model.generation_config = settings  # transformers fills what is unset from here: penalties of the model
    try:
        for num, group in groupby(answers, lambda answer: len(answer.uniforms)):
            settings.max_new_tokens, same = num, list(group)
            for start in range(0, len(same), batch_size):
                part = same[start : start + batch_size]
                rows = [prompts[answer.prompt] for answer in part]
                width = max(map(len, rows))  # padded on the left, so that all prompts end where the answers begin
                ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=model.device)
                mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)

                def only_chosen(_: Tensor, logits: Tensor, part: list[Answer] = part) -> Tensor:
                    tokens = choice.extend(part, logits)
                    return torch.full_like(logits, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

                processors = LogitsProcessorList([only_chosen])
                model.generate(ids, attention_mask=mask, generation_config=settings, logits_processor=processors)
    finally:
        model.generation_config = own


def choose(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """A token per row of logits (n, V), and its log-prob at temperature 1 in float32, both (n,).

    The token is the first at which the sum of probabilities, in the order of the vocabulary, is above the row's number
    in [0, 1). At temperature 0 it is the likeliest.
    """
    at_once = max(1, LOGITS_IN_CACHE // logits.shape[-1]) if logits.is_cpu else len(logits)
    chosen, found = [], []
    for part, numbers in zip(logits.split(at_once), uniforms.split(at_once), strict=True):
        logps = part.float().log_softmax(-1)
        if temperature == 0:
            tokens = logps.argmax(-1, keepdim=True)
        else:
            probabilities = logps.exp() if temperature == 1 else (logps / temperature).softmax(-1)
            sums = nucleus(probabilities, top_p).cumsum(-1)
            total = sums[:, -1:]
            if not bool(total.isfinite().all()):
                raise FloatingPointError(
                    "the model gives probabilities that are no numbers; look at its weights, they may have diverged in "
                    "training"
                )
            tokens = torch.searchsorted(sums, numbers[:, None] * total, right=True)
        chosen.append(tokens[:, 0])
        found.append(logps.gather(-1, tokens)[:, 0])
    return torch.cat(chosen), torch.cat(found)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero but for the likeliest tokens, as few as reach `top_p` together: (n, V) → (n, V)."""
    if top_p == 1:
        return probabilities
    num = probabilities.shape[-1]
    k = min(num, 256)
    while True:  # few tokens hold most of the probability, and a large vocabulary need not be sorted
        likeliest, places = probabilities.topk(k)
        sums = likeliest.cumsum(-1)
        if k == num or bool((sums[:, -1] >= top_p).all()):
            break
        k = min(num, 8 * k)
    return torch.zeros_like(probabilities).scatter_(-1, places, likeliest * (sums - likeliest < top_p))
