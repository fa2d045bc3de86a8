"""The checks of the notebook on a real model: right answers pass, wrong ones are told what to try."""

import re

import pytest

from dpo_lab.course.exercises import NotYet, check_both_orders, check_guarded_demand, check_nearest_pair


def guarded(passes, text, about, *, least=8, has_topic=True, is_once=True):
    own = re.findall(r"\w+", text.lower())
    spoken = [part.strip().lower() for part in re.split(r"[.!?]", text) if part.strip()]
    return (
        passes(text)
        and len(own) >= least
        and (not has_topic or any(word in about for word in own))
        and (not is_once or len(set(spoken)) == len(spoken))
    )


def test_a_right_guard(capsys):
    check_guarded_demand(guarded)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda passes, text, about: passes(text), "empty"),
        (lambda passes, text, about: guarded(passes, text, about, least=1), "One word"),
        (lambda passes, text, about: guarded(passes, text, about, has_topic=False), "about the topic"),
        (lambda passes, text, about: guarded(passes, text, about, is_once=False), "three times"),
        (lambda passes, text, about: guarded(lambda text: True, text, about), "more than 20"),
        (lambda passes, text, about: guarded(lambda t: len(t.split()) <= 20, text, about), "call `passes"),
        (lambda passes, text, about: "tea" in text.lower() and guarded(passes, text, about), "leaves"),
        (lambda passes, text, about: "yes", "True or False"),
    ],
)
def test_wrong_guards(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_guarded_demand(wrong)


def nearest(good, bad, length=lambda text: len(text.split())):
    places = [(i, j) for i in range(len(good)) for j in range(len(bad))]
    return min(places, key=lambda place: abs(length(good[place[0]]) - length(bad[place[1]])))


def test_a_right_pair(capsys):
    check_nearest_pair(nearest)
    check_nearest_pair(lambda good, bad: list(nearest(good, bad)))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda good, bad: (0, 1), "farthest apart"),
        (lambda good, bad: nearest(good, bad, len), "words apart"),
        (lambda good, bad: (5, 5), "from 0"),
        (lambda good, bad: good[0], "two places"),
    ],
)
def test_wrong_pairs(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_nearest_pair(wrong)


def both(judge, prompts, ours, theirs):
    total = 0.0
    for prompt, one, other in zip(prompts, ours, theirs, strict=True):
        ahead, back = judge(prompt, one, other), 1 - judge(prompt, other, one)
        total += ahead if ahead == back else 0.5
    return total / len(prompts)


def test_a_right_rate(capsys):
    check_both_orders(both)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda j, p, a, b: sum(j(q, x, y) for q, x, y in zip(p, a, b, strict=True)) / 4, "one order only"),
        (lambda j, p, a, b: 0.625, "always takes the first"),
        (lambda j, p, a, b: sum(j(q, x, y) == 1 for q, x, y in zip(p, a, b, strict=True)) / 4, "two wins, a loss"),
    ],
)
def test_wrong_rates(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_both_orders(wrong)
