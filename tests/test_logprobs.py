"""Log-probabilities of completions: each value against the plain way to compute it, and each mask against its flip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab.batching import separate_rows, shared_rows
from dpo_lab.engine import attention, compiling, output_layer
from dpo_lab.logprobs import score, scoring_path, sequence_logps, sum_per_sequence, token_logps, usable_layout
from dpo_lab.preferences import TokenData
from tests.conftest import random_pairs, tiny_llama


@torch.no_grad()
def by_hand(model, prompt, completion) -> torch.Tensor:
    """log π of each completion token with one forward pass of the bare model and nothing clever."""
    ids = torch.tensor(np.concatenate([prompt, completion]).astype(np.int64))
    logits = model(ids[None]).logits[0].double()
    logps = logits.log_softmax(-1)
    start = len(prompt)
    return torch.stack([logps[t - 1, ids[t]] for t in range(max(start, 1), len(ids))])


def gradient(model, value: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("rows", [shared_rows, separate_rows])
def test_every_token_equals_the_plain_computation(model, rows):
    data = random_pairs(5)
    batch = rows(data, range(5))
    expected = torch.cat([by_hand(model, row.prompt, c) for row in map(data.row, range(5)) for c in row.completions])
    torch.testing.assert_close(token_logps(model, batch).double(), expected, atol=1e-5, rtol=1e-5)


def test_shared_and_separate_rows_agree_in_value_and_gradient(model):
    data = random_pairs(7)
    weights = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    shared, separate = (sequence_logps(model, rows(data, range(7))) for rows in (shared_rows, separate_rows))
    torch.testing.assert_close(shared, separate, atol=1e-5, rtol=1e-5)
    grads = [
        gradient(model, (sequence_logps(model, rows(data, range(7))) * weights).sum())
        for rows in (shared_rows, separate_rows)
    ]
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5 * float(grads[1].abs().max()), rtol=1e-5)


def test_a_sequence_scores_the_same_alone_batched_padded_and_chunked(model, monkeypatch):
    data = random_pairs(6)
    expected = sequence_logps(model, separate_rows(data, [3]))[0]
    for batch in (
        separate_rows(data, range(6)),
        separate_rows(data, range(6), padding_side="left"),
        separate_rows(data, range(6), pad_to=40),
        separate_rows(data, range(6), pad_to=40, pad_id=2),  # the end token pads
        shared_rows(data, range(6)),
    ):
        torch.testing.assert_close(sequence_logps(model, batch)[3], expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 64 * 3)
    monkeypatch.setattr(output_layer, "ROWS_AT_LEAST", 1)  # three tokens at a time
    torch.testing.assert_close(sequence_logps(model, shared_rows(data, range(6)))[3], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}], ids=["untied", "tied"])
def test_chunks_change_no_gradient(settings, monkeypatch):
    model, data = tiny_llama(**settings), random_pairs(6)
    grads = []
    for at_once, at_least in ((2**25, 128), (64 * 3, 1), (1, 5)):  # all, three and five tokens at a time
        monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", at_once)
        monkeypatch.setattr(output_layer, "ROWS_AT_LEAST", at_least)
        grads.append(gradient(model, sequence_logps(model, shared_rows(data, range(6))).square().sum()))
    for other in grads[1:]:
        torch.testing.assert_close(grads[0], other, rtol=1e-4, atol=1e-5 * float(grads[0].abs().max()))


@pytest.mark.parametrize(("vocabulary", "rows"), [(8192, 256), (50_000, 128), (150_000, 128)])
def test_a_chunk_is_never_so_short_that_weights_cost_more_than_logits(vocabulary, rows):
    hidden = torch.empty(300, 1)
    chunks = output_layer._chunks(hidden, vocabulary, output_layer.ROWS_AT_LEAST)
    lengths = [chunk.stop - chunk.start for chunk in chunks]
    assert set(lengths) == {rows}
    assert len(lengths) == -(-300 // rows)


@pytest.mark.parametrize("tile", [None, 2, 9], ids=["chunks", "tiles of two tokens", "one tile"])
def test_the_output_layer_gradient_equals_autograd(tile, monkeypatch):
    if tile is not None:  # six rows of nine tokens in tiles of two rows
        for name, value in (("TILE", min(tile, 8)), ("LOGITS_AT_ONCE", 2 * tile), ("LOGITS_IN_CACHE", 2 * tile)):
            monkeypatch.setattr(output_layer, name, value)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64, requires_grad=True) for n in (6, 9))
    bias = torch.randn(9, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 8, 3, 3, 5, 1])
    fast = lambda h, w, b: output_layer.TargetLogps.apply(h, w, b, targets)
    plain = lambda h, w, b: (h @ w.T + b).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    upstream = torch.randn(6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fast(hidden, weight, bias).double(), plain(hidden, weight, bias), rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad((fast(hidden, weight, bias) * upstream).sum(), (hidden, weight, bias)),
        torch.autograd.grad((plain(hidden, weight, bias) * upstream).sum(), (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # log-sum-exp runs in float32


@pytest.mark.parametrize("tile", [None, 8], ids=["chunks", "tiles"])
def test_a_bfloat16_output_layer_is_as_exact_as_its_numbers(tile, monkeypatch):
    if tile is not None:
        for name, value in (("TILE", tile), ("LOGITS_AT_ONCE", 1), ("LOGITS_IN_CACHE", 4 * tile)):
            monkeypatch.setattr(output_layer, name, value)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, requires_grad=True) for n in (40, 300))
    targets = torch.randint(0, 300, (40,), generator=generator)
    logps = output_layer.TargetLogps.apply(hidden.bfloat16(), weight, None, targets)
    plain = (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    assert logps.dtype is torch.float32
    torch.testing.assert_close(logps, plain, atol=0.1, rtol=0.02)
    for one, other in zip(
        torch.autograd.grad(logps.sum(), (hidden, weight)), torch.autograd.grad(plain.sum(), (hidden, weight)),
        strict=True,
    ):  # fmt: skip
        assert one.dtype is torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_the_rejected_answer_never_sees_the_chosen_one(model):
    data = random_pairs(3)
    rows = [data.row(i) for i in range(3)]
    changed = TokenData.from_rows([(r.prompt, ((r.completions[0] + 1) % 60 + 3, r.completions[1])) for r in rows])
    before, after = (sequence_logps(model, shared_rows(d, range(3))) for d in (data, changed))
    assert torch.equal(before[:, 1], after[:, 1])  # bit for bit
    assert not torch.equal(before[:, 0], after[:, 0])


def test_pairs_in_one_row_never_see_each_other(model):
    data = random_pairs(4)
    alone = torch.cat([sequence_logps(model, shared_rows(data, [i])) for i in range(4)])
    torch.testing.assert_close(sequence_logps(model, shared_rows(data, range(4))), alone, atol=1e-5, rtol=1e-5)


def test_more_than_two_answers_share_a_prompt(model):
    generator = np.random.default_rng(1)
    draw = lambda n: generator.integers(3, 64, n).astype(np.int32)
    data = TokenData.from_rows([(draw(6), (draw(3), draw(5), draw(1), draw(4))) for _ in range(3)])
    shared, separate = (sequence_logps(model, rows(data, range(3))) for rows in (shared_rows, separate_rows))
    assert shared.shape == (3, 4)
    torch.testing.assert_close(shared, separate, atol=1e-5, rtol=1e-5)


def test_an_empty_prompt_leaves_the_first_token_unscored(model):
    row = (np.array([], np.int32), (np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)))
    data = TokenData.from_rows([row])
    for rows in (shared_rows, separate_rows):
        batch = rows(data, [0])
        assert batch.lengths.tolist() == [[2, 1]]
        expected = torch.cat([by_hand(model, np.array([], np.int32), c) for c in row[1]])
        torch.testing.assert_close(token_logps(model, batch).double(), expected, atol=1e-5, rtol=1e-5)


def test_sums_and_means_differ_by_the_length(model):
    data = random_pairs(4)
    batch = shared_rows(data, range(4))
    logps = token_logps(model, batch)
    sums = sum_per_sequence(logps, batch)
    for b in range(4):
        for k in range(2):
            own = logps[batch.sequences == b * 2 + k]
            assert len(own) == batch.lengths[b, k] == len(data.row(b).completions[k])
            torch.testing.assert_close(sums[b, k], own.sum())


def test_bfloat16_keeps_sums_in_float32_and_float16_stays_finite(model):
    data = random_pairs(4)
    exact = sequence_logps(model, shared_rows(data, range(4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = sequence_logps(model, shared_rows(data, range(4)))
    assert rough.dtype is torch.float32
    assert float((rough - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max())
    half = sequence_logps(tiny_llama().half(), shared_rows(data, range(4)))
    assert torch.isfinite(half).all()


def test_scoring_a_data_set_equals_scoring_its_rows_in_any_cut(model):
    data = random_pairs(20)
    expected = torch.cat([sequence_logps(model, separate_rows(data, [i])) for i in range(20)]).detach().numpy()
    for tokens_per_pass in (1, 60, 10_000):
        np.testing.assert_allclose(score(model, data, tokens_per_pass=tokens_per_pass), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(score(model, data, layout="separate"), expected, atol=1e-5, rtol=1e-5)


def test_scoring_leaves_the_mode_and_the_gradients_alone(model):
    model.train()
    score(model, random_pairs(3))
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_generation_still_works_after_shared_scoring(model):
    ids = torch.tensor([[5, 6, 7]])
    before = model.generate(ids, max_new_tokens=8, do_sample=False)
    score(model, random_pairs(3))
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), before)


def test_a_model_that_caps_its_logits_is_scored_by_its_own(caplog):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0, sliding_window=8, initializer_range=0.5,
        query_pre_attn_scalar=8,
    )  # fmt: skip
    model, data = Gemma2ForCausalLM(config).eval(), random_pairs(4)
    assert not scoring_path(model).chunked
    expected = [float(by_hand(model, r.prompt, c).sum()) for r in map(data.row, range(4)) for c in r.completions]
    np.testing.assert_allclose(score(model, data).ravel(), expected, atol=1e-4, rtol=1e-4)
    assert "Gemma2ForCausalLM changes its logits after the output layer" in caplog.text


def test_sequences_longer_than_a_sliding_window_get_rows_of_their_own(caplog):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.5,
    )  # fmt: skip
    model, data = MistralForCausalLM(config).eval(), random_pairs(4)
    assert data.longest() > 8
    assert scoring_path(model).shared
    assert usable_layout(model, "shared", data) == "separate"
    expected = [float(by_hand(model, r.prompt, c).sum()) for r in map(data.row, range(4)) for c in r.completions]
    np.testing.assert_allclose(score(model, data).ravel(), expected, atol=1e-4, rtol=1e-4)
    assert "sliding window of 8 tokens" in caplog.text


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_a_model_whose_attention_does_more_keeps_its_own(name, caplog, monkeypatch):
    """Gemma 2 caps the scores, GPT-OSS has sinks: torch's own attention, and so ours, would leave both out."""
    import transformers as tf

    torch.manual_seed(0)
    small = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5,
    }  # fmt: skip
    model = {
        "gemma2": lambda: tf.Gemma2ForCausalLM(
            tf.Gemma2Config(attn_logit_softcapping=0.5, query_pre_attn_scalar=8, sliding_window=64, **small)
        ),
        "gpt_oss": lambda: tf.GptOssForCausalLM(
            tf.GptOssConfig(num_local_experts=2, num_experts_per_tok=1, sliding_window=64, **small)
        ),
    }[name]().eval()
    data, ids, own = random_pairs(4), torch.tensor([[5, 6, 7]]), model.config._attn_implementation
    before = model.generate(ids, max_new_tokens=8, do_sample=False)
    expected = [float(by_hand(model, r.prompt, c).sum()) for r in map(data.row, range(4)) for c in r.completions]
    assert usable_layout(model, "shared", data) == "separate"
    np.testing.assert_allclose(score(model, data).ravel(), expected, atol=1e-4, rtol=1e-4)
    assert "does not take another attention" in caplog.text
    monkeypatch.setattr(compiling, "_check_compiler", lambda device: None)
    monkeypatch.setattr(compiling, "compile_blocks", lambda model: 0)
    compiling.compile_model(model)
    assert model.config._attn_implementation == own
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), before)


def test_a_model_that_caps_its_scores_does_not_share_even_where_transformers_would_let_it(monkeypatch):
    from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2PreTrainedModel

    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    assert not attention.can_share(Gemma2ForCausalLM(Gemma2Config(attn_logit_softcapping=50.0, **small)))
    assert attention.can_share(Gemma2ForCausalLM(Gemma2Config(attn_logit_softcapping=None, **small)))


@pytest.mark.parametrize("options", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}])
def test_shared_rows_refuse_what_they_would_leave_out(options):
    query, key, value = torch.randn(3, 1, 4, 6, 8)
    for attend in (attention.shared_attention, attention.shared_attention_in_blocks):
        with pytest.raises(ValueError, match=f"has no {next(iter(options))}; use layout='separate'"):
            attend(torch.nn.Module(), query, key, value, None, spans=((0, 2, 4, 6),), **options)


def test_a_model_that_shares_wrongly_gets_its_attention_back(model, monkeypatch):
    own = model.config._attn_implementation
    monkeypatch.setattr(attention, "_attend_together", lambda query, *_: query.transpose(1, 2))
    assert not scoring_path(model).shared
    assert model.config._attn_implementation == own


def test_a_recurrent_model_falls_back_to_separate_rows(caplog):
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2, initializer_range=0.5)
    model, data = MambaForCausalLM(config).eval(), random_pairs(3)
    assert usable_layout(model, "shared", data) == "separate"
    assert "one row per completion is used" in caplog.text
    expected = [float(by_hand(model, r.prompt, c).sum()) for r in map(data.row, range(3)) for c in r.completions]
    np.testing.assert_allclose(score(model, data).ravel(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gpt_neox"])
def test_other_architectures_agree_with_the_plain_computation(name):
    import transformers as tf

    torch.manual_seed(0)
    small = {"vocab_size": 64, "initializer_range": 0.3}
    model = {
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **small)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(
            tf.Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, **small)),
        "gpt_neox": lambda: tf.GPTNeoXForCausalLM(
            tf.GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, **small)
        ),
    }[name]().eval()  # fmt: skip
    data = random_pairs(4)
    expected = [float(by_hand(model, r.prompt, c).sum()) for r in map(data.row, range(4)) for c in r.completions]
    np.testing.assert_allclose(score(model, data).ravel(), expected, atol=1e-4, rtol=1e-4)
    assert scoring_path(model).chunked
