"""The checks of the exercises on four jobs: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from dpo_lab.course.exercises import (
    NotYet,
    check_attack_cost,
    check_json_checker,
    check_refusal_rates,
    check_same_call,
)


def parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_right_json_checkers(capsys):
    check_json_checker(lambda text, keys: isinstance(parsed(text), dict) and set(parsed(text)) == set(keys))
    check_json_checker(lambda text, keys: isinstance(parsed(text), dict) and sorted(parsed(text)) == sorted(keys))
    assert capsys.readouterr().out.count("Right: ") == 2


def found_anywhere(text, keys):
    match = re.search(r"\{.*\}", text)
    data = parsed(match.group()) if match else None
    return isinstance(data, dict) and set(data) == set(keys)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda t, k: isinstance(parsed(t), dict) and list(parsed(t)) == k, "Objects have no order"),
        (lambda t, k: all(key in t for key in k), "nobody asked for"),
        (lambda t, k: isinstance(parsed(t), dict) and all(key in parsed(t) for key in k), "nobody asked for"),
        (lambda t, k: isinstance(parsed(t), dict), "A key is missing"),
        (lambda t, k: isinstance(parsed(t), dict) and len(parsed(t)) == len(k), "not the asked one"),
        (found_anywhere, "text around the object"),
        (lambda t, k: set(json.loads(t)) == set(k), "stopped with JSONDecodeError"),
        (lambda t, k: parsed(t) is not None and not isinstance(parsed(t), int) and len(parsed(t)) in (2, 10)
         and all(key in parsed(t) for key in k), "is a list"),
        (lambda t, k: t.strip() == json.dumps({"name": "Mira", "town": "Loberg"}), "no order"),
        (lambda t, k: isinstance(parsed(t), dict) and set(parsed(t)) == {"name", "town"}, "whatever it is asked for"),
        (lambda t, k: "yes", "True or False"),
        (lambda t, k: None, "returned nothing"),
    ],
)  # fmt: skip
def test_wrong_json_checkers(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_json_checker(wrong)


def test_right_refusal_rates(capsys):
    check_refusal_rates(lambda harmful, declined: (declined[harmful].mean(), declined[~harmful].mean()))
    check_refusal_rates(lambda h, d: np.array([(h & d).sum() / h.sum(), (~h & d).sum() / (~h).sum()]))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda h, d: (d[~h].mean(), d[h].mean()), "wrong way round"),
        (lambda h, d: ((h & d).mean(), (~h & d).mean()), "shares of all requests"),
        (lambda h, d: ((h & d).sum() / d.sum(), (~h & d).sum() / d.sum()), "who is among the declined"),
        (lambda h, d: (d[h].mean(), 1 - d[~h].mean()), "rightly helped"),
        (lambda h, d: ((h & d).sum(), (~h & d).sum()), "counts"),
        (lambda h, d: (0.0, 0.0), "harmful ones alone"),
        (lambda h, d: (h == d).mean(), "two numbers"),
        (lambda h, d: None, "returned nothing"),
    ],
)
def test_wrong_refusal_rates(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_refusal_rates(wrong)


def call_in(text):
    match = re.search(r"<tool_call>(.*)</tool_call>", text)
    return parsed(match.group(1)) if match else None


def test_right_comparisons_of_calls(capsys):
    check_same_call(lambda given, wanted: call_in(given) is not None and call_in(given) == call_in(wanted))
    assert capsys.readouterr().out.startswith("Right: ")


arguments = lambda text: (call_in(text) or {}).get("arguments")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g, w: g == w, "planted bug"),
        (lambda g, w: g.replace(" ", "") == w.replace(" ", ""), "planted bug"),
        (lambda g, w: sorted(g.replace(" ", "")) == sorted(w.replace(" ", "")), "under other names"),
        (lambda g, w: arguments(g) == arguments(w), "another tool"),
        (lambda g, w: call_in(g) is not None and arguments(g).items() >= arguments(w).items(), "invented"),
        (lambda g, w: call_in(g) is not None and arguments(g).items() <= arguments(w).items(), "missing"),
        (lambda g, w: call_in(g) is not None and str(call_in(g)) == str(call_in(w)), "another order"),
        (lambda g, w: call_in(g) is not None and call_in(g)["name"] == call_in(w)["name"], "count is another"),
        (lambda g, w: call_in(g) is not None and call_in(g)["name"] == "buy"
         and {k: str(v) for k, v in arguments(g).items()} == {k: str(v) for k, v in arguments(w).items()}, "schema"),
        (lambda g, w: json.loads(g[11:-12]) == json.loads(w[11:-12]), "stopped with JSONDecodeError"),
        (lambda g, w: 1, "True or False"),
    ],
)  # fmt: skip
def test_wrong_comparisons_of_calls(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_same_call(wrong)


def test_right_costs_of_an_attack(capsys):
    check_attack_cost(lambda p, a: ((p - a).mean(), (p - a).std(ddof=1) / np.sqrt(len(p))))
    check_attack_cost(lambda p, a: [p.mean() - a.mean(), np.std(p - a) / len(p) ** 0.5])
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, a: ((a - p).mean(), (p - a).std() / len(p) ** 0.5), "sign is flipped"),
        (lambda p, a: (p.mean(), (p - a).std() / len(p) ** 0.5), "Plain minus attacked"),
        (lambda p, a: ((p - a).mean(), ((p.var() + a.var()) / len(p)) ** 0.5), "nothing to do with each other"),
        (lambda p, a: ((p - a).mean(), (p - a).std()), "single prompts"),
        (lambda p, a: ((p - a).mean(), (p - a).var() / len(p)), "square"),
        (lambda p, a: ((p - a).mean(), 0.5), "prompt by prompt"),
        (lambda p, a: (p - a).mean(), "two numbers"),
    ],
)
def test_wrong_costs_of_an_attack(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_attack_cost(wrong)
