"""Checks for the notebook on speed: a clock that waits, the useful share of a rate, log-probs in bf16, what fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, call, close, expect, hint_for, right
from dpo_lab.course.speed.simulated_gpu import SimulatedGPU


def check_useful_share(answer: Callable[..., Any]) -> None:
    """`answer(forward_flops, seconds, rate)` → the share of the machine's rate that a training step turns into work.

    forward_flops: operations of one forward pass of each pair of the step, (N,); rate: operations per second.
    """
    for flops, seconds, rate in (
        (np.array([2e9, 3e9, 5e9, 4e9, 1e9]), 0.5, 1e11),
        (np.array([4e11, 1e11, 2.5e11, 2e10]), 0.02, 8e14),
    ):
        total = flops.sum()
        given, useful = call(answer, flops.copy(), seconds, rate), 3 * total / seconds / rate
        expect(given, useful, name="the share", rtol=1e-4, instead={
            "That counts the forward pass alone; backward makes two products for each one of it.":
                total / seconds / rate,
            "That leaves out the forward pass: a step is forward and backward.": 2 * total / seconds / rate,
            "That is of one pair (a mean); the step does all of them.": 3 * flops.mean() / seconds / rate,
            "That is flipped: what was done over what could have been done.": seconds * rate / (3 * total),
            "Those are operations per second; hold them against the machine's rate.": 3 * total / seconds,
            "That multiplies by the seconds: more of them make the share smaller.": 3 * total * seconds / rate,
            "That is a percentage; a share lies between 0 and 1.": 300 * total / seconds / rate,
        }, otherwise="Operations of the whole step, forward and backward, per second, over the rate.")  # fmt: skip
    right("this number compares a laptop with a cluster, and says how much is left to win")


def check_clock(answer: Callable[..., Any]) -> None:
    """`answer(device, repeats)` → milliseconds that one call of `device.launch()` takes the device once it is warm.

    device: a `SimulatedGPU`, with `launch()`, `wait()` and `clock()`. There may be old work in its queue, and its
    first call takes longer.
    """
    for launch, run, first, old, repeats in (
        (1.0, 10.0, 0.0, 0, 8),
        (0.5, 20.0, 300.0, 0, 5),
        (1.0, 12.0, 90.0, 6, 10),
    ):
        device = SimulatedGPU(launch=launch, run=run, first=first)
        for _ in range(old):
            device.launch()
        found = as_number(call(answer, device, repeats), "the time of a call")
        report = f"A call really takes the device {run:g} ms here, and yours says {found:.4g}."
        if len(device.history) == old:
            raise NotYet("Your function never calls `device.launch()`: there is nothing to time.")
        if close(found, launch, rtol=0.02):
            raise NotYet(f"{report} That is the time to write the work down. The clock was read before the device "
                         "was done: wait for it.")  # fmt: skip
        # One launch is seen before the device starts, so a fair mean is at most launch / repeats too long.
        if not run - 1e-6 <= found <= run + launch / repeats + 1e-6:
            if close(found, run + launch, rtol=1e-3):
                raise NotYet(f"{report} You wait after every call, so the program's writing is never hidden behind the "
                             "device's work. Wait once, after the last.")  # fmt: skip
            if close(found, (run + launch / repeats) * repeats, rtol=0.01):
                raise NotYet(f"{report} Those are all {repeats} calls together; the question is about one.")
            if first and found > run + 0.5 * first / repeats:
                raise NotYet(f"{report} The first call of all loads and compiles, once. Is it in your mean?")
            if old and found > run:
                raise NotYet(f"{report} There was work in the queue before you began, and you have timed that too.")
            raise NotYet(f"{report} Warm up, wait, read the clock, call, wait, read the clock.")
    right("the queue must be empty at the first reading and at the second; otherwise the clock times the queueing")


def check_bfloat16_logp(answer: Callable[..., Any]) -> None:
    """`answer(hidden, weight, targets)` → log π of an answer, the sum over its tokens, a float32 tensor or a number.

    hidden (T, D) and weight (V, D) are bfloat16, targets (T,) token ids. The products stay in bfloat16; what comes
    after them must not.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for num_tokens, width, vocabulary in ((60, 64, 800), (200, 32, 300)):
        hidden = torch.randn(num_tokens, width, generator=generator).bfloat16()
        weight = (0.25 * torch.randn(vocabulary, width, generator=generator)).bfloat16()
        targets = torch.randint(0, vocabulary, (num_tokens,), generator=generator)
        pick = lambda logps, targets=targets: logps.gather(-1, targets[:, None])[:, 0]
        logits = hidden @ weight.T
        exact = float(pick(logits.double().log_softmax(-1)).sum())
        whole = float(pick((hidden.double() @ weight.double().T).log_softmax(-1)).sum())
        narrow = pick(logits.log_softmax(-1))
        given = call(answer, hidden.clone(), weight.clone(), targets.clone())
        found = as_number(given, "log π")
        report = f"Your log π is {found:.4f} nats, and it is off by {abs(found - exact):.2g}."
        if abs(found - exact) < 2e-4 * num_tokens**0.5:
            if getattr(given, "dtype", torch.float32) == torch.bfloat16:
                raise NotYet(f"{report} Yet it is a bfloat16 number, and the next sum would round it.")
            continue
        wrong = {
            "The sum was made, or kept, in bfloat16. Between 512 and 1024 its numbers lie 4 nats apart.":
                float(narrow.sum()),
            "The result was rounded to bfloat16, whose numbers lie 4 nats apart between 512 and 1024.":
                float(torch.tensor(exact).bfloat16()),
            "The sum is exact now, and what it adds was already rounded: `.float()` comes too late, after the "
            "log-softmax.": float(narrow.float().sum()),
            "The products ran in float32 too. That is more exact, and gives away the speed: only what comes after "
            "`hidden @ weight.T` has to change.": whole,
            "That is a mean; log π of an answer is the sum over its tokens.": exact / num_tokens,
            "The sign is flipped: a log-prob is negative.": -exact,
        }  # fmt: skip
        otherwise = "Products in bfloat16, then `.float()`, then log-softmax, pick the targets, and sum."
        raise NotYet(f"{report} {hint_for(found, wrong, otherwise)}")
    right("the product may stay in bfloat16; a sum over the vocabulary or over tokens may not")


def check_choice(answer: Callable[..., Any]) -> None:
    """`answer(device_bytes, num_weights, num_adapter, bytes_per_token, longest)` → (what is trained, tokens per pass).

    What is trained: "all weights" where a pass of the `longest` pair fits beside them, else "adapter" where it fits
    beside that, else "nothing", with 0 tokens. A tenth of the device stays free.
    """
    names = ("all weights", "adapter", "nothing")
    for device, weights, adapter, per_token, longest in (
        (20_000, 510, 40, 50, 100), (20_000, 1_000, 40, 50, 100), (20_000, 800, 40, 50, 104),
        (20_000, 3_000, 40, 50, 90), (20_000, 4_000, 40, 50, 40), (20_000, 6_000, 40, 50, 1),
    ):  # fmt: skip
        case = (
            f"{device} bytes, {weights} weights, {adapter} of an adapter, {per_token} bytes a token, longest {longest}"
        )
        given = as_parts(call(answer, device, weights, adapter, per_token, longest), 2, "a name and a number of tokens")
        held = {"all weights": 16 * weights, "adapter": 4 * weights + 16 * adapter}
        room = {name: int((0.9 * device - size) // per_token) for name, size in held.items()}
        wanted = next((name for name in names[:2] if room[name] >= longest), "nothing")
        if given[0] not in names:
            raise NotYet(f"{case}: yours trains {given[0]!r}; say one of {', '.join(map(repr, names))}.")
        if given[0] != wanted:
            late = names.index(given[0]) > names.index(wanted)
            raise NotYet(f"{case}: yours trains {given[0]!r}. " + (
                "More would fit. What does a frozen weight take, and what one that is trained?" if late else
                "That does not fit. Weight, gradient and two moments take 4 bytes each, a tenth of the device stays "
                "free, and the longest pair must go through in one pass."
            ))  # fmt: skip
        tokens = room.get(wanted, 0)
        expect(given[1], tokens, name=f"{case}: the number of tokens", instead={
            "A tenth of the device must stay free.": (device - held.get(wanted, 0)) // per_token,
            "What is held besides the activations is missing.": 0.9 * device // per_token,
            "That is the least that must fit; more tokens in a pass are faster.": longest,
            "Those are bytes; how many tokens fit into them?": 0.9 * device - held.get(wanted, 0),
            "Half a token cannot be computed: round down.": (0.9 * device - held.get(wanted, 0)) / per_token,
        }, otherwise="What is left of nine tenths of the device, over the bytes of a token, rounded down.")  # fmt: skip
    right("weights decide what can be trained, and what is left decides how many tokens go through at once; the batch "
          "size is not in it, since passes add up to the same step")  # fmt: skip
