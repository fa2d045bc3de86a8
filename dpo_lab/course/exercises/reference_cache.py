"""Checks for the notebook on the reference: what a key must hold, what must be computed, and how staleness shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dpo_lab.course.exercises.checking import NotYet, as_array, as_parts, call, expect, right

_PAIR = ([5, 6, 7], [8, 9], [8, 4, 9])
"""Token ids of a prompt, its chosen and its rejected answer."""


def check_cache_key(answer: Callable[..., Any]) -> None:
    """`answer(fingerprint, precision, prompt, chosen, rejected)` → a key: the same for the same values, another where a
    value may differ.

    fingerprint and precision are strings; prompt, chosen and rejected are lists of token ids after truncation.
    """
    key_of = lambda fingerprint, precision, *pair: call(answer, fingerprint, precision, *map(list, pair))
    prompt, chosen, rejected = _PAIR
    key = key_of("weights-1", "float32", *_PAIR)
    if isinstance(key, int):
        raise NotYet(f"The key is the number {key}. Python's own `hash` of a text is another in every process; "
                     "a store on disk needs a digest such as sha256.")  # fmt: skip
    if key_of("weights-1", "float32", *_PAIR) != key:
        raise NotYet("The same model, precision and pair gave two different keys: nothing would ever be found.")
    changes: list[tuple[str, tuple[Any, ...]]] = [
        ("the weights changed and the key stayed: another reference has other values",
         ("weights-2", "float32", *_PAIR)),
        ("the precision changed and the key stayed: the same model in bfloat16 has other values. This is one of the "
         "planted bugs", ("weights-1", "bfloat16", *_PAIR)),
        ("a token of the prompt changed and the key stayed", ("weights-1", "float32", [5, 6, 3], chosen, rejected)),
        ("a token of the rejected answer changed and the key stayed",
         ("weights-1", "float32", prompt, chosen, [8, 4, 3])),
        ("two tokens of the chosen answer changed places and the key stayed",
         ("weights-1", "float32", prompt, [9, 8], rejected)),
        ("chosen and rejected changed places and the key stayed: the two numbers would be swapped",
         ("weights-1", "float32", prompt, rejected, chosen)),
        ("the first token of the chosen answer moved into the prompt and the key stayed: the tokens are the same when "
         "they are joined, but fewer of them are scored",
         ("weights-1", "float32", [*prompt, 8], [9], rejected)),
        ("the border between chosen and rejected moved and the key stayed",
         ("weights-1", "float32", prompt, [8, 9, 8], [4, 9])),
    ]  # fmt: skip
    for change, arguments in changes:
        if key_of(*arguments) == key:
            raise NotYet(f"Not safe: {change}. Whatever can change a value has to be in the key.")
    if key_of("weights-1", "float32", [5, 0], [6], rejected) == key_of("weights-1", "float32", [5], [0, 6], rejected):
        raise NotYet("Not safe: 0 is the id of a token, too, so it marks no border. Lengths or brackets do.")
    right("whatever can change a value is in the key, so a wrong value can't be found; tokenizer, template and "
          "truncation are in it through the token ids")  # fmt: skip


def check_looks_stale(answer: Callable[..., Any]) -> None:
    """`answer(policy_logps, reference_logps)`, each (N, 2), before the first step → True where the cache is stale."""
    logps = np.random.default_rng(0).normal(-12, 5, (100, 2))
    noise = np.random.default_rng(1).normal(0, 2e-6, (100, 2))
    one = np.zeros((100, 2))
    one[37, 1] = 3.0
    third = np.zeros((100, 2))
    third[:, 1] = np.where(np.arange(100) % 2, 2.0, -2.0)
    cases = [
        (False, noise, "the values differ by rounding only (2e-6 nats)", "Exact equality asks too much of float32."),
        (True, np.roll(logps, 1, 0) - logps, "the rows of the reference are shifted by one",
         "The mean over the pairs is the same for any order: look at each pair."),
        (True, one, "one pair of 100 is wrong by 3 nats", "A mean hides a single pair; which statistic does not?"),
        (True, one / 50, "one pair of 100 is off by 0.06 nats, as the wrong precision leaves it",
         "Rounding is ten thousand times smaller: a lower limit catches both."),
        (True, np.full((100, 2), 1.5), "both numbers of every pair are off by 1.5 nats",
         "The gap cancels it, but implicit rewards are no longer 0: look at both columns apart."),
        (True, third, "only the rejected answers are wrong", "The chosen column alone does not tell."),
    ]  # fmt: skip
    for expected, error, case, advice in cases:
        found = bool(as_array(call(answer, logps, logps + error), shape=()))
        if found != expected:
            raise NotYet(f"Where {case}, your function says {'stale' if found else 'fresh'}. {advice}")
    right("before the first step policy and reference are one model, so every number must agree; nothing else is as "
          "cheap and as sharp")  # fmt: skip


def check_reference_bytes(answer: Callable[..., Any]) -> None:
    """`answer(num_pairs, num_parameters, bytes_per_weight)` → bytes of a second model, bytes of the stored numbers."""
    for num_pairs, num_parameters, width in ((1000, 7_000_000_000, 2), (61_135, 1_500_000, 4)):
        given = call(answer, num_pairs, num_parameters, width)
        given = as_parts(given, 2, "two numbers, the model's bytes and the store's")
        expect(given[0], num_parameters * width, name="the bytes of a second model", instead={
            "That counts bits.": num_parameters * width * 8,
            "Gradient and moments belong to the policy alone: the reference is never trained.":
                num_parameters * width * 4,
            "A weight has more than one byte.": num_parameters,
        }, otherwise="Every weight takes bytes_per_weight.")  # fmt: skip
        expect(given[1], num_pairs * 8, name="the bytes of the stored numbers", instead={
            "A pair has two answers.": num_pairs * 4,
            "The store keeps float32: four bytes per number.": num_pairs * 16,
            "That counts bits.": num_pairs * 64,
            "A float32 has four bytes.": num_pairs * 2,
        }, otherwise="Two float32 numbers per pair, whatever the length of its answers.")  # fmt: skip
    right("the numbers of a thousand pairs take 8 kB, whatever the size of the model")


def check_rows_to_compute(answer: Callable[..., Any]) -> None:
    """`answer(stored, keys)` → the row numbers to score: for each key that is not stored its first row, in order.

    stored: a set of keys; keys: one per row of the data, in which rows may repeat.
    """
    cases: list[tuple[str, set[bytes], list[bytes], list[int]]] = [
        ("everything is stored", {b"a", b"b"}, [b"b", b"a"], []),
        ("nothing is stored", set(), [b"a", b"b"], [0, 1]),
        ("the order changed and one row is new", {b"a", b"b"}, [b"c", b"b", b"a"], [0]),
        ("a new pair stands in the data three times", {b"a"}, [b"a", b"x", b"x", b"b", b"x"], [1, 3]),
    ]
    for case, stored, keys, expected in cases:
        before = set(stored)
        given = list(call(answer, stored, keys))
        if stored != before:
            raise NotYet(f"Where {case}, your function changed the store itself. It should only look.")
        if given == expected:
            continue
        if sorted(set(given)) == expected:
            raise NotYet(f"Where {case}, your rows are {given}: each once, in the order of the data.")
        if [keys[i] for i in given if 0 <= i < len(keys)] and {keys[i] for i in given} == {keys[i] for i in expected}:
            raise NotYet(f"Where {case}, your rows are {given}: the same content would be scored more than once.")
        if given == list(range(len(stored), len(keys))):
            raise NotYet(f"Where {case}, your rows are {given}. You count rows; look at their keys.")
        raise NotYet(f"Where {case}, your rows are {given}. Which contents are not stored yet?")
    right("only new content is computed; order, repetition and whatever is not in the key cost nothing")
