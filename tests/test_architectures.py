"""Models of many kinds, small and random: loaded from a folder, scored as by themselves, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as tf

from dpo_lab import load_policy
from dpo_lab.engine import paths
from dpo_lab.logprobs import score, scoring_path
from dpo_lab.sampling import generate
from tests.small_tokenizers import CHATML, bpe
from tests.test_logprobs import by_hand, random_pairs

SMALL = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 1}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
MAKERS = {
    "Gemma 2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(query_pre_attn_scalar=8, **SMALL)),
    "Gemma 3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SMALL)),
    "Gemma 3 with a vision part": lambda: tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(text_config=SMALL, vision_config=VISION, mm_tokens_per_image=4, image_token_index=300,
                        boi_token_index=301, eoi_token_index=302)),
    "Llama 4, text": lambda: tf.Llama4ForCausalLM(
        tf.Llama4TextConfig(intermediate_size_mlp=64, num_local_experts=2, **EXPERTS, **SMALL)),
    "Qwen 3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL)),
    "Qwen 3 Next": lambda: tf.Qwen3NextForCausalLM(tf.Qwen3NextConfig(
        num_experts=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, **EXPERTS,
        **SMALL | {"num_hidden_layers": 4})),
    "Mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(vocab_size=400, hidden_size=16, state_size=4,
                                                        num_hidden_layers=2)),
    "Cohere": lambda: tf.CohereForCausalLM(tf.CohereConfig(**SMALL)),
    "Granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(logits_scaling=4.0, **SMALL)),
    "GPT-OSS": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(num_local_experts=2, **EXPERTS, **SMALL)),
    "Phi 3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(pad_token_id=None, **SMALL)),
    "SmolLM 3": lambda: tf.SmolLM3ForCausalLM(tf.SmolLM3Config(pad_token_id=None, **SMALL)),
}  # fmt: skip


def own_values(model, data):
    """Every completion's log-prob by the model's own logits, (N, 2)."""
    return np.array([[float(by_hand(model, row.prompt, c).sum()) for c in row.completions]
                     for row in map(data.row, range(len(data)))])  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of kernels that are not installed
@pytest.mark.parametrize("name", MAKERS)
def test_a_model_is_scored_as_it_scores_itself_however_large_its_logits_grow(name, tmp_path):
    torch.manual_seed(0)
    MAKERS[name]().save_pretrained(tmp_path)
    bpe(template=CHATML).save_pretrained(tmp_path)
    model, tokenizer = load_policy(tmp_path, device="cpu")
    data = random_pairs(4)
    np.testing.assert_allclose(score(model, data), own_values(model, data), atol=1e-4)
    with torch.no_grad():  # as after a long training: ten nats and more between tokens
        for weight in model.parameters():
            weight.mul_(6)
    np.testing.assert_allclose(score(model, data), own_values(model, data), atol=1e-4, rtol=1e-5)
    assert len(generate(model, tokenizer, ["the cat"], max_new_tokens=4, temperature=0.0)) == 1


def test_a_cap_on_the_logits_is_found_without_a_setting_that_names_it(monkeypatch):
    monkeypatch.setattr(paths, "_CHANGES_LOGITS", ())
    torch.manual_seed(0)
    model = MAKERS["Gemma 2"]().eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert not scoring_path(model).chunked
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "make", "why"), [
    ("an encoder with a decoder", lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)), "T5Config"),
    ("vision alone", lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)), "ViTConfig"),
])  # fmt: skip
def test_a_model_that_is_no_causal_language_model_is_refused_in_words(name, make, why, tmp_path):
    make().save_pretrained(tmp_path)
    bpe().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{why}.*is no causal language model"):
        load_policy(tmp_path, device="cpu")
