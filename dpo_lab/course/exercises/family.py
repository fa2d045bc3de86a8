"""Checks for the notebook on the family: normalisation, one gap for all, votes and smoothing, differences and luck."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import (
    NotYet,
    as_array,
    as_number,
    as_parts,
    call,
    close,
    expect,
    hint_for,
    right,
)


def check_simpo_repair(answer: Callable[..., Any]) -> None:
    """`answer(logp_chosen, logp_rejected, length_chosen, length_rejected, beta, gamma)`, each (B,) → (B,).

    −log σ(β(log π(y_w)/|y_w| − log π(y_l)/|y_l|) − γ). Meng et al. 2024, Eq. 6.
    """
    logps = np.array([[-6.0, -9.0, -30.0, -4.0], [-10.0, -4.0, -8.0, -44.0]])
    lengths = np.array([[4.0, 3.0, 20.0, 2.0], [5.0, 8.0, 4.0, 22.0]])
    own, other = logps / lengths, logps / lengths[::-1]
    cost = lambda margin: np.logaddexp(0, -margin)
    for beta, gamma in ((2.0, 0.5), (5.0, 0.0), (2.0, 1.6)):
        gap = own[0] - own[1]
        wrong = {
            "Both answers are divided by the chosen one's length, so a rejected answer is the worse the longer it is: "
            "that is the planted bug.": cost(beta * (logps[0] - logps[1]) / lengths[0] - gamma),
            "Both answers are divided by the rejected one's length.": cost(beta * (logps[0] - logps[1]) / lengths[1]
                                                                           - gamma),
            "Each answer is divided by the other one's length.": cost(beta * (other[0] - other[1]) - gamma),
            "Those are sums; SimPO compares means per token.": cost(beta * (logps[0] - logps[1]) - gamma),
            "That divides by the mean of the two lengths; each answer has its own.": cost(
                beta * (logps[0] - logps[1]) / lengths.mean(0) - gamma),
            "With β·gap + γ the pair may rest before it is right: γ is a margin to be reached, so it is subtracted.":
                cost(beta * gap + gamma),
            "γ is missing.": cost(beta * gap),
            "γ stands beside β·gap, not inside the bracket with the gap.": cost(beta * (gap - gamma)),
            "That is log σ; the loss has a minus before it.": -cost(beta * gap - gamma),
            "The mean over pairs is for the training loop: return one loss per pair.": cost(beta * gap - gamma).mean(),
        }  # fmt: skip
        given = as_array(call(answer, logps[0], logps[1], lengths[0], lengths[1], beta, gamma), "the loss")
        if given.shape == () and not close(given, cost(beta * gap - gamma).mean()):
            raise NotYet("There are four pairs, so four losses; yours is one number.")
        if given.shape not in ((), (4,)):
            raise NotYet(f"There are four pairs, so four losses; yours have shape {given.shape}.")
        if close(given, cost(beta * gap - gamma)):
            continue
        hint = hint_for(given, wrong, "Nats per token of each answer, their difference, β, γ, and then −log σ.")
        raise NotYet(f"With β = {beta:g} and γ = {gamma:g} the losses are {given.round(4)}, which isn't right. {hint}")
    right("a loss that takes means must not care how long an answer is, only how likely its tokens are; a curve "
          "against the length shows it at once, a curve against the gap never")  # fmt: skip


def check_betas_for_gap(answer: Callable[..., Any]) -> None:
    """`answer(gap, epsilon)` → the β of `ipo` (sums), `hinge`, `cdpo` and `sppo_hard` that stops a pair at that gap."""
    for gap, epsilon in ((5.0, 0.1), (12.0, 0.02), (0.5, 0.3)):
        given = call(answer, gap, epsilon)
        if not isinstance(given, dict) or set(given) != {"ipo", "hinge", "cdpo", "sppo_hard"}:
            raise NotYet(f"Your function gave {given!r}; return a dict with the keys ipo, hinge, cdpo and sppo_hard.")
        logit = math.log((1 - epsilon) / epsilon)
        cases: dict[str, tuple[float, dict[str, float], str]] = {
            "ipo": (1 / (2 * gap), {"IPO's target is 1/(2β), not 1/β.": 1 / gap, "Solve 1/(2β) = h for β.": 2 * gap},
                    "Where is (h − 1/(2β))² zero?"),
            "hinge": (1 / gap, {"The hinge lets go at a margin βh of 1, not of ½.": 1 / (2 * gap),
                                "Solve βh = 1 for β.": gap},
                      "Where does max(0, 1 − βh) become zero?"),
            "cdpo": (logit / gap, {"The sign: (1 − ε)/ε is larger than 1, its logarithm positive.": -logit / gap,
                                   "Solve βh = log((1 − ε)/ε) for β.": gap / logit,
                                   "The logarithm of the odds is missing.": (1 - epsilon) / epsilon / gap,
                                   "1 − ε is the share; its odds are (1 − ε)/ε.": -math.log(1 - epsilon) / gap},
                     "Its slope is zero where σ(βh) = 1 − ε."),
            "sppo_hard": (1 / gap, {"Each of the two answers moves by 1/(2β), one up and one down: the gap is both "
                                    "together.": 1 / (2 * gap), "Solve for β.": gap},
                          "a stops at 1/(2β) and b at −1/(2β). What is a − b?"),
        }  # fmt: skip
        for name, (expected, instead, otherwise) in cases.items():
            expect(as_number(given[name], f"β of {name}"), expected, name=f"β of {name} for {gap:g} nats",
                   instead=instead, otherwise=otherwise)  # fmt: skip
    right("one and the same gap needs four different β. Two losses at one β are no comparison: each has its "
          "own unit")  # fmt: skip


def check_resting_margins(answer: Callable[..., Any]) -> None:
    """`answer(share, epsilon)` → the margins z at which `dpo`, `cdpo` and `robust` rest, as three numbers.

    Of the labels a share says that y_w is better. inf where the loss has no minimum.
    """
    logit = lambda p: math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)
    for share, epsilon in ((0.8, 0.1), (0.7, 0.2), (0.6, 0.1), (1.0, 0.1), (0.9, 0.2), (0.95, 0.0)):
        given = call(answer, share, epsilon)
        given = as_parts(given, 3, "three margins, of dpo, cdpo and robust")
        mixed = share * (1 - epsilon) + (1 - share) * epsilon
        cleaned = (share - epsilon) / (1 - 2 * epsilon)
        expected = [logit(share), logit(mixed), logit(min(1.0, cleaned))]
        wrong = {
            "dpo": {"That is the share itself; the margin is its logit.": share,
                    "The sign: most say that y_w is better.": -expected[0]},
            "cdpo": {"That is where it rests when all labels agree; here some disagree.": logit(1 - epsilon),
                     "Smoothing comes on top of the labels' disagreement: it takes the share towards ½.": expected[0],
                     "That is what robust does; cdpo takes the share towards ½.": expected[2]},
            "robust": {"That is cdpo's: robust takes the share away from ½.": expected[1],
                       "That is dpo's: robust takes the share away from ½.": expected[0],
                       "Divide by 1 − 2ε: a share of 1 − ε means that nobody disagreed.": logit(share - epsilon)},
        }  # fmt: skip
        for name, found, wanted in zip(("dpo", "cdpo", "robust"), given, expected, strict=True):
            found = _margin(found, name)
            if found == wanted or (math.isfinite(wanted) and math.isfinite(found) and close(found, wanted, rtol=1e-4)):
                continue
            otherwise = "Set the slope of the mean loss to zero; of z it is σ(z) minus something."
            if math.isinf(wanted):
                otherwise = "Look at the slope: does it ever reach zero? Where a loss has no minimum, return inf."
            hint = hint_for(found, wrong[name], otherwise, partial(math.isclose, rel_tol=1e-4))
            raise NotYet(f"With a share of {share:g} and ε = {epsilon:g} {name} rests at {found:.4g}. {hint}")
    right("noise draws the margin towards 0; cdpo draws it there once more, robust gives back what a rate of ε took "
          "away, and where fewer disagree than ε says it runs to infinity")  # fmt: skip


def check_paired_difference(answer: Callable[..., Any]) -> None:
    """`answer(ours, theirs)`, success of two losses on the same S seeds, (S,) each → mean difference, its error."""
    cases = [(np.array([0.70, 0.62, 0.81]), np.array([0.66, 0.60, 0.75])),
             (np.array([0.5, 0.9, 0.7, 0.4, 0.8]), np.array([0.6, 0.9, 0.8, 0.5, 0.7]))]  # fmt: skip
    for ours, theirs in cases:
        given = call(answer, ours.copy(), theirs.copy())
        given = as_parts(given, 2, "two numbers, the difference and its standard error")
        difference, num = ours - theirs, len(ours)
        expect(given[0], difference.mean(), name="the mean difference",
               instead={"The sign: ours minus theirs.": -difference.mean(),
                        "That is the sum over seeds.": difference.sum()},
               otherwise="The mean over seeds of ours minus theirs.")  # fmt: skip
        spread = difference.std(ddof=1)
        apart = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / num)
        expect(given[1], spread / math.sqrt(num), name="the standard error", instead={
            "That is the error of two groups that share nothing. These runs share their seeds: what a seed does to "
            "both falls out of the difference, so take the differences first.": apart,
            "That is the spread of single differences; their mean is surer by √S.": spread,
            "Divide by S − 1, not by S, in the variance (`ddof=1`): the mean was estimated too.":
                difference.std() / math.sqrt(num),
            "Divide by √S, not by S.": spread / num,
            "That is the spread without the correction, and of single differences.": difference.std(),
        }, otherwise="The standard deviation of the S differences (ddof=1), divided by √S.")  # fmt: skip
    right("runs that share a seed are compared within it; with three seeds even that leaves a wide interval, and the "
          "most striking of seventeen losses is striking by luck often enough")  # fmt: skip


def _margin(value: Any, name: str) -> float:
    """A number that may be infinite."""
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise NotYet(f"The margin of {name} should be a number, and is {value!r}.") from error
    if math.isnan(found):
        raise NotYet(
            f"The margin of {name} is nan: is there a logarithm of a negative number? Look at ε and the share."
        )
    return found
