"""Checks for the derivation and what follows: Z, the reward read back, what cancels or stays open, a KL budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, call, expect, right
from dpo_lab.worlds.comparisons import preference_probs
from dpo_lab.worlds.tabular import (
    World,
    best_objective,
    kitchen_world,
    kl,
    log_partition,
    optimal_logps,
    small_world,
)


def check_two_responses(answer: Callable[..., Any]) -> None:
    """`answer(p, r_a, r_b, beta)` → (Z, π*(a)): a has probability p under the reference, b the rest."""
    for p, r_a, r_b, beta in ((0.2, 1.0, 0.0, 0.5), (0.7, -1.0, 0.5, 2.0), (0.5, 3.0, 1.0, 1.0)):
        found_z, found_a = as_parts(call(answer, p, r_a, r_b, beta), 2, "two numbers, Z and π*(a)")
        where = f"with p = {p}, r_a = {r_a}, r_b = {r_b}, β = {beta}"
        part_a, part_b = p * math.exp(r_a / beta), (1 - p) * math.exp(r_b / beta)
        z = part_a + part_b
        expect(as_number(found_z, f"Z {where}"), z, name=f"Z {where}", instead={
            "Here β multiplies the reward. It divides it: a small β lets the reward speak louder.":
                p * math.exp(r_a * beta) + (1 - p) * math.exp(r_b * beta),
            "Z weighs each response by its probability under the reference; here both count alike.":
                math.exp(r_a / beta) + math.exp(r_b / beta),
            "That is log Z. The exercise asks for Z itself.": math.log(z),
            "β is missing: what is exponentiated is the reward over β.":
                p * math.exp(r_a) + (1 - p) * math.exp(r_b),
            "That is the exponential of the mean reward; Z is the mean of the exponentials.":
                math.exp((p * r_a + (1 - p) * r_b) / beta),
        }, otherwise="Write down Σ π_ref(y)·exp(r(y)/β) for two responses and compare term by term.")  # fmt: skip
        expect(as_number(found_a, f"π*(a) {where}"), part_a / z, name=f"π*(a) {where}", instead={
            "It isn't a probability yet: divide by Z.": part_a,
            "That is the other response's probability.": part_b / z,
            "The reference is missing in the numerator: π* starts from π_ref.": math.exp(r_a / beta) / z,
            "The reference is missing: this is σ((r_a − r_b)/β), right only where p = 1/2.":
                1 / (1 + math.exp((r_b - r_a) / beta)),
        }, otherwise="π*(a) is the share of a's term in Z.")  # fmt: skip
    right("π* is the reference, reweighted by exp(r/β) and divided by the sum of these weights")


def check_recovered_gaps(answer: Callable[..., Any]) -> None:
    """`answer(policy_logps, reference_logps, beta)` (Y,), (Y,) → (Y, Y): r(y_i) − r(y_j), with the policy a π*."""
    world = small_world(3)
    for x, beta in ((0, 0.5), (1, 0.1), (2, 3.0)):
        policy, reference, r = optimal_logps(world, beta)[x], world.reference_logps[x], world.rewards[x]
        found = call(answer, policy.clone(), reference.clone(), beta)
        gap = lambda values: values[:, None] - values[None, :]
        ratio = policy - reference
        expect(found, gap(r), name=f"the table of gaps at β = {beta}", instead={
            "The sign is flipped: row i, column j holds r(y_i) − r(y_j), positive where i is better.": -gap(r),
            "These are differences of log π alone. A response that the reference likes looks better than it is: "
            "take the log-ratio.": beta * gap(policy),
            "β is missing: log-ratios are rewards over β.": gap(ratio),
            "Here β divides. Solve the closed form for r once more and watch on which side β lands.":
                gap(ratio) / beta,
            "These are probabilities' ratios; the reward is in their logarithms.": beta * gap(ratio.exp()),
            "These are preference probabilities. The step before σ is asked for.": gap(r).sigmoid(),
        }, otherwise="r(y) is β·log(π*(y)/π_ref(y)) plus a number that all responses share.")  # fmt: skip
    right("the policy alone tells every difference of rewards, and Z was not needed")


SHIFT, SHIFT_BETA = 3.0, 0.5
"""What the exercise adds to the rewards of the kitchen's first prompt, and its β."""


def check_shift(answer: Mapping[str, Any]) -> None:
    """What changes, and by how much, when 3 is added to all rewards of the kitchen's first prompt, at β = 0.5.

    `answer` has the keys "log Z" (of the first prompt), "J(π*)" (over both), "π*" and "P" (largest absolute change).
    """
    if not isinstance(answer, Mapping):
        raise NotYet(f"The answer should be a dictionary, and is {answer!r}.")
    keys = ("log Z", "J(π*)", "π*", "P")
    if missing := [key for key in keys if key not in answer]:
        raise NotYet(f"The dictionary should have the keys {list(keys)}; {missing} isn't there.")
    world = kitchen_world()
    shifted = world.with_rewards(world.rewards + torch.tensor([[SHIFT], [0.0]], dtype=torch.float64))
    change = {
        "log Z": (log_partition(shifted, SHIFT_BETA) - log_partition(world, SHIFT_BETA))[0],
        "J(π*)": best_objective(shifted, SHIFT_BETA) - best_objective(world, SHIFT_BETA),
        "π*": (optimal_logps(shifted, SHIFT_BETA).exp() - optimal_logps(world, SHIFT_BETA).exp()).abs().max(),
        "P": (preference_probs(shifted.rewards) - preference_probs(world.rewards)).abs().max(),
    }
    instead: dict[str, dict[str, Any]] = {
        "log Z": {
            "Rewards enter Z divided by β.": SHIFT,
            "Rewards enter Z divided by β, and here they were multiplied.": SHIFT * SHIFT_BETA,
            "Only the first prompt's log Z is asked for, not the mean over both.": SHIFT / SHIFT_BETA / 2,
            "That is the factor by which Z grows; its logarithm is asked for.": math.exp(SHIFT / SHIFT_BETA),
            "That is the change with its sign turned: after minus before.": -SHIFT / SHIFT_BETA,
        },
        "J(π*)": {
            "J is a mean over prompts, and only one of two prompts was shifted.": SHIFT,
            "That is the change of the mean of log Z; J(π*) is β times that.": SHIFT / SHIFT_BETA / 2,
            "That is the change of one prompt's log Z; J(π*) is β times its mean over prompts.": SHIFT / SHIFT_BETA,
            "The policy stays, but what it earns does not.": 0.0,
        },
        "π*": {"A larger weight for every response, and the same larger Z: what is left of that?": None},
        "P": {"P sees the rewards of one prompt only as a difference. What does the shift do to that?": None},
    }
    for key in keys:
        found = as_number(answer[key], f'"{key}"')
        usual = {message: wrong for message, wrong in instead[key].items() if wrong is not None}
        hint = next((m for m, wrong in instead[key].items() if wrong is None), "Compute it before and after the shift.")
        expect(found, change[key], name=f'the change of "{key}"', instead=usual, otherwise=hint, atol=1e-9)
    right("a shift of a whole prompt moves Z and J, and neither π* nor any preference")


def check_open_numbers(answer: Callable[..., Any]) -> None:
    """`answer(num_answers, pairs)` → how many numbers of a policy stay open where only these pairs were compared."""
    for num, pairs, groups in (
        (4, [(0, 1), (1, 2)], 2), (4, [(0, 1), (2, 3)], 2), (5, [(0, 1), (1, 2), (2, 0)], 3), (3, [], 3),
        (4, [(3, 2), (1, 0), (2, 1)], 1),
    ):  # fmt: skip
        where = f"what {pairs} leaves open of {num} responses"
        in_no_pair = num - len({y for pair in pairs for y in pair})
        expect(as_number(call(answer, num, list(pairs)), where), groups - 1, name=where, instead={
            "That is the number of groups. One group alone determines the policy: what is open then?": groups,
            "That counts the responses in no pair. Two pairs without a common response leave a number open, too.":
                in_no_pair,
            "Here every pair fixes a number of its own. Does one add anything where a chain joins its two responses?":
                num - 1 - len(pairs),
        }, otherwise="Merge the groups of two responses that were compared, and count the groups.")  # fmt: skip
    right("comparisons determine a policy only where chains of them join all of its responses")


def check_beta_for_kl(answer: Callable[..., Any]) -> None:
    """`answer(world, budget)` → the β at which E KL(π*‖π_ref) is `budget` nats."""
    for world, budget in ((kitchen_world(), 0.1), (kitchen_world(), 1.0), (small_world(1), 0.4)):
        beta = as_number(call(answer, world, budget), "β")
        where = f"β = {beta:.4g} for a budget of {budget} nats"
        if not beta > 0:
            raise NotYet(f"{where}: β must be positive. Search between two positive numbers, such as 0.01 and 100.")
        spent = _spent(world, beta)
        if math.isclose(spent, budget, rel_tol=2e-3):
            continue
        reversed_kl = float(world.mean(kl(world.reference_logps, optimal_logps(world, beta))))
        total = float(kl(optimal_logps(world, beta), world.reference_logps).sum())
        if math.isclose(reversed_kl, budget, rel_tol=2e-3):
            raise NotYet(f"{where} spends it on KL(π_ref‖π*). The objective charges for KL(π*‖π_ref).")
        if math.isclose(total, budget, rel_tol=2e-3):
            raise NotYet(f"{where} makes the sum over prompts fit. The budget is for the mean: world.mean.")
        which = "too much: a larger β spends less" if spent > budget else "too little: a smaller β spends more"
        raise NotYet(f"{where} spends {spent:.4g} nats, {which}. If your search ends at a border, do the two halves "
                     "of the interval have the right sides? KL falls as β grows.")  # fmt: skip
    right("a KL budget fixes β, and the β that fits it differs from world to world")


def _spent(world: World, beta: float) -> float:
    return float(world.mean(kl(optimal_logps(world, beta), world.reference_logps)))
