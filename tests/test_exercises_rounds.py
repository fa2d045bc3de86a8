"""The checks of the notebook on DPO in rounds: right answers pass, wrong ones are told what to try."""

import numpy as np
import pytest

from dpo_lab.course.exercises import NotYet, check_mixed_share, check_round, check_round_pairs


def best_with_worst(scores, margin, *, chosen=np.argmax, rejected=np.argmin):
    return [(p, chosen(own), rejected(own)) for p, own in enumerate(scores) if np.ptp(own) > margin]


def test_right_pairs(capsys):
    check_round_pairs(best_with_worst)
    check_round_pairs(lambda scores, margin: np.array(best_with_worst(scores, margin)))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda scores, margin: best_with_worst(scores, -1), "all have the score"),
        (lambda scores, margin: best_with_worst(scores, 0), "lie 0.4 apart"),
        (lambda scores, margin: best_with_worst(scores, 1), "no pair of prompt 2"),
        (lambda scores, margin: best_with_worst(scores, margin, chosen=np.argmin, rejected=np.argmax), "higher"),
        (lambda scores, margin: best_with_worst(scores, margin, rejected=lambda own: 3), "its scores are"),
        (lambda scores, margin: best_with_worst(scores, margin, rejected=lambda own: 7), "from 0"),
        (lambda scores, margin: 2 * best_with_worst(scores, margin), "two pairs"),
        (lambda scores, margin: [(0, 1)], "three places"),
        (lambda scores, margin: 5, "a list of"),
    ],
)
def test_wrong_pairs(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_round_pairs(wrong)


def mixed(p, k):
    return np.mean(1 - p**k - (1 - p) ** k)


def test_a_right_share(capsys):
    check_mixed_share(mixed)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p, k: np.mean(1 - (1 - p) ** k), "all succeed is not mixed"),
        (lambda p, k: np.mean(1 - p**k), "all fail is not mixed"),
        (lambda p, k: mixed(np.mean(p), k), "mean last"),
        (lambda p, k: len(p) * mixed(p, k), "sum over prompts"),
        (lambda p, k: 1 - mixed(p, k), "teach nothing"),
        (lambda p, k: 1 - p**k - (1 - p) ** k, "shape"),
        (lambda p, k: 0.3, "all of them fail"),
    ],
)
def test_wrong_shares(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_mixed_share(wrong)


def one_round(policy, start, rows, sample, judge, learn, *, asked="policy", reference="start", ties=False, worst=False):
    models, pairs = {"policy": policy, "start": start}, []
    for row, own in zip(rows, sample(models[asked], rows), strict=True):
        scores = judge(row, own)
        order = sorted(range(len(own)), key=lambda i: scores[i], reverse=worst)
        if ties or min(scores) < max(scores):
            pairs.append((row, own[order[-1]], own[order[0]]))
    learn(policy, pairs, reference=models[reference])
    return pairs


def test_a_right_round(capsys):
    check_round(one_round)
    assert "Right: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"asked": "start"}, "offline DPO"),
        ({"reference": "policy"}, "against itself"),
        ({"ties": True}, "the same score"),
        ({"worst": True}, "best answer with the worst"),
    ],
)
def test_each_planted_bug_is_named(changed, message):
    with pytest.raises(NotYet, match=message):
        check_round(lambda *arguments: one_round(*arguments, **changed))


def test_a_round_that_learns_nothing_or_something_else():
    for learn, message in (
        (lambda policy, pairs, reference, inner: None, "0 times"),
        (lambda policy, pairs, reference, inner: inner(reference, pairs, reference), "another model"),
    ):

        def wrong(policy, start, rows, sample, judge, inner, learn=learn):
            own = lambda policy, pairs, reference: learn(policy, pairs, reference, inner)
            return one_round(policy, start, rows, sample, judge, own)

        with pytest.raises(NotYet, match=message):
            check_round(wrong)
    with pytest.raises(NotYet, match="return those learnt from"):
        check_round(lambda *arguments: one_round(*arguments)[:1])
