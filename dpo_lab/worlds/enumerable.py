"""A real transformer in a finite world: so few possible responses that all of them are scored, every time.

The bridge between the tables of `tabular.py` and language models. The policy is a transformers Llama; its responses
up to a length are listed, so log π(y|x), KL, π*, and the expected loss are exact for a neural policy too. The reward
is a rule that a reader can check by eye. What is trained for is passed in, as in `learning.py`: no DPO loss here.

    world = enumerable_world()
    policy = world.new_policy()
    dpo = LOSSES["dpo"].bind(beta=0.5)
    exact = all_comparisons(world.table)
    for point in train_policy(world, policy, lambda logps: expected_loss(world.table, logps, dpo, exact)):
        ...  # total_variation(point.logps, optimal_logps(world.table, 0.5)) falls below 0.01

X prompts, Y responses, L the longest response in tokens, V tokens in the alphabet. Logs are in nats.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dpo_lab.worlds.learning import one_thread
from dpo_lab.worlds.tabular import World

END = "."
"""The one special token, id 0: it begins every prompt and ends every response, as in GPT-2."""


# All responses, and their log-probabilities.


def enumerate_responses(letters: str, max_length: int) -> tuple[str, ...]:
    """Every response of at most `max_length` tokens, short ones first: "." "a." "b." "aa." … "aaaa" "aaab" …

    A character is a token. A response of `max_length` letters was cut off and has no end token, as when sampling stops
    at `max_new_tokens`. No response is the beginning of another and every text begins with one of them, so their
    probabilities sum to 1 for any model over this alphabet. Σ_{k<L} A^k + A^L responses for A letters.
    """
    if not letters or END in letters or len(set(letters)) < len(letters):
        raise ValueError(f"letters must be distinct and without {END!r}, got {letters!r}; 'abc' is the usual choice")
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1 token, got {max_length}; 3 or 4 can still be enumerated")
    ended = ("".join(text) + END for k in range(max_length) for text in itertools.product(letters, repeat=k))
    cut = ("".join(text) for text in itertools.product(letters, repeat=max_length))
    return (*ended, *cut)


class ResponseTree:
    """The responses over some letters, laid out for one forward pass over the longest prefixes.

    Every response is a path from the root; the paths of L − 1 letters cover all of them, so their A^(L−1) rows, not Y,
    go through the model for each prompt. Nothing is padded.
    """

    def __init__(self, letters: str, max_length: int) -> None:
        self.letters, self.max_length = letters, max_length
        self.responses = enumerate_responses(letters, max_length)
        self.prefixes = torch.stack(
            [self.encode("".join(text)) for text in itertools.product(letters, repeat=max_length - 1)]
        )  # (R, L − 1)
        filled = [self.encode(text.ljust(max_length, END)) for text in self.responses]
        self.tokens = torch.stack(filled)  # (Y, L)
        self.lengths = torch.tensor([len(text) for text in self.responses])  # (Y,)
        self.is_scored = torch.arange(max_length) < self.lengths[:, None]  # (Y, L)
        # Any row that begins with the response's letters serves; filling up with the first letter names one.
        row_of = {"".join(text): row for row, text in enumerate(itertools.product(letters, repeat=max_length - 1))}
        self.rows = torch.tensor(
            [row_of[text.rstrip(END).ljust(max_length - 1, letters[0])[: max_length - 1]] for text in self.responses]
        )  # (Y,)

    def encode(self, text: str) -> Tensor:
        """Token ids, one per character: 0 is the end token, then the letters in order. (len(text),)"""
        alphabet = END + self.letters
        if unknown := set(text) - set(alphabet):
            raise ValueError(f"text must be over {alphabet!r}, got {text!r}; leave out {sorted(unknown)}")
        return torch.tensor([alphabet.index(letter) for letter in text], dtype=torch.long)


def response_logps(model: PreTrainedModel, prompts: Sequence[str], tree: ResponseTree) -> Tensor:
    """log π(y|x) of every response to every prompt, differentiable. (X, Y) float64

    Sums the log-probabilities of a response's tokens, its end token included unless it was cut off. exp sums to 1
    over y. Prompts must be equally long.
    """
    if len({len(prompt) for prompt in prompts}) != 1:
        raise ValueError(
            f"prompts must be equally long, got {list(prompts)!r}; without padding, nothing has to be masked"
        )
    starts = torch.stack([tree.encode(END + prompt) for prompt in prompts])  # (X, S)
    num_prompts, num_rows = len(starts), len(tree.prefixes)
    ids = torch.cat(
        [starts.repeat_interleave(num_rows, 0), tree.prefixes.repeat(num_prompts, 1)], dim=1
    )  # (X·R, S + L − 1)
    # The logits at t score the token at t + 1: from the prompt's last token on.
    logits = model(input_ids=ids, use_cache=False).logits[:, starts.shape[1] - 1 :]  # (X·R, L, V)
    # float64, so that what is enumerated sums to 1 to twelve digits.
    steps = logits.double().log_softmax(-1).unflatten(0, (num_prompts, num_rows))[:, tree.rows]  # (X, Y, L, V)
    tokens = tree.tokens.expand(num_prompts, -1, -1)[..., None]
    return (steps.gather(-1, tokens)[..., 0] * tree.is_scored).sum(-1)


# The world.


def reward_parts(prompt: str, response: str) -> dict[str, float]:
    """The true reward, part by part; their sum is r(x, y). The end token counts for nothing.

    `echo`: 1 for every letter that repeats the prompt. `order`: 1 if the letters stand in alphabetical order (no
    letters, no order). `brevity`: −½ for every letter. After the prompt "b", the best responses are "bb" and longer.
    """
    letters = response.rstrip(END)
    return {
        "echo": float(letters.count(prompt)),
        "order": float(letters != "" and list(letters) == sorted(letters)),
        "brevity": -0.5 * len(letters),
    }


def habit_probs(tree: ResponseTree, prompts: Sequence[str]) -> Tensor:
    """What the reference is trained on: a writer with habits of its own, which are not the reward's. (X, Y)

    At each place it stops with probability 0.3; otherwise the letter that follows the last one in the alphabet (after
    the last comes the first) is three times as likely as each other letter.
    """

    def probability(prompt: str, response: str) -> float:
        result, last = 1.0, prompt[-1]
        for token in response:
            if token == END:
                return result * 0.3
            follower = tree.letters[(tree.letters.index(last) + 1) % len(tree.letters)]
            result *= 0.7 * (3 if token == follower else 1) / (len(tree.letters) + 2)
            last = token
        return result

    return torch.tensor([[probability(x, y) for y in tree.responses] for x in prompts], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class EnumerableWorld:
    """A finite world whose reference is a transformer. Build one with `enumerable_world`."""

    table: World
    """Rewards, π_ref, and names, for everything in `tabular.py`, `comparisons.py` and `learning.py`."""
    reference: LlamaForCausalLM
    """The model that π_ref was read from; frozen."""
    tree: ResponseTree
    """All responses."""

    def logps(self, policy: PreTrainedModel) -> Tensor:
        """log π(y|x) of every response, differentiable. (X, Y) float64"""
        return response_logps(policy, self.table.prompts, self.tree)

    def new_policy(self) -> LlamaForCausalLM:
        """A trainable copy of the reference, where DPO starts."""
        return copy.deepcopy(self.reference).requires_grad_(True)


def enumerable_world(
    seed: int = 0, *, letters: str = "abc", max_length: int = 3, hidden_size: int = 32, num_layers: int = 2
) -> EnumerableWorld:
    """One prompt per letter, all responses over the letters, a Llama of 21,000 parameters that learnt `habit_probs`.

    40 responses to each prompt by default, and half a second to build; `max_length=4` has 121, and takes twice as long.
    """
    tree, prompts = ResponseTree(letters, max_length), tuple(letters)
    model = _small_llama(len(letters) + 1, hidden_size, num_layers, torch.Generator().manual_seed(seed))
    habit = habit_probs(tree, prompts)
    for _ in _train(model, prompts, tree, lambda logps: -(habit * logps).sum(-1).mean(), steps=100, learning_rate=1e-2):
        pass
    model.requires_grad_(False)
    table = World.from_tables(
        [[sum(reward_parts(x, y).values()) for y in tree.responses] for x in prompts],
        response_logps(model, prompts, tree).exp(),
        lengths=tree.lengths.expand(len(prompts), -1),
        prompts=prompts,
        responses=[tree.responses] * len(prompts),
    )
    return EnumerableWorld(table, model, tree)


def _small_llama(vocab_size: int, hidden_size: int, num_layers: int, generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator; leave it as it was
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:  # the norms' gains stay 1
                weight.normal_(0.0, config.initializer_range, generator=generator)
    return model.eval()


# Training on exact quantities.


class PolicyPoint(NamedTuple):
    """Where a policy stands before a step of training."""

    step: int
    loss: float
    logps: Tensor
    """log π(y|x) of every response. (X, Y), detached"""


def train_policy(
    world: EnumerableWorld,
    policy: PreTrainedModel,
    function: Callable[[Tensor], Tensor],
    *,
    steps: int = 1000,
    learning_rate: float = 1e-2,
) -> Iterator[PolicyPoint]:
    """Change `policy` in place to make `function(logps)` small: Adam, a cosine to zero. Yields `steps` + 1 points.

    `function` is any scalar of the (X, Y) log-probabilities: `expected_loss` with exact or sampled comparisons (DPO),
    minus `objective` (RLHF), a cross-entropy (SFT). With few comparisons the policy comes near π* early and then
    leaves it for what the sample says, so watch the stream and not only its end. Raises RuntimeError where the loss
    is no longer finite.
    """
    if steps < 0 or not 0 < learning_rate < math.inf:
        raise ValueError(f"steps must be >= 0 and learning_rate positive, got {steps} and {learning_rate}; "
                         "1000 and 1e-2 reach π* with exact preferences")  # fmt: skip
    return _train(policy, world.table.prompts, world.tree, function, steps=steps, learning_rate=learning_rate)


def _train(
    policy: PreTrainedModel,
    prompts: Sequence[str],
    tree: ResponseTree,
    function: Callable[[Tensor], Tensor],
    *,
    steps: int,
    learning_rate: float,
) -> Iterator[PolicyPoint]:
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    for step in range(steps + 1):
        with one_thread():
            logps = response_logps(policy, prompts, tree)
            loss = function(logps)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss became {loss.item()} at step {step}; a smaller learning_rate usually helps")
        yield PolicyPoint(step, loss.item(), logps.detach())
        if step < steps:
            optimizer.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            with one_thread():
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
