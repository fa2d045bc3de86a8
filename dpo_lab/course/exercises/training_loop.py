"""Checks for 06_training_loop: one step, accumulation over unequal parts, a loop with planted bugs, the warm-up.

The loops are tried on a random Llama of a few thousand weights. Each usual mistake is made here as well, so that an
answer that equals it gets its message. A pair is three lists of token ids, as in `dpo_lab.dpo`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpo_lab.config import SFTConfig
from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, call, close, expect, hint_for, right
from dpo_lab.dpo import Pair, completion_logps
from dpo_lab.loop import Schedule

# One step.


def check_training_step(function: Callable[..., Any]) -> None:
    """`function(policy, reference, optimizer, pairs, beta, max_grad_norm)` → (loss, margin) before the step, floats."""
    beta, max_norm = 0.5, 12.0  # the first norm is below it, the second above
    batches = _batches(4)[:1:-1]  # the fourth and the third

    def steps(take: Callable[..., Any]) -> tuple[nn.Module, Tensor, list[Any]]:
        policy, reference = _small_model(), _other_model()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
        answers = [take(policy, reference, optimizer, pairs, beta, max_norm) for pairs in batches]
        return reference, _weights(policy), answers

    with _generator_put_back():
        reference, weights, answers = steps(lambda *arguments: call(function, *arguments))
        answers = [as_parts(answer, 2, "two numbers, the loss and the margin") for answer in answers]
        if any(isinstance(value, Tensor) and value.requires_grad for answer in answers for value in answer):
            raise NotYet(
                "What it returns still carries the graph of the forward pass. Kept in a list, every step's memory "
                "would stay. Return plain numbers, with .item()."
            )
        if any(parameter.grad is not None for parameter in reference.parameters()):
            raise NotYet(
                "The reference got a gradient. It is frozen: score it under torch.no_grad(), which also saves the "
                "memory of its graph."
            )
        if not torch.equal(_weights(reference), _weights(_other_model())):
            raise NotYet("The weights of the reference have changed. Only the policy is trained.")
        _, expected, right_answers = steps(_step)
        if torch.equal(weights, _weights(_small_model())):
            raise NotYet(
                "Two steps, and no weight has moved. Is optimizer.step() called, after backward() and before the "
                "gradients are cleared?"
            )
        _same_weights(weights, expected, {
            "The second step still holds the first one's gradient: backward() adds to what is there. When are the "
            "gradients cleared?": lambda: steps(_mistaken("keeps gradients"))[1],
            "The step was longer than max_grad_norm allows: is the gradient clipped, and before the step is taken?":
                lambda: steps(_mistaken("no clip"))[1],
            "The policy moves towards the rejected answers. Which column of completion_logps is the chosen answer?":
                lambda: steps(_mistaken("sign"))[1],
            "The reference isn't subtracted: the loss sees log π where it should see log π − log π_ref.":
                lambda: steps(_mistaken("no reference"))[1],
            "The losses of the batch are added up, and their mean is wanted: a batch twice as large would push twice "
            "as hard.": lambda: steps(_mistaken("sum"))[1],
            "β is missing inside σ.": lambda: steps(_mistaken("no beta"))[1],
        }, "After two steps the weights aren't those of forward, loss, backward, clip, step. Print the loss and the "
           "norm of the first step.")  # fmt: skip
        losses, margins = ([as_number(answer[k]) for answer in answers] for k in (0, 1))
        right_losses, right_margins = (np.array([answer[k] for answer in right_answers]) for k in (0, 1))
        expect(losses, right_losses, name="the losses of two steps", rtol=1e-3, atol=1e-4, instead={
            "Those are the margins. The loss comes first.": right_margins,
        }, otherwise="The weights are right: return the loss that backward() was called on.")  # fmt: skip
        expect(margins, right_margins, name="the margins of two steps", rtol=1e-3, atol=1e-4, instead={
            "β is missing: a margin is a difference of implicit rewards, and each of those is β times a log-ratio.":
                right_margins / beta,
            "That is rejected minus chosen.": -right_margins,
        }, otherwise="The weights are right: return the batch's mean of chosen minus rejected reward, each β·(log π − "
                     "log π_ref), from before the step.")  # fmt: skip
    right("forward, loss, backward, clip, step, clear: the weights after two steps are those of dpo_lab.dpo.dpo_step")


def _step(
    policy: nn.Module, reference: nn.Module, optimizer: Any, pairs: list[Pair], beta: float, max_norm: float,
    slip: str = "",
) -> tuple[float, float]:  # fmt: skip
    """One step, with the mistake named `slip` where there is one."""
    with torch.no_grad():
        frozen = completion_logps(reference, pairs)
    logps = completion_logps(policy, pairs)
    chosen, rejected = (logps if slip == "no reference" else logps - frozen).unbind(1)
    margins = {"sign": -beta, "no beta": 1.0}.get(slip, beta) * (chosen - rejected)
    losses = -F.logsigmoid(margins)
    loss = losses.sum() if slip == "sum" else losses.mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), math.inf if slip == "no clip" else max_norm)
    optimizer.step()
    if slip != "keeps gradients":
        optimizer.zero_grad()
    return loss.item(), margins.mean().item()


def _mistaken(slip: str) -> Callable[..., tuple[float, float]]:
    return lambda *arguments: _step(*arguments, slip=slip)


# Accumulation.


def check_accumulation(function: Callable[..., Any]) -> None:
    """`function(parts, losses_of)` → the batch's mean loss; the gradient is left where backward() adds it.

    parts: arrays of indices that together are the batch. `losses_of(part)` runs the model on one: (len(part),) losses.
    """
    generator = np.random.default_rng(0)
    inputs = torch.from_numpy(generator.normal(size=(8, 3)) * np.linspace(0.2, 3.0, 8)[:, None])
    for cut in ((8,), (4, 4), (5, 3), (1, 7), (3, 3, 2)):
        parts = np.split(np.arange(8), np.cumsum(cut)[:-1])
        weights = torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64, requires_grad=True)
        num_backward = 0

        def count(gradient: Tensor) -> Tensor:
            nonlocal num_backward
            num_backward += 1
            return gradient

        weights.register_hook(count)
        losses_of = lambda part, w=weights: F.softplus(-(inputs[part] @ w))
        answer = call(function, parts, losses_of)
        shown = " + ".join(map(str, cut))
        passes = num_backward  # the check's own come on top
        if weights.grad is None:
            raise NotYet("No gradient was left behind: call backward() on what each part contributes.")
        gradients = [torch.autograd.grad(losses_of(part).sum(), weights)[0] for part in parts]  # of each part's sum
        mean_of = [g / len(part) for g, part in zip(gradients, parts, strict=True)]
        total = lambda terms: torch.stack(list(terms)).sum(0)
        num_parts, found, expected = len(parts), weights.grad, total(gradients) / 8
        if not close(found, expected):
            slips = {
                "Every part has the same say, however few pairs it holds: a mean of means. What should each part's sum "
                "be divided by?": total(mean_of) / num_parts,
                "The parts' means were added up: the step grows with the number of parts.": total(mean_of),
                "The sums aren't divided by anything: the step grows with the batch.": total(gradients),
                "It is divided twice: by the size of the batch and by the number of parts.": expected / num_parts,
                "The parts' means are divided by the size of the batch, though they were means already.":
                    total(mean_of) / 8,
                "Only the last part's gradient is left: was something cleared between the parts?": gradients[-1] / 8,
            }  # fmt: skip
            ratio = float(found.norm() / expected.norm())
            hint = hint_for(found, slips, f"It is {ratio:.3g} times as long. Write down what one pair counts in it.")
            raise NotYet(f"A batch of 8 cut into {shown}: the gradient isn't that of the mean over 8 pairs. {hint}")
        if passes < num_parts:
            raise NotYet(
                f"The gradient is right, but {num_parts} parts had {passes} backward pass: all graphs were in "
                "memory at once, and sparing that is what parts are for. Call backward() for each part."
            )
        mean = float(torch.cat([losses_of(part) for part in parts]).detach().mean())
        if isinstance(answer, Tensor) and answer.requires_grad:
            raise NotYet("The loss that it returns still carries a graph. Add up .item() of each part.")
        if not close(as_number(answer, "the loss"), mean):
            raise NotYet(
                f"A batch of 8 cut into {shown}: the gradient is right, and the loss that it returns, "
                f"{as_number(answer):.4f}, isn't the mean over the batch. It is cut as the gradient is."
            )
    right("a pair counts 1/8 however the batch is cut, and only one part's graph is in memory at a time")


# A loop with planted bugs.


def check_repaired_loop(function: Callable[..., Any]) -> None:
    """`function(model, batches)` → the losses of the steps, floats; trains the model in place.

    As planted: Adam at 0.003, β = 0.1, gradients clipped to 1, the reference scored anew at each step from the policy,
    and gradients that are never cleared.
    """
    with _generator_put_back():
        batches = _batches(4)
        model = _small_model()
        answer = call(function, model, batches)
        losses, weights = [as_number(loss, "a loss") for loss in answer], _weights(model)
        if len(losses) != len(batches):
            raise NotYet(f"{len(batches)} batches gave {len(losses)} losses; return one for each step.")
        if torch.equal(weights, _weights(_small_model())):
            raise NotYet(
                "No weight has moved. A reference that carries a gradient takes away exactly what the policy gets; "
                "gradients that are cleared before the step leave nothing to step with."
            )

        def after(slip: str) -> Callable[[], Tensor]:
            def weights_after() -> Tensor:
                model = _small_model()
                _loop(model, batches, slip)
                return _weights(model)

            return weights_after

        expected = _small_model()
        right_losses = _loop(expected, batches)
        shown = ", ".join(f"{loss:.4f}" for loss in losses)
        _same_weights(weights, _weights(expected), {
            f"The losses are {shown}: log 2 at every step, while the weights move. Whatever the policy does, it is "
            "compared with itself. When should the reference be scored? (And that isn't all.)": after("both"),
            f"The losses are {shown}: log 2 at every step, while the weights move. Whatever the policy does, it is "
            "compared with itself. When should the reference be scored?": after("moving reference"),
            "The reference stands still now. But from the second step on the gradient holds those of the steps before: "
            "print its norm at each step.": after("keeps gradients"),
            "Only the first batch's reference was scored in advance, or the batches got each other's: after step 1 the "
            "log-ratios are of different answers.": after("first reference"),
        }, f"The losses are {shown}. The first must be log 2 = 0.6931. Leave optimiser, β and clipping alone, and "
           "look at what is scored when, and at what is cleared when.")  # fmt: skip
        expect(losses, right_losses, name="the losses", rtol=1e-3, atol=1e-4,
               otherwise="The weights are right: return the loss of each step, before the step.")  # fmt: skip
    right("the reference stays where training began, and every step follows its own gradient")


def _loop(model: nn.Module, batches: Sequence[list[Pair]], slip: str = "") -> list[float]:
    """The repaired loop, or one with the mistake named `slip`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    with torch.no_grad():
        references = [completion_logps(model, batch) for batch in batches]
    losses = []
    for i, batch in enumerate(batches):
        logps = completion_logps(model, batch)
        reference = logps.detach() if slip in ("both", "moving reference") else references[i]
        if slip == "first reference":
            reference = references[0]
        ratios = logps - reference
        loss = -F.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if slip not in ("both", "keeps gradients"):
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# The warm-up.


def check_warmup_share(answer: Any) -> None:
    """The share that gives 1,000 pairs, batches of 32 and 5 epochs exactly 30 steps of warm-up: 30 of 160."""
    share = as_number(answer, "the share")
    if share > 1:
        raise NotYet(f"{share:g} is a number of steps, or a percentage. `warmup` is a share and lies between 0 and 1.")
    if share <= 0:
        raise NotYet(f"{share:g} means no warm-up at all. 30 of how many steps?")

    class Epochs:
        def epoch(self, epoch: int) -> list[np.ndarray]:
            return [np.arange(1)] * math.ceil(1000 / 32)

    config = SFTConfig(epochs=5, warmup=share)
    found = Schedule(Epochs(), config)  # pyright: ignore[reportArgumentType]
    if found.num_warmup != 30:
        slips = {
            "That is near. Is the short last batch of each epoch a step of its own in your count?": 30 / 156,
            "30 steps are that share of one epoch, and the run has five.": 30 / 31.5,
            "You divided by the number of pairs; a step takes 32 of them.": 30 / 1000,
            "You divided by the number of pairs of all epochs; a step takes 32 of them.": 30 / 5000,
        }
        hint = hint_for(
            share, slips, "Count the steps of the whole run first: batches per epoch, times epochs.",
            near=lambda one, other: math.isclose(one, other, rel_tol=0.02),
        )  # fmt: skip
        raise NotYet(f"A share of {share:.4g} warms up for {found.num_warmup} of {found.num_steps} steps. {hint}")
    right("160 steps in all, the last batch of an epoch being a short one, and the rate has its peak at step 31")


# What the checks stand on.


def _small_model() -> nn.Module:
    """A random Llama of two narrow layers, the same at every call."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.4, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def _other_model() -> nn.Module:
    """The same architecture with other weights."""
    model = _small_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _batches(num: int) -> list[list[Pair]]:
    """`num` batches of 4 pairs of uneven lengths."""
    generator = np.random.default_rng(1)
    draw = lambda low, high: generator.integers(3, 32, generator.integers(low, high)).tolist()
    return [[(draw(2, 6), draw(2, 5), draw(3, 9)) for _ in range(4)] for _ in range(num)]


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _same_weights(found: Tensor, expected: Tensor, slips: dict[str, Callable[[], Tensor]], otherwise: str) -> None:
    """Raise `NotYet` unless the weights are those; with the message of the slip whose weights they are."""
    near = lambda other: bool(torch.allclose(found, other, atol=2e-5, rtol=1e-4))
    if not near(expected):
        raise NotYet(hint_for(found, slips, otherwise, near=lambda _, weights_after: near(weights_after())))


@contextmanager
def _generator_put_back() -> Iterator[None]:
    """A check must not change what the notebook samples next."""
    with torch.random.fork_rng(devices=[]):
        yield
