"""The checks of the log-probability exercises: right answers pass, each usual mistake gets a message of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab.course.exercises import NotYet, check_border, check_mask_repair, check_shared_row, check_token_logps

# ── token log-probs ──────────────────────────────────────────────────────────────────────────────────────────────────


def token_logps(logits, ids, num_prompt):
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0][num_prompt - 1 :]


def every_token(logits, ids, num_prompt):
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


def unshifted(logits, ids, num_prompt):
    return logits.log_softmax(-1).gather(-1, ids[:, None])[num_prompt:, 0]


def test_right_token_logps(capsys):
    check_token_logps(token_logps)
    assert capsys.readouterr().out.startswith("Right: ")


def empty(logits, ids, num_prompt):
    raise NotImplementedError()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (unshifted, "logits at t read for the token at t"),
        (lambda *a: token_logps(*a).exp(), "probabilities"),
        (lambda *a: -token_logps(*a), "sign is flipped"),
        (lambda logits, ids, p: logits[:-1].gather(-1, ids[1:, None])[p - 1 :, 0], "raw logits"),
        (lambda *a: token_logps(*a)[:-1], "end token"),
        (lambda *a: token_logps(*a)[1:], "prompt's last token predicts it"),
        (every_token, "tokens of the prompt"),
        (lambda *a: token_logps(*a).sum(), "their sum"),
        (lambda *a: token_logps(*a).mean(), "one number"),
        (lambda *a: token_logps(*a) + 0.1, "Take one position by hand"),
        (lambda *a: torch.zeros(40), "Which positions predict"),
        (empty, "still empty"),
        (lambda *a: None, "returned nothing"),
    ],
)
def test_wrong_token_logps(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_token_logps(wrong)


# ── the mask that was not moved ──────────────────────────────────────────────────────────────────────────────────────


def scored(logits, ids):
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def test_right_mask(capsys):
    check_mask_repair(lambda logits, ids, mask: (scored(logits, ids) * mask[:, 1:]).sum(-1))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits, ids, mask: (scored(logits, ids) * mask[:, :-1]).sum(-1), "bug is still there"),
        (
            lambda logits, ids, mask: (logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * mask).sum(-1),
            "nothing is shifted",
        ),
        (lambda logits, ids, m: (scored(logits, ids) * m[:, 1:]).sum(-1) / m[:, 1:].sum(-1), "mean per token"),
        (lambda logits, ids, mask: scored(logits, ids).sum(-1), "mask is not used"),
        (lambda logits, ids, m: (scored(logits, ids) * (m & (ids != 0))[:, 1:]).sum(-1), "end tokens are gone"),
        (lambda logits, ids, mask: scored(logits, ids) * mask[:, 1:], "shape"),
        (lambda logits, ids, mask: torch.zeros(3), "same token"),
    ],
)
def test_wrong_masks(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_mask_repair(wrong)


# ── the border ───────────────────────────────────────────────────────────────────────────────────────────────────────


def common(one, other):
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)


def test_right_border(capsys):
    check_border(lambda prompt, wholes: min(common(prompt, whole) for whole in wholes))
    assert capsys.readouterr().out.startswith("Right: ")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda prompt, wholes: len(prompt), "do all of them begin the whole"),
        (lambda prompt, wholes: max(common(prompt, whole) for whole in wholes), "begin the whole"),
        (lambda prompt, wholes: common(prompt, wholes[0]), "begin the whole"),
        (lambda prompt, wholes: common(*wholes), "still the answer"),
        (lambda prompt, wholes: 0, "Count how many"),
    ],
)
def test_wrong_borders(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_border(wrong)


# ── the shared row ───────────────────────────────────────────────────────────────────────────────────────────────────


def parts(*sizes):
    return np.repeat([0, 1, 2], sizes)


def positions(p, c, r):
    return np.concatenate([np.arange(p + c), p + np.arange(r)])


def sees(p, c, r):
    part = parts(p, c, r)
    return (part[None] == 0) | (part[None] == part[:, None])


def test_right_shared_row(capsys):
    check_shared_row(lambda *sizes: (positions(*sizes), np.tril(sees(*sizes))))
    check_shared_row(lambda *sizes: (torch.tensor(positions(*sizes)), torch.tensor(np.tril(sees(*sizes)))))
    assert capsys.readouterr().out.count("Right: ") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda *s: (np.arange(sum(s)), np.tril(sees(*s))), "run on through"),
        (lambda *s: (np.concatenate([np.arange(n) for n in s]), np.tril(sees(*s))), "Each part starts at 0"),
        (lambda *s: (positions(*s), np.tril(np.ones((sum(s), sum(s))))), "sees the chosen one"),
        (lambda *s: (positions(*s), sees(*s)), "own future"),
        (lambda *s: (positions(*s), np.tril(sees(*s)).T), "transposed"),
        (lambda *s: (positions(*s), np.tril(sees(*s), -1)), "itself"),
        (lambda *s: (positions(*s), np.tril(parts(*s)[None] == parts(*s)[:, None])), "do not see the prompt"),
        (lambda *s: (positions(*s), np.zeros((sum(s), sum(s)))), "token 0 does not see token 0"),
        (lambda *s: positions(*s), "return two things"),
        (lambda *s: (positions(*s)[:-1], sees(*s)), "shape"),
    ],
)
def test_wrong_shared_rows(wrong, message):
    with pytest.raises(NotYet, match=message):
        check_shared_row(wrong)
