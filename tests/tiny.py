"""A tokenizer of some fifty words, and a folder that holds it with a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import tiny_llama

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "big", "small", "red", "blue", "and",
         "then", "it", "was", "happy", "sad", "good", "bad", "yes", "no"]  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|> {{ message.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def tiny_tokenizer(*, bos: bool = True, template: str | None = None, **settings: Any):
    """Whole words split at white space; with `bos` it begins every text with <s>. Ids are below 64."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokens["additional_special_tokens"] = ["<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **{**tokens, **settings})
    tokenizer.chat_template = template
    return tokenizer


def saved_model(folder: Path, model: Any = None, tokenizer: Any = None, **options: Any) -> Path:
    """The folder, with a tiny model and tokenizer in it as transformers saves them."""
    (tiny_llama() if model is None else model).save_pretrained(folder, **options)
    (tiny_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


def tiny_gguf(
    path: Path, model: Any = None, *, drop: str = "", architecture: str = "llama", pre: str = "smollm"
) -> Path:
    """A .gguf file with a tiny Llama, 270 tokens (three special ones, the bytes, merges) and a template.

    drop: leave this weight out. Written as llama.cpp writes it, with its own names and its own order of the rows that
    rotary positions turn.
    """
    from gguf import GGUFWriter
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model = tiny_llama(GGUF_TOKENS) if model is None else model
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(GGUF_TOKENS)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values()]
    merges = ["Ġ Ġ", "t h", "th e", "Ġ the", "c a", "ca t", "Ġ cat", "e r", "i n", "o n", "a t"]
    tokens += [merge.replace(" ", "") for merge in merges]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in model.state_dict().items():
        values = weight.float().numpy()
        for rows, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if rows in name:
                halves = values.reshape(heads, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        if name != drop:
            writer.add_tensor(name, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_TOKENS = 3 + 256 + 11
GGUF_NAMES = {
    "model.layers.": "blk.", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}  # fmt: skip
