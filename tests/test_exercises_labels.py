"""The checks of the labelling exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import math
import random

import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_comparisons_to_tell,
    check_kappa,
    check_sides,
    check_standing_choices,
)
from dpo_lab.workbench.labels import cohen_kappa


def standing(events):
    found = {}
    for event in events:
        if event["kind"] == "undo":
            del found[event["question"]]
        else:
            found[event["question"]] = event["choice"]
    return found


def test_right_standing_choices(capsys):
    check_standing_choices(standing)
    assert capsys.readouterr().out.startswith("Right: ")


def empties(events):
    found = standing(events)
    events.clear()
    return found


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda events: standing([e for e in events if e["kind"] == "choice"]), "leaves the question open"),
        (lambda events: {q: c for q, c in standing(events).items() if c != "skip"}, "ties and skips too"),
        (lambda events: {e["question"]: e.get("choice") for e in events}, "leaves the question open"),
        (lambda events: {e["question"]: e["choice"] for e in events if e["kind"] == "choice"
                         and e["question"] not in [u["question"] for u in events if u["kind"] == "undo"]},
         "later choice holds"),
        (lambda events: list(standing(events)), "a dict"),
        (empties, "changed the events"),
        (lambda events: None, "returned nothing"),
    ],
)  # fmt: skip
def test_wrong_standing_choices(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_standing_choices(wrong)


def parts(table):
    total, size = sum(map(sum, table)), len(table)
    agreed = sum(table[i][i] for i in range(size)) / total
    rows = [sum(row) / total for row in table]
    columns = [sum(row[i] for row in table) / total for i in range(size)]
    return agreed, rows, columns


def kappa(table, *, chance=None, finish=lambda agreed, chance: (agreed - chance) / (1 - chance)):
    agreed, rows, columns = parts(table)
    by_chance = sum(r * c for r, c in zip(rows, columns, strict=True)) if chance is None else chance(rows, columns)
    return finish(agreed, by_chance)


def test_right_kappa(capsys):
    check_kappa(kappa)
    check_kappa(cohen_kappa)
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda table: parts(table)[0], "raw agreement"),
        (lambda table: kappa(table, finish=lambda agreed, chance: chance), "agreement by chance"),
        (lambda table: kappa(table, chance=lambda rows, columns: 1 / len(rows)), "has habits"),
        (lambda table: kappa(table, chance=lambda rows, columns: sum(r * r for r in rows)), "habits of both"),
        (lambda table: kappa(table, chance=lambda rows, columns: sum(c * c for c in columns)), "needs both|has habits"),
        (lambda table: kappa(table, finish=lambda agreed, chance: agreed - chance), "left to agree on"),
        (lambda table: kappa(table, finish=lambda agreed, chance: (agreed - chance) / chance), "denominator"),
        (lambda table: 0.0, "row share times column share"),
    ],
)
def test_wrong_kappa(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_kappa(wrong)


def sides(num, seed):
    generator = random.Random(seed)
    return [generator.randrange(2) for _ in range(num)]


def test_right_sides(capsys):
    check_sides(sides)

    def exactly_half(num, seed):
        found = [i % 2 for i in range(num)]
        random.Random(seed).shuffle(found)
        return found

    check_sides(exactly_half)
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda num, seed: [random.Random(seed).randrange(2) for _ in range(num)], "planted bug"),
        (lambda num, seed: [0] * num, "planted bug"),
        (lambda num, seed: [random.randrange(2) for _ in range(num)], "Called twice"),
        (lambda num, seed: [i % 2 for i in range(num)], "a pattern"),
        (lambda num, seed: [int(i < num // 2) for i in range(num)], "a pattern"),
        (lambda num, seed: sides(num, 0), "Different seeds"),
        (lambda num, seed: [int(i % 5 == 0) * side for i, side in enumerate(sides(num, seed))], "about half"),
        (lambda num, seed: sides(num - 1, seed), "199 values"),
        (lambda num, seed: [side + 1 for side in sides(num, seed)], r"\[1, 2\]"),
    ],
)  # fmt: skip
def test_wrong_sides(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_sides(wrong)


def needed(share, *, scale=1.96**2, variance=lambda share: share * (1 - share), finish=math.ceil):
    return finish(scale * variance(share) / (share - 0.5) ** 2)


def test_right_numbers_of_comparisons(capsys):
    check_comparisons_to_tell(needed)
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda share: needed(share, finish=math.floor), "round up"),
        (lambda share: needed(share, finish=float), "round up"),
        (lambda share: needed(share, finish=lambda n: math.ceil(math.sqrt(n))), "not for √n"),
        (lambda share: needed(share, scale=1), "one standard error"),
        (lambda share: needed(share, scale=1.96), "squared too"),
        (lambda share: needed(share, scale=4 * 1.96**2), "Only half of the interval"),
        (lambda share: needed(share, variance=lambda share: share), "variance of one comparison"),
        (lambda share: 100, "solve for n"),
    ],
)
def test_wrong_numbers_of_comparisons(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_comparisons_to_tell(wrong)


def test_no_message_tells_the_solution():
    with pytest.raises(NotYet) as told:
        check_comparisons_to_tell(lambda share: 100)
    assert "93" not in str(told.value)
    with pytest.raises(NotYet) as told:
        check_kappa(lambda table: 0.5)
    assert "0.4" not in str(told.value).replace("0.5", "")
