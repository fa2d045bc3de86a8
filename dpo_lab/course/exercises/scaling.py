"""Checks for the notebook on scaling out: means over processes, references under adapters, passes, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_number, call, close, expect, hint_for, right
from dpo_lab.course.speed.scaling import cut_batch, device_memory


def check_global_mean(answer: Callable[..., Any]) -> None:
    """`answer(shares)`, one array of losses per process, of any lengths → the mean loss over all pairs."""
    generator = np.random.default_rng(0)
    cases = [(4, 4), (5, 4), (3, 1, 0), (1, 7, 2, 2)]
    for lengths in cases:
        shares = [generator.gamma(2.0, 0.4, length) for length in lengths]
        given = call(answer, [share.copy() for share in shares])
        everything, means = np.concatenate(shares), [share.mean() for share in shares if len(share)]
        sizes = " + ".join(map(str, lengths))
        with_zeros = [share.sum() / max(len(share), 1) for share in shares]
        expect(given, everything.mean(), name=f"the mean of {sizes} losses", rtol=1e-6, instead={
            "That is the mean of the processes' means: a pair in a short share counts more than one in a long "
            "share.": np.mean(means),
            "A process without a pair took part with a mean of 0; it has nothing to say.": np.mean(with_zeros),
            "That is the sum over the pairs.": everything.sum(),
            "Divide by the pairs, not by the processes.": everything.sum() / len(shares),
        }, otherwise="Add up the losses of all processes, and divide once, by the pairs of all.")  # fmt: skip
    right("each process sends its sum and its count, and one division at the end makes every pair count alike, however "
          "the batch was cut")  # fmt: skip


def check_adapter_margins(answer: Callable[..., Any]) -> None:
    """`answer(base, now, start, beta)` → margins (N,) of pairs under a policy with an adapter.

    base (N, 2): log-probs of chosen and rejected with the adapter off. now, start (N, 2): what the adapter adds to
    them now, and what it added before the first step of DPO.
    """
    generator = np.random.default_rng(1)
    base = generator.normal(-20.0, 4.0, (4, 2))
    now, learnt = generator.normal(0.0, 1.5, (4, 2)), generator.normal(0.0, 1.0, (4, 2))
    gap = lambda values: values[:, 0] - values[:, 1]
    cases = ((np.zeros((4, 2)), 0.5, "a fresh adapter"), (learnt, 0.1, "an adapter that SFT trained"))
    for start, beta, adapter in cases:
        given = call(answer, base.copy(), now.copy(), start.copy(), beta)
        wanted = beta * gap(now - start)
        expect(given, wanted, name=f"margins with {adapter}", instead={
            "Policy and reference are the same numbers, whatever was learnt: the planted bug. The adapter is on "
            "for both.": np.zeros(4),
            "That holds the policy against the base. This adapter did something before the first step, and the "
            "reference is the model as it stood then.": beta * gap(now),
            "β is missing.": gap(now - start),
            "The sign is flipped: the policy less the reference.": -wanted,
            "Those are margins of the policy alone; the reference is missing.": beta * gap(base + now),
            "The log-probs of the base count on both sides and cancel; here they stand on one.":
                beta * gap(now - start - base),
        }, otherwise="β times (chosen less rejected) of log π less log π_ref, with log π_ref as it was at "
                     "the start.")  # fmt: skip
    right("the reference is the model before the first step; with a fresh adapter that is its base, one switch away, "
          "and after SFT in the same adapter it is not")  # fmt: skip


def check_passes(answer: Callable[..., Any]) -> None:
    """`answer(batch_size, num_processes, pairs_per_pass)` → passes that every process makes in a step."""
    for batch_size, num_processes, pairs_per_pass in ((64, 4, 8), (64, 4, 5), (9, 2, 2), (10, 4, 3), (3, 8, 4)):
        given = as_number(call(answer, batch_size, num_processes, pairs_per_pass), "the number of passes")
        wanted = len(cut_batch(batch_size, num_processes, pairs_per_pass)[0])
        if close(given, wanted):
            continue
        share = batch_size // num_processes
        wrong = {
            "The longest share decides, for all meet in each pass; round the share up.": -(-share // pairs_per_pass),
            "The processes share the batch: each has only its part to cut.": -(-batch_size // pairs_per_pass),
            "What is left over needs a pass too: round up.": batch_size // (num_processes * pairs_per_pass),
            "That is a quotient; a pass is made or not made.": batch_size / (num_processes * pairs_per_pass),
        }
        hint = hint_for(given, wrong, "How many pairs has the process with the most, and how many passes does it need "
                                      "for them?")  # fmt: skip
        raise NotYet(f"{batch_size} pairs, {num_processes} processes, {pairs_per_pass} a pass: your function says "
                     f"{given:g}. {hint}")  # fmt: skip
    right(
        "the batch size counts the pairs of all processes, so processes and passes change the time and never the step"
    )


def check_device_bytes(answer: Callable[..., Any]) -> None:
    """`answer(num_weights, num_trained, num_processes, is_split)` → bytes on each device, float32 and Adam."""
    cases = [(1000, 1000, 1, False), (1000, 1000, 4, False), (1000, 1000, 4, True), (1040, 40, 4, False),
             (1040, 40, 4, True)]  # fmt: skip
    for num_weights, num_trained, num_processes, is_split in cases:
        given = call(answer, num_weights, num_trained, num_processes, is_split)
        parts = device_memory(num_weights, num_trained=num_trained, num_processes=num_processes, is_split=is_split)
        how, thrice = "split" if is_split else "whole on each", parts["weights"] + parts["Adam's moments"]
        expect(given, sum(parts.values()),
               name=f"{num_weights} weights, {num_trained} of them trained, {num_processes} devices, {how}: the bytes",
               instead={
            "Without a split every device holds everything.": sum(parts.values()) / num_processes,
            "With a split each device holds its share alone.": sum(parts.values()) * num_processes,
            "Frozen weights have neither a gradient nor moments.": 16 * num_weights / (num_processes**is_split),
            "A trained weight takes 16 bytes: itself, its gradient, two moments. One is missing.": thrice,
            "The frozen weights have to be somewhere too.": 16 * num_trained / (num_processes**is_split),
            "Those are numbers; each takes 4 bytes in float32.": sum(parts.values()) / 4,
        }, otherwise="Which of weight, gradient and two moments does each kind of weight have, and which "
                     "are split?")  # fmt: skip
    right("16 bytes for a weight that is trained and 4 for one that is frozen; more devices help only where they share")
