"""Checks for the notebook on implicit rewards: tokens, calibration, picking answers, and what a mean reward says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_array, as_parts, call, close, expect, hint_for, right


def check_heaviest_token(answer: Callable[..., Any]) -> None:
    """`answer(logps, reference_logps, beta)` of one answer's tokens (T,) → its implicit reward, and its heaviest token.

    The token is the index of the largest |reward|.
    """
    cases = [
        (np.array([-1.0, -2.0, -0.5]), np.array([-1.5, -0.5, -0.75]), 0.5),
        (np.array([-0.1, -3.0, -2.0, -0.2]), np.array([-0.4, -2.5, -6.0, -0.2]), 0.1),
    ]
    for logps, reference, beta in cases:
        given = as_parts(call(answer, logps, reference, beta), 2, "two things, the reward and the index of the token")
        ratios = logps - reference
        expect(given[0], beta * ratios.sum(), name="the implicit reward", instead={
            "β is missing.": ratios.sum(),
            "The sign is flipped: policy minus reference.": -beta * ratios.sum(),
            "That is a mean; the log-prob of an answer is a sum.": beta * ratios.mean(),
            "The reference is missing.": beta * logps.sum(),
        }, otherwise="β times the sum over tokens of log π − log π_ref.")  # fmt: skip
        token = int(as_array(given[1], "the token", ()))
        if token != int(np.abs(ratios).argmax()):
            if token == int(ratios.argmax()):
                raise NotYet(f"Token {token} has the largest reward with its sign; a token can weigh downwards too.")
            if token == int(np.abs(logps).argmax()):
                raise NotYet(f"Token {token} is the least likely one under the policy. Unlikely is not rewarded or "
                             "punished: compare with the reference.")  # fmt: skip
            raise NotYet(f"Token {token} isn't the one with the largest |reward| of this answer.")
    right("an answer's implicit reward is a sum over its tokens, so each token has its share, and often few tokens "
          "have nearly all of it")  # fmt: skip


def check_calibration_error(answer: Callable[..., Any]) -> None:
    """`answer(margins, labels, num_bins)` → Σ_b (n_b/N)·|mean label − mean σ(margin)| over bins of equal width."""
    generator = np.random.default_rng(0)
    margins = np.concatenate([generator.normal(1.5, 2.0, 300), generator.normal(-0.5, 0.2, 40)])
    chances = 1 / (1 + np.exp(-margins))
    labels = generator.random(340) < 1 / (1 + np.exp(-0.4 * margins))
    for num_bins in (10, 5):
        place = np.minimum((chances * num_bins).astype(int), num_bins - 1)
        used = [place == b for b in range(num_bins) if (place == b).any()]
        gaps = np.array([labels[own].mean() - chances[own].mean() for own in used])
        shares = np.array([own.mean() for own in used])
        middles = np.array([(b + 0.5) / num_bins for b in range(num_bins) if (place == b).any()])
        frequencies = np.array([labels[own].mean() for own in used])
        expect(call(answer, margins.copy(), labels.copy(), num_bins), shares @ np.abs(gaps),
               name=f"the error with {num_bins} bins", rtol=1e-4, instead={
            "Every bin counts the same there; weight each by its share of the pairs.": np.abs(gaps).mean(),
            "Gaps of opposite sign cancel: take the absolute value in each bin, before adding.": abs(shares @ gaps),
            "That is the worst bin; the expected error is the mean over pairs.": np.abs(gaps).max(),
            "The sum runs over pairs, so divide by their number.": 340 * (shares @ np.abs(gaps)),
            "Compare with the mean σ(margin) of the bin, not with its middle.": shares @ np.abs(frequencies - middles),
            "That is the mean |label − σ| of single pairs: labels are 0 or 1, only a bin has a share.":
                np.abs(labels - chances).mean(),
        }, otherwise="Bins of equal width in σ(margin) from 0 to 1; of each, the share of labels less the "
                     "mean σ.")  # fmt: skip
    certain = call(answer, np.array([800.0, 800.0, -800.0]), np.array([True, False, False]), 10)
    expect(certain, 1 / 3, name="the error of margins ±800", otherwise="σ = 1 belongs to the last bin, not behind it.",
           rtol=1e-4)  # fmt: skip
    right("a number that says how far σ(margin) is from the share of labels; it is never 0 with few pairs, so compare "
          "it with what chance alone would give")  # fmt: skip


def check_best_answers(answer: Callable[..., Any]) -> None:
    """`answer(logps, reference_logps)`, each (P, K) sums over tokens → the index of the best answer of each prompt."""
    # Chosen so that every usual mistake picks other answers.
    logps = np.array([[-13.0, -7.0, -11.0], [-3.0, -17.0, -9.0], [-18.0, -16.0, -14.0]])
    reference = np.array([[-5.0, -15.0, -1.0], [-11.0, -8.0, -19.0], [-4.0, -18.0, -2.0]])
    given = as_array(call(answer, logps.copy(), reference.copy()), "the answers picked")
    ratios = logps - reference
    if given.shape == ():
        raise NotYet(f"You picked one answer, {int(given)}, out of all of them. Answers to different prompts don't "
                     "compare (Z depends on the prompt): pick one for each.")  # fmt: skip
    if given.shape != (3,):
        raise NotYet(f"There are three prompts, so three indices; yours have shape {given.shape}. Which axis is K?")
    wrong = {
        "Those are the likeliest answers under the policy; the planted bug is the missing reference.": logps.argmax(1),
        "Those are the answers that the policy moved away from most.": ratios.argmin(1),
        "Those are the likeliest answers under the reference.": reference.argmax(1),
        "That looks down the columns: index k of different prompts.": ratios.argmax(0),
    }
    if not close(given, ratios.argmax(1)):
        hint = hint_for(given, wrong, "Which answer of each prompt has the largest log π − log π_ref?")
        raise NotYet(f"You picked {given.astype(int).tolist()}. {hint}")
    right("the implicit reward compares the policy with its reference; log π alone also counts what the reference "
          "finds likely, which helps where the reference is good")  # fmt: skip


def check_mean_rewards(answer: Callable[..., Any]) -> None:
    """`answer(policy, reference, beta)`, probabilities of all answers to one prompt (K,) → two mean implicit rewards.

    The first of answers that the policy writes, the second of answers that the reference writes.
    """
    cases = [(np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5]), 0.5),
             (np.array([0.05, 0.9, 0.05]), np.array([0.4, 0.4, 0.2]), 2.0)]  # fmt: skip
    for policy, reference, beta in cases:
        given = call(answer, policy, reference, beta)
        given = as_parts(given, 2, "two numbers, for the policy's and the reference's answers")
        rewards = beta * np.log(policy / reference)
        means = {"policy": policy @ rewards, "reference": reference @ rewards}
        for name, found, other in (("policy", given[0], "reference"), ("reference", given[1], "policy")):
            expect(found, means[name], name=f"the mean over the {name}'s answers", instead={
                f"That is the mean over the {other}'s answers.": means[other],
                "β is missing.": means[name] / beta,
                "Each answer counts as often as it is written, not once.": rewards.mean(),
                "The sign is flipped: log of policy over reference.": -means[name],
            }, otherwise="Weigh each answer's β·log(π/π_ref) with how often it is written.")  # fmt: skip
    right("the policy's own answers have the mean implicit reward β·KL(π‖π_ref), never negative; the reference's have "
          "−β·KL(π_ref‖π), never positive: whoever drifts rewards itself")  # fmt: skip
