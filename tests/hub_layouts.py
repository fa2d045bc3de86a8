"""Folders with exactly the files and fields that some models and preference sets have on the Hub, but tiny.

Weights are random. What is checked with them is the loading: configuration classes, tokenizers, templates, index files,
data cards, nested folders. Field names and special values are those of the published repositories.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers import decoders as token_decoders

from tests.small_tokenizers import CORPUS

SMOLLM2, QWEN = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"
ULTRAFEEDBACK, HH = "trl-lib/ultrafeedback_binarized", "Anthropic/hh-rlhf"

# Both models write ChatML and put a system turn of their own before a conversation that has none.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct: a Llama with tied embeddings; the token that ends a turn pads as well."""
    from transformers import LlamaConfig, LlamaForCausalLM

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>", "<empty_output>"]
    size = _tokenizer_files(folder, specials, {
        "add_prefix_space": False, "bos_token": "<|im_start|>", "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "model_max_length": 8192, "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer", "unk_token": "<|endoftext|>", "vocab_size": 49152,
    })  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=size, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.1,
    ))  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder)
    _write(folder / "generation_config.json",
           {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})  # fmt: skip
    return folder


def qwen(folder: Path) -> Path:
    """Qwen2.5-0.5B-Instruct: more embeddings than tokens, biases on q, k and v; here in several files."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<tool_call>", "</tool_call>"]
    size = _tokenizer_files(folder, specials, {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    })  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=size + 40, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32768, max_window_layers=2, sliding_window=32768,
        use_sliding_window=False, rope_theta=1000000.0, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2,
        initializer_range=0.1,
    ))  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="50KB")
    _write(folder / "generation_config.json",
           {"bos_token_id": 0, "pad_token_id": 0, "do_sample": True, "eos_token_id": [2, 0], "repetition_penalty": 1.1,
            "temperature": 0.7, "top_k": 20, "top_p": 0.8})  # fmt: skip
    return folder


def ultrafeedback(folder: Path, num: int = 12) -> Path:
    """trl-lib/ultrafeedback_binarized: message lists with their prompt inside, and a score for each side."""
    turn = pa.struct([("content", pa.string()), ("role", pa.string())])
    schema = pa.schema([
        ("chosen", pa.list_(turn)), ("rejected", pa.list_(turn)),
        ("score_chosen", pa.float64()), ("score_rejected", pa.float64()),
    ])  # fmt: skip
    (folder / "data").mkdir(parents=True)
    for split, size in (("train", num), ("test", num // 3)):
        rows = [_judged(i, split) for i in range(size)]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / f"{split}-00000-of-00001.parquet")
    parts = "\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in ("train", "test"))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{parts}\n---\n\n# UltraFeedback Binarized\n"
    )
    return folder


def _judged(i: int, split: str) -> dict[str, Any]:
    said = lambda answer: [{"content": f"What is the {split} answer {i}?", "role": "user"},
                           {"content": answer, "role": "assistant"}]  # fmt: skip
    return {"chosen": said(f"The answer is {i}."), "rejected": said("The cat sat on the mat and the dog."),
            "score_chosen": 8.0, "score_rejected": 3.5}  # fmt: skip


def hh_rlhf(folder: Path, num: int = 8) -> Path:
    """Anthropic/hh-rlhf: folders of gzipped JSON lines, transcripts as text, and one folder that holds no pairs."""
    for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        (folder / part).mkdir(parents=True)
        for split, size in (("train", num), ("test", num // 2)):
            rows = [_transcripts(f"{part} {split} {i}") for i in range(size)]
            _write_gz(folder / part / f"{split}.jsonl.gz", rows)
    (folder / "red-team-attempts").mkdir()
    attempt = {"min_harmlessness_score_transcript": -1.5, "num_params": "52B", "model_type": "plain lm", "rating": 4.0,
               "transcript": "\n\nHuman: how are you?\n\nAssistant: I am fine.", "tags": None}  # fmt: skip
    _write_gz(folder / "red-team-attempts" / "red_team_attempts.jsonl.gz", [attempt])
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- human-feedback\n---\n\n# Dataset Card for HH-RLHF\n")
    (folder / ".gitattributes").write_text("*.gz filter=lfs diff=lfs merge=lfs -text\n")
    return folder


def _transcripts(about: str) -> dict[str, str]:
    shared = f"\n\nHuman: how are you, {about}?\n\nAssistant: I am fine.\n\nHuman: and the cat?\n\nAssistant:"
    return {"chosen": f"{shared} The cat is on the mat.", "rejected": f"{shared} The dog and then the cat."}


def _tokenizer_files(folder: Path, specials: list[str], settings: dict[str, Any]) -> int:
    """A byte-level BPE as the two repositories ship it: four files, the template inside one; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = token_decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=specials, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    added = {str(tokenizer.token_to_id(token)): {"content": token, "lstrip": False, "normalized": False,
                                                 "rstrip": False, "single_word": False, "special": True}
             for token in specials}  # fmt: skip
    named = {"added_tokens_decoder": added, "additional_special_tokens": specials[1:3], "chat_template": CHATML}
    _write(folder / "tokenizer_config.json", settings | named)
    return tokenizer.get_vocab_size()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
