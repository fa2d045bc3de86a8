"""Attention over shared rows: both ways of computing it against the definition, in value and gradient."""

from __future__ import annotations

import pytest
import torch

from dpo_lab.batching import shared_rows
from dpo_lab.engine import attention
from dpo_lab.logprobs import sequence_logps
from tests.conftest import random_pairs, tiny_llama

SPANS = ((0, 4, 7, 9), (9, 9, 12, 17), (17, 23, 24, 25))  # an empty prompt, and completions of one token
WAYS = {"together": 10**6, "apart": 0}


def by_definition(query, key, value, spans):
    """Softmax over what each token sees, with one mask over all tokens."""
    num = query.shape[2]
    sees = torch.zeros(num, num, dtype=torch.bool)
    for start, prompt_end, *ends in spans:
        begins = [prompt_end, *ends[:-1]]
        sees[start : ends[-1], start:prompt_end] = True
        for begin, end in zip(begins, ends, strict=True):
            sees[begin:end, begin:end] = True
    sees &= torch.ones(num, num, dtype=torch.bool).tril()
    scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    return (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def drawn(heads: int = 4, key_heads: int = 4):
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, key_heads, key_heads)
    return [torch.randn(1, h, SPANS[-1][-1], 8, generator=generator, requires_grad=True) for h in sizes]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key_heads", [4, 2])
def test_both_ways_equal_the_definition_in_value_and_gradient(way, key_heads, monkeypatch):
    monkeypatch.setattr(attention, "TOKENS_TOGETHER", WAYS[way])
    query, key, value = drawn(key_heads=key_heads)
    ours, _ = attention.shared_attention(torch.nn.Module(), query, key, value, None, spans=SPANS)
    groups = 4 // key_heads
    theirs = by_definition(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), SPANS)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad((ours * upstream).sum(), (query, key, value)),
        torch.autograd.grad((theirs * upstream).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_the_rejected_answer_does_not_see_the_chosen_one(way, monkeypatch):
    monkeypatch.setattr(attention, "TOKENS_TOGETHER", WAYS[way])
    query, key, value = drawn()
    before, _ = attention.shared_attention(torch.nn.Module(), query, key, value, None, spans=SPANS)
    with torch.no_grad():
        key[:, :, 4:7] += 3  # the first prompt's chosen completion
        value[:, :, 4:7] -= 2
    after, _ = attention.shared_attention(torch.nn.Module(), query, key, value, None, spans=SPANS)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:7], after[:, 4:7])
    assert torch.equal(before[:, 7:], after[:, 7:])  # bit for bit


def test_both_ways_give_a_model_the_same_log_probs_and_gradient(monkeypatch):
    data, found = random_pairs(7), []
    for tokens in WAYS.values():
        monkeypatch.setattr(attention, "TOKENS_TOGETHER", tokens)
        model = tiny_llama()
        logps = sequence_logps(model, shared_rows(data, range(7)))
        logps.square().sum().backward()
        found.append((logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)
