"""Checks for the notebook on hyperparameters: an honest choice, a range sampled on its own scale, enough seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_array, as_number, as_parts, call, hint_for, right

_VALIDATION = np.array([[0.70, 0.71, 0.72], [0.60, 0.62, 0.82], [0.73, 0.74, 0.75], [0.66, 0.70, 0.65]])
_TEST = np.array([[0.71, 0.70, 0.69], [0.61, 0.60, 0.62], [0.70, 0.71, 0.69], [0.77, 0.76, 0.78]])


def check_honest_choice(answer: Callable[..., Any]) -> None:
    """`answer(validation, test)`, both (settings, seeds) → the setting to take, and the number to report for it."""
    orders = (np.arange(4), np.array([2, 0, 3, 1]))
    for order in orders:
        validation, test = _VALIDATION[order], _TEST[order]
        given = call(answer, validation.copy(), test.copy())
        given = as_parts(given, 2, "two things, the setting's number and what to report")
        setting, reported = as_number(given[0], "the setting"), as_number(given[1], "the number to report")
        if setting not in range(4):
            raise NotYet(f"The setting is {setting:g}; it should be a row number, from 0 to 3.")
        chosen = order[int(setting)]
        if chosen == 1:
            raise NotYet("Row of one lucky seed: this setting has the highest single value and a low mean. The best of "
                         "many seeds is the luck that you paid for; compare means over seeds.")  # fmt: skip
        if chosen == 3:
            raise NotYet("You chose by the test numbers. That is the planted bug: once they have chosen, they are "
                         "validation numbers too, and nothing is left to judge by.")  # fmt: skip
        if chosen != 2:
            raise NotYet(f"Row {int(setting)} does not have the best mean over seeds on the validation pairs.")
        if not math.isclose(reported, float(test[int(setting)].mean()), abs_tol=1e-9):
            hint = hint_for(reported, {
                "This is the mean that the choice was made by. The winner of a comparison was lucky more often than "
                "not, so its own number flatters it; report one that had no part in the choice.":
                    validation[int(setting)].mean(),
                "This is the best single value of all: the luckiest seed on the data you chose by.": validation.max(),
                "This is the best seed on the test pairs. Report the mean; a seed is not a knob.":
                    test[int(setting)].max(),
                "This is the best value in the whole test table, of a setting that you did not choose.": test.max(),
            }, "Which data had no part in the choice, and what of its seeds?")  # fmt: skip
            raise NotYet(f"You report {reported:.3f}. {hint}")
    right("chosen by validation means, reported from data that had no say; so the number will hold for new prompts too")


def check_log_uniform(answer: Callable[..., Any]) -> None:
    """`answer(num, low, high, rng)` → (num,) values between low and high, each factor as likely as any other."""
    for low, high in ((1e-5, 1e-2), (0.05, 1.0)):
        given = as_array(call(answer, 4000, low, high, np.random.default_rng(0)), "the sample", shape=(4000,))
        if given.min() < low * (1 - 1e-9) or given.max() > high * (1 + 1e-9):
            report = f"Values run from {given.min():.3g} to {given.max():.3g}, outside of {low:g} to {high:g}."
            if given.max() < 0:
                raise NotYet(f"{report} These are logarithms still; what undoes a logarithm?")
            if given.min() >= math.exp(low) * 0.99:
                raise NotYet(f"{report} You took an exponential of the ends themselves; take their logarithms first.")
            raise NotYet(f"{report} Base of logarithm and of power must be the same.")
        if len(np.unique(given)) < 2000:
            raise NotYet(f"Of 4000 values only {len(np.unique(given))} differ. Draw each anew, from `rng`.")
        middle = math.sqrt(low * high)
        below = float((given < middle).mean())
        if abs(below - 0.5) > 0.05:
            linear = (middle - low) / (high - low)
            if abs(below - linear) < 0.03:
                raise NotYet(f"Only {below:.0%} of the values lie below {middle:.2g}, the middle in factors: this is "
                             "the planted bug, the range is still sampled on a linear scale.")  # fmt: skip
            raise NotYet(f"{below:.0%} of the values lie below {middle:.2g}; on a log scale half of them should.")
        quarter = float((given < low**0.75 * high**0.25).mean())
        if abs(quarter - 0.25) > 0.04:
            raise NotYet(f"Half lie below the middle, but {quarter:.0%} in the lowest quarter of the factors. Is the "
                         "logarithm uniform, or bent?")  # fmt: skip
    right(
        "every factor of 10 gets the same share of the budget; on a linear scale the largest factor takes nine tenths"
    )


def check_seeds_needed(answer: Callable[..., Any]) -> None:
    """`answer(spread, effect)` → seeds per setting, so that an effect is twice the standard error of the difference."""
    for spread, effect in ((0.02, 0.02), (0.02, 0.01), (0.01, 0.03), (0.03, 0.02)):
        given = as_number(call(answer, spread, effect), "the number of seeds")
        exact = 8 * spread**2 / effect**2
        report = f"For a spread of {spread:g} and an effect of {effect:g} you want {given:g} seeds."
        if given == max(1, math.ceil(exact - 1e-9)):
            continue
        if not float(given).is_integer():
            raise NotYet(f"{report} Nobody runs a part of a seed: which way must you round?")
        for value, why in (
            (4 * spread**2 / effect**2, "Both means are uncertain, not only one: variances of a difference add up."),
            (2 * spread**2 / effect**2, "That makes the effect as large as one standard error; it should be two."),
            (2 * math.sqrt(2) * spread / effect, "The error falls with the root of n; solve for n, not for its root."),
            (16 * spread**2 / effect**2, "That is the number for both settings together; it asks for each."),
        ):
            if given in (math.ceil(value - 1e-9), math.floor(value + 1e-9)) and abs(value - exact) > 0.5:
                raise NotYet(f"{report} {why}")
        if given == math.floor(exact):
            raise NotYet(f"{report} Rounded down, the error is still a little too large.")
        raise NotYet(f"{report} Write down the standard error of a difference of two means over n seeds, and set the "
                     "effect to twice that.")  # fmt: skip
    right("half the effect costs four times the seeds: decide which effects are worth telling apart before you run")
