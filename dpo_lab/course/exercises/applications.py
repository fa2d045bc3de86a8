"""Checks for the notebook on four jobs: a JSON checker, two refusal rates, calls compared, the cost of an attack."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_number, as_parts, as_truth, call, hint_for, right

_KEYS = ["name", "town"]
# An answer, whether it is right, and what to say to a checker that says otherwise.
_JSON_CASES = (
    ('{"name": "Mira", "town": "Loberg"}', True, "It is what was asked for."),
    ('{"town": "Loberg", "name": "Mira"}', True, "Objects have no order: the keys may come in any."),
    ('\n{"name": "Mira",  "town": "Loberg"}\n', True, "White space around and inside is no part of what it says."),
    ('{"name": "Mira"}', False, "A key is missing."),
    ('{"name": "Mira", "town": "Loberg", "pet": "cat"}', False, "A key is there that nobody asked for; a program that "
     "reads the answer may stumble over it."),
    ('{"name": "Mira", "city": "Loberg"}', False, "Two keys are there, and one is not the asked one."),
    ('Here it is: {"name": "Mira", "town": "Loberg"}', False, "There is text around the object; the program that gets "
     "this calls json.loads and stops."),
    ('{"name": "Mira", "town": "Loberg"', False, "It does not parse."),
    ("The name is Mira and the town is Loberg.", False, "Naming the keys is not JSON."),
    ('["name", "town"]', False, "It parses, and is a list: `\"name\" in` a list is true as well."),
    ('"name, town"', False, "It parses, and is a text: `\"name\" in` a text is true as well."),
    ("7", False, "It parses, and is a number."),
)  # fmt: skip


def check_json_checker(answer: Callable[..., Any]) -> None:
    """`answer(text, keys)` → whether the text is one JSON object with exactly these keys, and nothing else."""
    for text, is_right, why in _JSON_CASES:
        given = as_truth(call(answer, text, list(_KEYS)), "your checker")
        if given != is_right:
            raise NotYet(f"Your checker says {given} to {text!r} for the keys {_KEYS}. {why}")
    if as_truth(call(answer, '{"name": "Mira", "town": "Loberg"}', ["name"]), "your checker"):
        raise NotYet("Your checker takes the same two keys whatever it is asked for; compare with `keys`.")
    right("a checker that parses, compares and forgives nothing that a program would stumble over; it is the label of "
          "every pair, so what it lets pass is what you train")  # fmt: skip


def check_refusal_rates(answer: Callable[..., Any]) -> None:
    """`answer(harmful, declined)`, both (N,) of truth → refusals of harmful, over-refusals of harmless requests."""
    cases = [
        (np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool), np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 1], bool)),
        (np.array([0, 1, 0, 1, 1, 1, 1], bool), np.array([1, 1, 0, 0, 1, 0, 1], bool)),
    ]
    for harmful, declined in cases:
        given = call(answer, harmful.copy(), declined.copy())
        parts = as_parts(given, 2, "two numbers, refusals and over-refusals")
        found = [as_number(part, name) for part, name in zip(parts, ("refusals", "over-refusals"), strict=True)]
        wanted = [declined[harmful].mean(), declined[~harmful].mean()]
        if np.allclose(found, wanted):
            continue
        mistakes = {
            "The two are the wrong way round.": wanted[::-1],
            "These are shares of all requests. How many harmful ones there are is your choice when you collect them, "
            "and must not move the numbers: divide each by its own kind.":
                [(declined & harmful).mean(), (declined & ~harmful).mean()],
            "These are shares of all that was declined: they say who is among the declined, not who gets declined.":
                [(declined & harmful).sum() / declined.sum(), (declined & ~harmful).sum() / declined.sum()],
            "The second is the share that was rightly helped; an over-refusal is what was declined.":
                [wanted[0], 1 - wanted[1]],
            "These are counts; divide each by how many there are of its kind.":
                [(declined & harmful).sum(), (declined & ~harmful).sum()],
        }  # fmt: skip
        hint = hint_for(found, mistakes, "Look at the harmful ones alone first: which share of them was declined?")
        raise NotYet(f"With {harmful.sum()} harmful and {(~harmful).sum()} harmless requests you get {found[0]:.3f} "
                     f"and {found[1]:.3f}. {hint}")  # fmt: skip
    right("two shares with two denominators; a model that declines everything has 1 and 1, one that declines nothing "
          "0 and 0, and no single number tells either from a good one")  # fmt: skip


def _call_text(name: str, arguments: Any, **options: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments}, **options)}</tool_call>"


_WANTED = _call_text("buy", {"item": "lemons", "count": 4})
_CALL_CASES = (
    (_WANTED, True, "It is the same text."),
    (_call_text("buy", {"count": 4, "item": "lemons"}), True, "The arguments stand in another order, and an object has "
     "none. That is the planted bug: two texts are compared where two calls should be."),
    (_call_text("buy", {"item": "lemons", "count": 4}, separators=(",", ":")), True, "Only spaces differ. That is the "
     "planted bug: two texts are compared where two calls should be."),
    (_call_text("buy", {"item": "lemons", "count": 5}), False, "The count is another."),
    (_call_text("buy", {"item": "lemon", "count": 4}), False, "One text lies inside the other, and they differ."),
    (_call_text("buy", {"item": "lemons"}), False, "An argument is missing."),
    (_call_text("buy", {"item": "lemons", "count": 4, "day": "Monday"}), False, "An argument was invented. Are both "
     "sides asked for all that the other has?"),
    (_call_text("shop", {"item": "lemons", "count": 4}), False, "The arguments agree, and it is another tool."),
    (_call_text("buy", {"item": "lemons", "count": "4"}), False, "The count is a text here; the tool's schema says "
     "integer, and the tool would refuse it."),
    (_call_text("buy", {"item": 4, "count": "lemons"}), False, "The values are the same, under other names."),
    ("I will buy 4 lemons.", False, "There is no call in it."),
    (_WANTED.replace("}}", "}"), False, "The call does not parse, so it is none."),
)  # fmt: skip


def check_same_call(answer: Callable[..., Any]) -> None:
    """`answer(given, wanted)`, the texts of two answers → whether the first makes the call that the second makes."""
    for text, is_same, why in _CALL_CASES:
        given = as_truth(call(answer, text, _WANTED), "your comparison")
        if given != is_same:
            raise NotYet(f"You say {given} to {text!r} where {_WANTED!r} is wanted. {why}")
    right("the same tool and the same arguments, however they are written; compared as texts, a right call in another "
          "spelling would be the rejected side of a pair, and the model would learn to spell")  # fmt: skip


def check_attack_cost(answer: Callable[..., Any]) -> None:
    """`answer(plain, attacked)`, both (N,) 0 or 1 on the same prompts → the mean drop, and its standard error."""
    rng = np.random.default_rng(0)
    for num, share in ((40, 0.8), (200, 0.6)):
        plain = (rng.random(num) < share).astype(float)
        broken = np.where(rng.random(num) < 0.2, 0.0, plain)
        gaps = plain - broken
        given = as_parts(call(answer, plain.copy(), broken.copy()), 2, "two numbers, the drop and its standard error")
        drop, error = as_number(given[0], "the drop"), as_number(given[1], "the standard error")
        if not np.isclose(drop, gaps.mean()):
            is_turned = np.isclose(drop, -gaps.mean())
            hint = "The sign is flipped: a drop is positive where the attack does harm." if is_turned else (
                "Plain minus attacked, and the mean of it.")  # fmt: skip
            raise NotYet(f"The mean drop over {num} prompts is {drop:.4f} by your function. {hint}")
        near = partial(np.isclose, rtol=0.03)  # dividing by n and by n − 1 are both in use, so each is let pass
        if near(error, gaps.std(ddof=1) / np.sqrt(num)):
            continue
        hint = hint_for(error, {
            "That is the error of two samples that have nothing to do with each other. These are the same prompts "
            "twice: take the difference of each first.": np.sqrt((plain.var(ddof=1) + broken.var(ddof=1)) / num),
            "That is the spread of single prompts; the mean of n of them spreads less.": gaps.std(ddof=1),
            "That is the square of it.": gaps.var(ddof=1) / num,
        }, "Take the differences prompt by prompt first, then the standard error of their mean.", near)  # fmt: skip
        raise NotYet(f"Your standard error over {num} prompts is {error:.4f}. {hint}")
    right("the same prompts with and without the attack, compared one by one: the error is a good deal smaller than "
          "that of two separate samples")  # fmt: skip
