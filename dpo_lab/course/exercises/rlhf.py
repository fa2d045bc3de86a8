"""Checks for the notebook on DPO against RLHF: KL of samples, RLOO's baseline, best-of-n, rewards at the same KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_parts, call, expect, right


def check_kl_estimate(answer: Callable[..., Any]) -> None:
    """`answer(logps, reference_logps, mask)`, each (A, T), of answers that the policy wrote → KL per answer, in nats.

    mask is True on tokens; what stands behind an answer's end is of no meaning.
    """
    generator = np.random.default_rng(0)
    for lengths in ((3, 1, 4), (2, 5)):
        shape = (len(lengths), max(lengths))
        mask = np.arange(shape[1]) < np.array(lengths)[:, None]
        logps, reference = -generator.exponential(1.0, shape), -generator.exponential(1.5, shape)
        logps[~mask], reference[~mask] = -7.0, 3.0  # a mask that is forgotten shows
        ratios = np.where(mask, logps - reference, 0.0)
        per_answer = ratios.sum(1)
        given = call(answer, logps.copy(), reference.copy(), mask.copy())
        expect(given, per_answer.mean(), name="the estimate", instead={
            "Places behind an answer's end are counted; the mask says which are tokens.":
                (logps - reference).sum(1).mean(),
            "The sign is flipped: what the policy wrote is likelier under the policy.": -per_answer.mean(),
            "That is the mean over tokens; KL of answers adds up an answer's tokens.": ratios.sum() / mask.sum(),
            "That is the sum over all answers; KL is an expectation over them.": ratios.sum(),
            "Single terms may be negative, and must be: it is their mean that isn't.": np.abs(per_answer).mean(),
            "That takes the absolute value of each token's term; their signs belong to the estimate.":
                np.abs(ratios).sum(1).mean(),
            "That leaves the reference out: it is the entropy, with its sign turned.":
                np.where(mask, logps, 0).sum(1).mean(),
        }, otherwise="Add log π − log π_ref over each answer's tokens, then take the mean over answers.")  # fmt: skip
    right("the mean of log π − log π_ref over the policy's own answers is an unbiased estimate of KL(π‖π_ref); the "
          "answers of anyone else would estimate something else")  # fmt: skip


def check_rloo_advantages(answer: Callable[..., Any]) -> None:
    """`answer(rewards, logps, reference_logps, beta)`, (B, K) each → advantages (B, K).

    The penalised reward of each answer less the mean penalised reward of its prompt's other answers.
    """
    generator = np.random.default_rng(1)
    for shape, beta in (((2, 4), 0.5), ((3, 2), 0.2)):
        rewards = generator.normal(0, 1, shape)
        logps, reference = -generator.exponential(3, shape), -generator.exponential(3, shape)
        num = shape[1]

        def against(returns: np.ndarray, *, own: bool = False, num: int = num) -> np.ndarray:
            mean = returns.mean(1, keepdims=True)
            return returns - mean if own else (returns - mean) * num / (num - 1)

        drift = beta * (logps - reference)
        given = call(answer, rewards.copy(), logps.copy(), reference.copy(), beta)
        if np.shape(given) != shape:
            raise NotYet(f"{shape[0]} prompts have {shape[1]} answers each, so advantages have shape {shape}; yours "
                         f"have {np.shape(given)}.")  # fmt: skip
        expect(given, against(rewards - drift), name="the advantages", instead={
            "Both bugs are still there.": against(rewards + drift, own=True),
            "The sign of the KL term is still wrong: drifting must cost.": against(rewards + drift),
            "The answer's own reward is still in its baseline. That turns nothing round, but advantages shrink by "
            "(K − 1)/K: half is lost at K = 2.": against(rewards - drift, own=True),
            "The price of drifting is missing.": against(rewards),
            "β is missing.": against(rewards - drift / beta),
            "The baseline is the mean of rewards without the KL term; take it from the same penalised rewards.":
                rewards - drift - (rewards.sum(1, keepdims=True) - rewards) / (num - 1),
            "That baseline is the mean over all prompts; compare with the same prompt's other answers.":
                rewards - drift - ((rewards - drift).sum() - (rewards - drift)) / (rewards.size - 1),
            "No baseline is taken off.": rewards - drift,
        }, otherwise="R_i = r_i − β(log π − log π_ref); then R_i less the mean of the row's other R_j.")  # fmt: skip
    right("the baseline says how well this prompt goes anyway; the advantages of a prompt add up to 0, so easy prompts "
          "push no harder than difficult ones")  # fmt: skip


def check_best_of_n(answer: Callable[..., Any]) -> None:
    """`answer(probs, rewards, n)`, all answers to one prompt (K,), no two worth the same → best-of-n's (probs, KL).

    The probabilities in the order of the answers, and their KL from `probs` in nats.
    """
    cases = [
        (np.array([0.5, 0.2, 0.3]), np.array([0.0, 2.0, 1.0]), 2),
        (np.array([0.1, 0.4, 0.15, 0.35]), np.array([3.0, -1.0, 0.5, 2.0]), 4),
    ]
    for probs, rewards, n in cases:
        given = call(answer, probs.copy(), rewards.copy(), n)
        given = as_parts(given, 2, "two things, the probabilities and their KL")
        order = np.argsort(rewards)
        upto = np.cumsum(probs[order])
        picked = np.empty_like(probs)
        picked[order] = upto**n - (upto - probs[order]) ** n
        in_order = np.diff(np.concatenate([[0.0], np.cumsum(probs)]) ** n)
        expect(given[0], picked, name="the probabilities", instead={
            "They are in the order of the rewards; give them back in the order of the answers.": picked[order],
            "The answers' order is not that of their rewards: add up from the worst to the best.": in_order,
            "Those are P(≤ r)^n, which grow along the order; take off P(< r)^n.": _scatter(order, upto**n),
            "That is the chance to be drawn at least once; a better answer may be drawn too.": 1 - (1 - probs) ** n,
            "That raises each probability to the power n and divides by the sum: n equal draws.":
                probs**n / (probs**n).sum(),
        }, otherwise="The best of n is worth at most r if all n draws are: P(≤ r)^n. What is left for "
                     "r itself?")  # fmt: skip
        drift = float(np.sum(picked * np.log(picked / probs)))
        expect(given[1], drift, name="the KL", instead={
            "That is log n − (n − 1)/n, what it would be if no answer came twice: an upper bound.":
                np.log(n) - (n - 1) / n,
            "That is KL the other way round: the expectation is over best-of-n's answers.":
                float(np.sum(probs * np.log(probs / picked))),
            "The logarithms' ratio is flipped.": -drift,
            "Weigh each log-ratio with how often best-of-n gives that answer.": float(np.mean(np.log(picked / probs))),
        }, otherwise="Σ q·log(q/p) over the answers, q of best-of-n, p of the model that samples.")  # fmt: skip
    right("where answers repeat, best-of-n goes less far than log n − (n − 1)/n: it can't go beyond the best answer, "
          "whose probability sets the end")  # fmt: skip


def _scatter(order: np.ndarray, values: np.ndarray) -> np.ndarray:
    found = np.empty_like(values)
    found[order] = values
    return found


def check_reward_at_kl(answer: Callable[..., Any]) -> None:
    """`answer(kl, rewards, at)`: a method's settings (S,), in any order → its reward at KL `at`, straight in √KL.

    nan where `at` lies outside of what was run.
    """
    cases = [
        (np.array([4.0, 1.0, 0.0]), np.array([3.0, 2.5, 1.0]), 2.25),
        (np.array([0.0, 0.25, 9.0, 1.0]), np.array([0.0, 1.0, 1.5, 2.0]), 0.64),
    ]
    for kl, rewards, at in cases:
        order = np.argsort(kl)
        wanted = np.interp(np.sqrt(at), np.sqrt(kl[order]), rewards[order])
        nearest = rewards[np.abs(kl - at).argmin()]
        given = call(answer, kl.copy(), rewards.copy(), at)
        expect(given, wanted, name=f"the reward at {at:g}", rtol=1e-4, instead={
            "That is straight in KL itself; the curve bends there, and a chord lies below it.":
                np.interp(at, kl[order], rewards[order]),
            "That is the best reward of all settings: further away it is easy to have more.": rewards.max(),
            "That is the setting next to it; how much nearer is the other one?": nearest,
            "The points must rise along KL for np.interp, and it doesn't complain if they don't.":
                np.interp(np.sqrt(at), np.sqrt(kl), rewards),
        }, otherwise="Sort by KL, take roots of all KLs and of `at`, and interpolate between the "
                     "two neighbours.")  # fmt: skip
    given = call(answer, np.array([0.5, 2.0]), np.array([1.0, 2.0]), 2.5)
    if not np.isnan(np.asarray(given, np.float64)).all():
        raise NotYet(f"No setting went as far as 2.5 nats, and you say {given!r}. np.interp holds on to the last "
                     "value; say nan where nothing was run.")  # fmt: skip
    right("at the same KL two methods are asked the same question; at the same β, or each at its best, they aren't")
