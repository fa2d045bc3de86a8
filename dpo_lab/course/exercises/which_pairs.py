"""Checks for the notebook on which pairs are worth their price: noise, difficulty, and a comparison with three bugs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_array, as_parts, call, expect, right


def check_noisy_push(answer: Callable[..., Any]) -> None:
    """`answer(margin, share)` → mean of the DPO gradient's weight, signed towards the better answer, (N,)."""
    z, sigmoid = np.array([-2.0, 0.0, 0.4, 3.0]), lambda z: 1 / (1 + np.exp(-z))
    for share in (0.0, 0.2, 0.4):
        expect(call(answer, z.copy(), share), sigmoid(-z) - share, name=f"the push at a share of {share}", instead={
            "A wrong label pulls the other way: its part is subtracted.":
                (1 - share) * sigmoid(-z) + share * sigmoid(z),
            "That is the push of right labels alone. What do the others do?": (1 - share) * sigmoid(-z),
            "The weight of a pair is σ(−z) of its own margin: a right label has z, a wrong one −z.":
                (1 - share) * sigmoid(z) - share * sigmoid(-z),
        }, otherwise="Weigh both kinds of label by how often they come.")  # fmt: skip
    right("a share of wrong labels takes as much from every push, so learning stops at σ(−z) = share, the sooner the "
          "noisier")  # fmt: skip


def check_easy_half(answer: Callable[..., Any]) -> None:
    """`answer(gaps)`, a scout's gaps of N pairs (N,) → places of the half that it ranks best, in their order."""
    gaps = np.array([0.3, -1.2, 2.5, 0.0, 4.0, -0.1, 1.0, -3.0])
    expect(call(answer, gaps.copy()), [0, 2, 4, 6], name="the easy half", instead={
        "That is the half which the scout ranks worst.": [1, 3, 5, 7],
        "These are the right ones, from the easiest on. Keep the order in which they came.": [4, 2, 6, 0],
        "A large gap of the wrong sign is no easy pair: the scout prefers the rejected answer.": [1, 2, 4, 7],
    }, otherwise="Sort by the gap and keep as many as half of them.")  # fmt: skip
    right("difficulty is measured by a policy that has not seen the pairs, and costs no new label")


def check_two_sets(answer: Callable[..., Any]) -> None:
    """`answer(triples, tolerance)`, rewards (P, 3) in any order → two lists of (prompt, chosen, rejected) rewards."""
    triples = np.array([[1.2, 3.0, -0.5], [3.0, 2.8, -1.0], [-1.0, 1.0, 3.0], [0.0, 1.5, 2.8],
                        [3.0, 0.0, -0.2]])  # fmt: skip
    strong, weak = as_parts(call(answer, triples.copy(), 0.25), 2, "two lists, strong and weak")
    strong, weak = as_array(strong, "strong").reshape(-1, 3), as_array(weak, "weak").reshape(-1, 3)
    for name, pairs in (("strong", strong), ("weak", weak)):
        if (pairs[:, 1] <= pairs[:, 2]).any():
            raise NotYet(f"In {name} an answer is chosen over one that is worth more: {pairs.tolist()}.")
    if strong[:, 0].tolist() != weak[:, 0].tolist():
        raise NotYet(f"The sets have other prompts: {strong[:, 0].tolist()} and {weak[:, 0].tolist()}. Then they "
                     "differ in more than the chosen.")  # fmt: skip
    if (np.abs((strong - weak) @ [0, 1, -1]) > 0.25 + 1e-9).any():
        raise NotYet("You keep a prompt whose two gaps differ by more than the tolerance, in whichever direction.")
    if len(strong) < 3:
        raise NotYet(f"You keep the prompts {strong[:, 0].tolist()}; the gaps of others are equal enough too.")
    expect(strong, [[0, 3, 1.2], [2, 3, 1], [3, 2.8, 1.5]], name="strong", otherwise="Best with middle.")
    expect(weak, [[0, 1.2, -0.5], [2, 1, -1], [3, 1.5, 0]], name="weak", otherwise="Middle with lowest.")
    right("the same prompts and the same gaps: whatever differs now comes from the quality of the chosen")
