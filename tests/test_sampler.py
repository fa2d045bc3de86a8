"""The sampler's own loop against the model's: the same tokens and log-probs, however many answers are side by side."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from dpo_lab.engine import sampler
from dpo_lab.engine.key_store import TokenPass, why_not_stored
from dpo_lab.engine.two_halves import TwoThreads
from dpo_lab.models.inside import in_precision
from dpo_lab.sampling import generate, generate_ids
from tests.conftest import tiny_llama
from tests.tiny import tiny_tokenizer

PROMPTS = ["the cat sat", "a dog", "it was a big red tree and then the cat", "no"]
TOKENIZER = tiny_tokenizer()
IDS = [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]

WORDS: dict[str, Any] = {"vocab_size": 64, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, Any] = {**WORDS, **SIZES, "pad_token_id": 0}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2}
HEADS: dict[str, Any] = {**GROUPED, "head_dim": 8, "sliding_window": 64}
SHORT: dict[str, Any] = {**GROUPED, "sliding_window": 8}

MODELS = {
    "llama": tiny_llama,
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **WORDS)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SMALL)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, init_std=0.3, **SMALL)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(query_pre_attn_scalar=8, **HEADS)),
    "cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(logit_scale=0.5, **GROUPED)),
}  # fmt: skip
OTHERS = {
    "gemma2": (lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(attn_logit_softcapping=0.5, query_pre_attn_scalar=8, **HEADS)),
        "Gemma2ForCausalLM does not take another attention"),
    "mamba": (lambda: tf.MambaForCausalLM(tf.MambaConfig(hidden_size=16, state_size=4, num_hidden_layers=2, **WORDS)),
              "MambaForCausalLM does not take another attention"),
    "window": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**SHORT)),
               "it attends to a sliding window of 8 tokens, and an answer with its prompt may have 22"),
    "dynamic": (lambda: tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
                "the rotary positions of LlamaForCausalLM depend on the length of its rows"),
}  # fmt: skip


def built(make):
    torch.manual_seed(0)
    return make().eval()


def tokens_of(rows) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in row] for row in rows]


@torch.no_grad()
def own_logps(model, prompt: list[int], answer) -> np.ndarray:
    """log π of each token of an answer from one forward pass over prompt and answer."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(np.asarray(answer, np.int64))[:, None])[:, 0].numpy()


def check_greedy_and_logps(model) -> None:
    rows = generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=11, temperature=0, batch_size=3)
    for prompt, (answer,) in zip(IDS, rows, strict=True):
        ids = torch.tensor([prompt])
        own = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=11, do_sample=False)
        assert answer.ids.tolist() == own[0, len(prompt) :].tolist()
    sampled = generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=11, temperature=0.7, top_p=0.9, num_samples=3)
    for prompt, row in zip(IDS, [a + b for a, b in zip(rows, sampled, strict=True)], strict=True):
        for answer in row:
            assert answer.logps.dtype == np.float32
            np.testing.assert_allclose(answer.logps, own_logps(model, prompt, answer.ids), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_are_those_of_generate_and_log_probs_those_of_a_forward_pass(name, caplog):
    model = built(MODELS[name])
    own_attention = model.config._attn_implementation
    check_greedy_and_logps(model)
    assert why_not_stored(model, 22) == ""
    assert not [record for record in caplog.records if record.name == "dpo_lab"]
    assert model.config._attn_implementation == own_attention


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_sampled_by_generate_itself_which_is_said_once(name, caplog):
    make, reason = OTHERS[name]
    model = built(make)
    settings = model.generation_config.to_dict()
    caplog.set_level(logging.WARNING, logger="dpo_lab")
    check_greedy_and_logps(model)
    assert [r.getMessage() for r in caplog.records if r.name == "dpo_lab"] == [
        f"answers are sampled by transformers' own loop, which takes longer: {reason}"
    ]
    assert model.generation_config.to_dict() == settings


def test_a_model_that_gives_other_values_is_sampled_by_generate(monkeypatch, caplog):
    monkeypatch.setattr(TokenPass, "attend", lambda self, layer, query, *_: query.transpose(1, 2))
    model = tiny_llama()
    assert why_not_stored(model, 20) == "LlamaForCausalLM gives other values from a store of keys"
    monkeypatch.undo()
    check_greedy_and_logps(model)
    assert "gives other values" in caplog.text


# ── the random numbers ───────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def sampled_by_hand(model, prompt: list[int], numbers, temperature: float, top_p: float) -> list[int]:
    """The inverse of the cumulated probabilities in float64, from a whole forward pass for every token."""
    answer: list[int] = []
    for number in numbers:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, -1].double() / temperature
        p = logits.softmax(-1).numpy()
        order = np.argsort(-p, kind="stable")
        p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
        answer.append(int(np.searchsorted(np.cumsum(p), number * p.sum(), side="right")))
        if answer[-1] == 2:
            break
    return answer


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.8, 1.0), (1.3, 0.6)])
@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_sampled_tokens_are_those_of_a_plain_loop_with_the_same_random_numbers(name, temperature, top_p):
    model = built(MODELS[name] if name in MODELS else OTHERS[name][0])
    rows = generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=9, temperature=temperature, top_p=top_p, seed=7,
                        num_samples=3, batch_size=5)  # fmt: skip
    for i, (prompt, row) in enumerate(zip(IDS, rows, strict=True)):
        for k, answer in enumerate(row):
            numbers = np.random.default_rng((7, i, k)).random(9, np.float32)
            assert answer.ids.tolist() == sampled_by_hand(model, prompt, numbers, temperature, top_p)


def test_an_answer_does_not_depend_on_what_else_is_sampled(monkeypatch):
    model = tiny_llama()
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 3}
    rows = tokens_of(generate_ids(model, TOKENIZER, PROMPTS, num_samples=5, **options))
    for batch_size in (1, 3, 16):
        again = generate_ids(model, TOKENIZER, PROMPTS, num_samples=5, batch_size=batch_size, **options)
        assert tokens_of(again) == rows
    more = generate_ids(model, TOKENIZER, [*PROMPTS, "yes", "the"], num_samples=7, **options)
    assert [row[:5] for row in tokens_of(more)[:4]] == rows
    monkeypatch.setattr(sampler, "FEWEST_HALVED", 16)
    for threads, first in ((1, PROMPTS), (2, PROMPTS), (2, PROMPTS[:1])):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found = generate_ids(model, TOKENIZER, first, num_samples=20, **options)
        finally:
            torch.set_num_threads(before)
        assert [row[:5] for row in tokens_of(found)] == rows[: len(first)]
    monkeypatch.setattr(sampler, "LOGITS_IN_CACHE", 100)  # one row at a time
    assert tokens_of(generate_ids(model, TOKENIZER, PROMPTS, num_samples=5, **options)) == rows


def test_a_negative_seed_is_a_seed_too():
    one, other = (generate(tiny_llama(), TOKENIZER, PROMPTS, max_new_tokens=8, seed=seed) for seed in (-1, 1))
    assert one != other


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.9999])
def test_the_nucleus_is_that_of_a_whole_sort(top_p):
    flat = torch.randn(6, 3000, generator=torch.manual_seed(0)).mul(torch.arange(6)[:, None]).softmax(-1)
    kept = sampler.nucleus(flat, top_p)
    for row, own in zip(flat, kept, strict=True):
        largest = row.sort(descending=True).values
        num = int((largest.double().cumsum(0) < top_p).sum()) + 1
        assert abs(int((own > 0).sum()) - num) <= 1  # one more or fewer by rounding
        assert torch.equal(own[own > 0].sort(descending=True).values, largest[: int((own > 0).sum())])
    assert sampler.nucleus(flat, 1.0) is flat


# ── the work ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 4, 9, 64])
def test_ended_answers_leave_waiting_ones_enter_and_a_prompt_is_computed_once(batch_size, monkeypatch):
    steps, computed = [], []
    token_logits, compute_prompts = sampler.token_logits, sampler.compute_prompts
    monkeypatch.setattr(sampler, "two_threads", lambda *_: None)
    monkeypatch.setattr(sampler, "token_logits", lambda *a: (steps.append(len(a[2])), token_logits(*a))[1])
    monkeypatch.setattr(sampler, "compute_prompts", lambda *a: (computed.extend(a[1]), compute_prompts(*a))[1])
    rows = generate_ids(tiny_llama(), TOKENIZER, PROMPTS, max_new_tokens=30, num_samples=6, batch_size=batch_size)
    answers = [answer for row in rows for answer in row]
    assert len({len(answer.ids) for answer in answers}) > 4
    assert sum(steps) == sum(len(answer.ids) - 1 for answer in answers)  # the first token comes with the prompt
    assert max(steps) <= batch_size
    assert sorted(computed) == [0, 1, 2, 3]
    if batch_size < 64:  # the store stays full while answers wait
        assert np.mean(np.array(steps[: len(steps) // 2])) > 0.8 * batch_size


def test_a_table_of_positions_ends_each_answer_by_itself():
    model = built(lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, **WORDS)))
    model.generation_config.eos_token_id = None
    tokenizer = tiny_tokenizer(eos_token="<unk>")
    rows = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=9, num_samples=4)
    for prompt, row in zip(IDS, rows, strict=True):
        assert all(answer.is_finished or len(answer.ids) == min(9, 16 - len(prompt)) for answer in row)
    with pytest.raises(ValueError, match="a prompt has a row of 17 tokens, and the model has 16 positions"):
        generate_ids(model, tokenizer, [[5] * 16])


# ── precision, adapters, failures ────────────────────────────────────────────────────────────────────────────────────


def test_bfloat16_samples_from_a_copy_that_is_close():
    model = tiny_llama(initializer_range=0.15)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    rows = generate_ids(model, TOKENIZER, PROMPTS, max_new_tokens=9, num_samples=6, precision="bfloat16")
    for prompt, row in zip(IDS, rows, strict=True):
        for answer in row:
            np.testing.assert_allclose(answer.logps, own_logps(model, prompt, answer.ids), atol=0.15)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    tied = in_precision(tiny_llama(tie_word_embeddings=True), torch.bfloat16)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert tied.lm_head.weight.dtype is torch.bfloat16
    assert tied.model.rotary_emb.inv_freq.dtype is torch.float32
    with pytest.raises(
        ValueError, match="precision must be float32 or bfloat16, got 'int8'; float32 keeps the weights"
    ):
        generate(model, TOKENIZER, PROMPTS, precision="int8")


def test_adapters_are_sampled_with_their_base():
    from peft import LoraConfig, get_peft_model

    base = tiny_llama()
    plain = tokens_of(generate_ids(base, TOKENIZER, PROMPTS, max_new_tokens=9, temperature=0))
    torch.manual_seed(1)
    adapted = get_peft_model(
        base, LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    )
    adapted.train()
    assert tokens_of(generate_ids(adapted, TOKENIZER, PROMPTS, max_new_tokens=9, temperature=0)) != plain
    assert adapted.training
    check_greedy_and_logps(adapted.eval())
    rounded = generate_ids(adapted, TOKENIZER, PROMPTS, max_new_tokens=9, precision="bfloat16")
    errors = [
        np.abs(row[0].logps - own_logps(adapted, ids, row[0].ids)).mean() for ids, row in zip(IDS, rounded, strict=True)
    ]
    assert np.mean(errors) < 0.15


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_probabilities_that_are_no_numbers_are_reported(temperature):
    for make in (MODELS["llama"], OTHERS["mamba"][0]):
        model = built(make).train()
        with torch.no_grad():
            model.get_output_embeddings().weight[5] = torch.nan
        with pytest.raises(
            FloatingPointError, match="probabilities that are no numbers; look at its weights, they may"
        ):
            generate(model, TOKENIZER, PROMPTS * 8, temperature=temperature)
        assert model.training


def test_where_one_thread_is_interrupted_the_other_ends_too(monkeypatch):
    token_logits, steps, other_began = sampler.token_logits, {True: 0, False: 0}, threading.Event()

    def interrupted(*arguments):
        is_main = threading.current_thread() is threading.main_thread()
        steps[is_main] += 1
        if not is_main:
            other_began.set()
        if is_main and steps[True] == 2:
            other_began.wait(60)
            raise KeyboardInterrupt
        return token_logits(*arguments)

    monkeypatch.setattr(sampler, "token_logits", interrupted)
    monkeypatch.setattr(sampler, "two_threads", lambda *_: TwoThreads())
    monkeypatch.setattr(sampler, "FEWEST_HALVED", 16)
    model = tiny_llama()
    own_attention, threads = model.config._attn_implementation, torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        generate(model, TOKENIZER, PROMPTS, num_samples=400, max_new_tokens=200, batch_size=16)
    assert 0 < steps[False] < 400
    assert model.config._attn_implementation == own_attention
    assert torch.get_num_threads() == threads
