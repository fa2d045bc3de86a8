"""The checks of the reference exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_cache_key,
    check_looks_stale,
    check_reference_bytes,
    check_rows_to_compute,
)


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def test_right_keys(capsys):
    check_cache_key(lambda *parts: digest(*parts))
    check_cache_key(lambda name, precision, *pair: (name, precision, *map(tuple, pair)))
    assert capsys.readouterr().out.count("Right: ") == 2


counter = itertools.count()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda name, precision, x, w, r: digest(name, [*x, *w, *r]), "precision changed"),
        (lambda name, precision, x, w, r: digest(name, precision, [*x, *w, *r]), "moved into the prompt"),
        (lambda name, precision, x, w, r: digest(precision, x, w, r), "weights changed"),
        (lambda name, precision, x, w, r: digest(name, precision, x, sorted([w, r])), "changed places"),
        (lambda name, precision, x, w, r: digest(name, precision, x, sorted(w), r), "two tokens"),
        (lambda name, precision, x, w, r: digest(name, precision, [*x, *w], r), "moved into the prompt"),
        (lambda name, precision, x, w, r: digest(name, precision, x, [*w, *r]), "border between chosen and rejected"),
        (lambda name, precision, x, w, r: digest(name, precision, x, w), "rejected answer changed"),
        (lambda name, precision, x, w, r: digest(name, precision, w, r), "prompt changed"),
        (lambda name, precision, x, w, r: digest(name, precision, [*x, 0, *w, 0, *r]), "marks no border"),
        (lambda *parts: hash(repr(parts)), "every process"),
        (lambda *_: digest(next(counter)), "two different keys"),
    ],
)
def test_wrong_keys(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_cache_key(wrong)


def test_right_staleness(capsys):
    check_looks_stale(lambda policy, reference: np.abs(policy - reference).max() > 1e-3)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, r: bool((p != r).any()), "Exact equality"),
        (lambda p, r: abs((p - r).mean()) > 1e-3, "any order"),
        (lambda p, r: np.abs(p - r).mean() > 0.5, "hides a single pair"),
        (lambda p, r: np.abs((p[:, 0] - p[:, 1]) - (r[:, 0] - r[:, 1])).max() > 1e-3, "both columns"),
        (lambda p, r: np.abs(p - r)[:, 0].max() > 1e-3, "single pair|chosen column"),
        (lambda p, r: False, "shifted by one"),
        (lambda p, r: np.abs(p - r).max() > 0.1, "wrong precision"),
        (lambda p, r: p - r, "shape"),
    ],
)
def test_wrong_staleness(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_looks_stale(wrong)


def test_right_bytes(capsys):
    check_reference_bytes(lambda pairs, parameters, width: (parameters * width, pairs * 2 * 4))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda n, p, w: (p * w, n * 4), "two answers"),
        (lambda n, p, w: (p * w, n * 16), "float32: four bytes"),
        (lambda n, p, w: (p * w, n * 2), "has four bytes"),
        (lambda n, p, w: (p * w * 8, n * 8), "counts bits"),
        (lambda n, p, w: (p * w * 4, n * 8), "never trained"),
        (lambda n, p, w: (p, n * 8), "more than one byte"),
        (lambda n, p, w: (p * w, n * 20), "whatever the length"),
        (lambda n, p, w: p * w, "two numbers"),
    ],
)
def test_wrong_bytes(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_reference_bytes(wrong)


def rows_to_compute(stored, keys):
    first = {}
    for i, key in enumerate(keys):
        if key not in stored:
            first.setdefault(key, i)
    return list(first.values())


def test_right_rows(capsys):
    check_rows_to_compute(rows_to_compute)
    assert capsys.readouterr().out.startswith("Right: ")


def changes_the_store(stored, keys):
    rows = rows_to_compute(stored, keys)
    stored.update(keys)
    return rows


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda stored, keys: [i for i, key in enumerate(keys) if key not in stored], "more than once"),
        (lambda stored, keys: list(range(len(stored), len(keys))), "count rows"),
        (lambda stored, keys: list(range(len(keys))), "not stored yet"),
        (lambda stored, keys: rows_to_compute(stored, keys)[::-1], "in the order"),
        (lambda stored, keys: [], "not stored yet"),
        (changes_the_store, "changed the store"),
    ],
)
def test_wrong_rows(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_rows_to_compute(wrong)
