"""Attention over shared rows: its three ways against the definition, in value and gradient. Attention in blocks is
tried with torch's own dense arithmetic of the kernel, and used only where it was found to work; the compiled kernel
itself needs a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as flex

from dpo_lab.batching import make_batch
from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.engine import attention, block_attention, compiling
from dpo_lab.engine.attention import BLOCK_ATTENTION, SHARED_ATTENTION, use_block_attention
from dpo_lab.engine.block_attention import BLOCK, attend_in_blocks, block_map, block_mask, padded_length
from dpo_lab.logprobs import sequence_logps
from dpo_lab.loop import Step
from dpo_lab.training import train_dpo, train_sft
from tests.conftest import random_pairs, tiny_llama

CPU = torch.device("cpu")
# The tracer looks at `.grad` of what lies inside the graph, and torch warns itself of that.
asks_for_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
SPANS = {
    "one block": ((0, 4, 7, 9), (9, 9, 12, 17), (17, 23, 24, 25)),  # an empty prompt, completions of one token
    "long": ((0, 300, 420, 700), (700, 701, 1000, 1003)),
    "borders": ((0, 128, 256, 384), (384, 512, 640, 641), (641, 641, 896, 1024)),
    "one completion": ((0, 200, 450), (450, 450, 800)),
    "three completions": ((0, 130, 200, 500, 640),),
}


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


@pytest.fixture
def dense(monkeypatch):
    """Torch's dense arithmetic in place of the compiled kernel, on a CPU, its gradient included."""
    monkeypatch.setattr(block_attention, "DEVICES", ("cpu",))
    monkeypatch.setattr(block_attention, "_kernel", lambda: flex.flex_attention)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    block_attention._tried.cache_clear()
    yield
    block_attention._tried.cache_clear()


def drawn(spans, heads: int = 4, key_heads: int = 4):
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, key_heads, key_heads)
    return [torch.randn(1, h, spans[-1][-1], 8, generator=generator, requires_grad=True) for h in sizes]


def seen(spans, num: int) -> np.ndarray:
    """Who sees whom, by the words of the module: one's prompt, and one's own past."""
    found = np.zeros((num, num), bool)
    for start, prompt_end, *ends in spans:
        found[start:prompt_end, start:prompt_end] = True
        for begin, end in zip((prompt_end, *ends), ends, strict=False):
            found[begin:end, start:prompt_end] = found[begin:end, begin:end] = True
    return found & np.tri(num, dtype=bool)


@pytest.mark.parametrize("name", SPANS)
def test_the_map_of_blocks_misses_nothing_and_takes_no_block_for_whole_that_is_not(name):
    spans = SPANS[name]
    num_blocks = -(-spans[-1][-1] // BLOCK)
    tokens = seen(spans, num_blocks * BLOCK)
    blocks = tokens.reshape(num_blocks, BLOCK, num_blocks, BLOCK)
    some, everything = block_map(spans, num_blocks)
    np.testing.assert_array_equal(some | everything, blocks.any((1, 3)))
    assert not (everything & ~blocks.all((1, 3))).any()


def test_whole_blocks_are_known_as_such():
    some, everything = block_map(SPANS["borders"], 8)
    assert everything[1, 0]
    assert everything[2, 0]
    assert some[2, 2]
    assert not everything[2, 2]
    assert not some[2, 1]
    assert not some[7, 6]  # the other completion of its prompt
    assert not everything[7, 6]


@pytest.mark.parametrize("name", SPANS)
def test_the_mask_says_for_every_two_tokens_whether_one_sees_the_other(name):
    spans = SPANS[name]
    num = spans[-1][-1]
    mask = block_mask(spans, CPU)
    query, key = torch.meshgrid(torch.arange(num), torch.arange(num), indexing="ij")
    found = mask.mask_mod(torch.tensor(0), torch.tensor(0), query, key)
    np.testing.assert_array_equal(found.numpy(), seen(spans, num))


WAYS = ["together", "apart", "in blocks"]


def attend_by(way: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """(query, key, value, spans) → output, by one of the three ways."""
    if way == "in blocks":
        return lambda query, key, value, spans: attend_in_blocks(query, key, value, spans, {})
    monkeypatch.setattr(attention, "TOKENS_TOGETHER", 10**6 if way == "together" else 0)
    return lambda *tensors: attention.shared_attention(torch.nn.Module(), *tensors[:3], None, spans=tensors[3])[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("name", SPANS)
def test_every_way_equals_the_definition_in_value_and_gradient(way, name, key_heads, dense, monkeypatch):
    spans = SPANS[name]
    query, key, value = drawn(spans, key_heads=key_heads)
    ours = attend_by(way, monkeypatch)(query, key, value, spans)
    groups = 4 // key_heads
    theirs = by_definition(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), spans)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad((ours * upstream).sum(), (query, key, value)),
        torch.autograd.grad((theirs * upstream).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_the_rejected_answer_does_not_see_the_chosen_one(way, dense, monkeypatch):
    spans, attend = SPANS["long"], attend_by(way, monkeypatch)
    query, key, value = drawn(spans)
    before = attend(query, key, value, spans)
    with torch.no_grad():
        key[:, :, 300:420] += 3  # the first prompt's chosen completion
        value[:, :, 300:420] -= 2
    after = attend(query, key, value, spans)
    assert torch.equal(before[:, :300], after[:, :300])
    assert not torch.allclose(before[:, 300:420], after[:, 300:420])
    assert torch.equal(before[:, 420:], after[:, 420:])  # bit for bit


def test_every_way_gives_a_model_the_same_log_probs_and_gradient(dense, monkeypatch):
    data, found, counted = random_pairs(7), [], []
    own = block_attention.attend_in_blocks
    monkeypatch.setattr(block_attention, "attend_in_blocks", lambda *given: counted.append(1) or own(*given))
    for way in WAYS:
        attend_by(way, monkeypatch)
        model = tiny_llama()
        if way == "in blocks":
            use_block_attention(model)
        logps = sequence_logps(model, make_batch(data, range(7)))
        logps.square().sum().backward()
        found.append((logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
        assert bool(counted) == (way == "in blocks")
    for one, other in [*zip(found[0], found[1], strict=True), *zip(found[0], found[2], strict=True)]:
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-5)


def test_in_autocast_blocks_take_the_precision_that_torch_gives_its_own_attention(dense):
    spans = SPANS["long"]
    query, key, value = drawn(spans)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attend_in_blocks(query, key, value, spans, {})
        theirs, _ = attention.shared_attention(torch.nn.Module(), query, key, value, None, spans=spans)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


# ── where it is used ─────────────────────────────────────────────────────────────────────────────────────────────────


def outputs(spans=SPANS["long"], **options):
    query, key, value = drawn(spans)
    given = (torch.nn.Module(), query, key, value, None)
    ours, _ = attention.shared_attention_in_blocks(*given, spans=spans, **options)
    plain, _ = attention.shared_attention(*given, spans=spans, **options)
    return ours, plain


def test_on_a_cpu_the_plain_way_stays_and_nothing_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        ours, plain = outputs()
    assert torch.equal(ours, plain)
    assert not caplog.records


def fails(*_, **__):
    raise NotImplementedError("no kernel for heads of this size")


def wrong(query, key, value, **_):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def breaks_its_gradient(query, key, value, *, scale=None, **options):
    """The right output; the gradient of the values is not a number."""
    kernel = torch.nn.attention.flex_attention.flex_attention
    output = kernel(query, key, value, scale=scale, **options)
    return output + 0 * (value.sum() - value.sum().detach()).sqrt()


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (fails, "NotImplementedError: no kernel for heads of this size"),
        (wrong, "values differ by"),
        (breaks_its_gradient, "values differ by nan"),
    ],
)
def test_a_kernel_that_fails_or_errs_is_told_once_and_not_used(kernel, said, dense, monkeypatch, caplog):
    monkeypatch.setattr(block_attention, "_kernel", lambda: kernel)
    with caplog.at_level(logging.WARNING):
        ours, plain = outputs()
        outputs()
    assert torch.equal(ours, plain)
    assert [said in record.getMessage() for record in caplog.records] == [True]


def test_the_trial_leaves_the_random_state_alone(dense):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    outputs()
    assert torch.equal(torch.rand(1), expected)


def test_lengths_are_few_and_hold_all_tokens():
    lengths = {padded_length(num) for num in range(1, 300_000, 17)}
    assert all(padded_length(num) >= num for num in range(1, 5000))
    assert all(num % BLOCK == 0 for num in lengths)
    assert len(lengths) <= 4 * 12
    assert all(padded_length(num) - num < max(BLOCK, num // 4 + 1) for num in range(1, 300_000, 101))


@pytest.mark.slow
@asks_for_grad
def test_batches_of_any_length_share_few_compilations(dense, monkeypatch):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    kernel = torch.compile(flex.flex_attention, dynamic=True, fullgraph=True, backend=backend)
    monkeypatch.setattr(block_attention, "_kernel", lambda: kernel)
    for name, spans in SPANS.items():
        query, key, value = drawn(spans)
        ours = attend_in_blocks(query, key, value, spans, {})
        torch.testing.assert_close(ours, by_definition(query, key, value, spans), atol=1e-5, rtol=1e-5)
        assert len(compiled) <= len({block_mask(s, CPU).seq_lengths for s in SPANS.values()}), name


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@asks_for_grad
@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_compiled_run_has_the_curve_of_the_plain_one(kind, dense, monkeypatch):
    own = compiling.compile_blocks
    monkeypatch.setattr(compiling, "_check_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "compile_blocks", lambda model: own(model, backend="eager"))
    train, config = (train_dpo, DPOConfig) if kind == "dpo" else (train_sft, SFTConfig)
    curves = []
    for is_compiled in (False, True):
        model = tiny_llama()
        settings = config(batch_size=4, max_length=64, device="cpu", learning_rate=1e-2, compile=is_compiled)
        events = list(train(model, None, random_pairs(24), settings))
        curves.append([event.metrics for event in events if isinstance(event, Step)])
        assert model.config._attn_implementation == (BLOCK_ATTENTION if is_compiled else SHARED_ATTENTION)
        assert is_compiled == any(part._compiled_call_impl is not None for part in model.modules())
    plain, compiled = curves
    assert len(plain) == len(compiled) == 6
    for one, other in zip(plain, compiled, strict=True):
        assert set(one) == set(other)
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    if kind == "dpo":
        assert compiled[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # the reference was scored in the same way


def test_a_machine_that_cannot_compile_is_told_before_the_run(monkeypatch):
    def no_compiler(*_, **__):
        raise OSError("g++ is not there\nand more")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compiling._check_compiler.cache_clear()
    config = DPOConfig(device="cpu", compile=True)
    with pytest.raises(
        RuntimeError, match=r"nothing can be compiled for cpu here \(OSError: g\+\+ is not there\); install"
    ):
        train_dpo(tiny_llama(), None, random_pairs(4), config)


def test_compiling_twice_changes_nothing():
    model = tiny_llama()
    assert compiling.compile_blocks(model, backend="eager") == compiling.compile_blocks(model, backend="eager")
