"""What is trained on in the benchmarks: a Llama of 8.9 M parameters and real preference pairs.

The pairs are the first of HH harmless-base where it lies beside the checkout, else the embedded ones, else made up. A
tokenizer of 8,192 tokens is trained on their texts. Everything made is kept under build/benchmarks/. The texts are
offensive and are never printed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_lab.preferences import TokenData, load_preferences, tokenize_pairs

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "benchmarks"
HARMLESS = [
    folder / "shared" / "real" / "preferences" / "hh-harmless-base-test.jsonl.gz" for folder in (ROOT.parent, ROOT)
]
EMBEDDED = ROOT / "data" / "pairs"
VOCABULARY, MAX_LENGTH = 8192, 512
SHAPE = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


def make_model(seed: int = 0, **changes: Any):
    """The random Llama; a seed always gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": VOCABULARY, **SHAPE} | changes)).eval()


def source() -> Path:
    """The file of preference pairs."""
    if found := next((path for path in HARMLESS if path.is_file()), None):
        return found
    embedded = sorted(path for path in EMBEDDED.rglob("*") if path.name.startswith("train") and path.is_file())
    if not embedded:
        raise SystemExit(
            "there are no pairs: neither the real ones (../shared/real) nor the embedded ones (data/pairs)"
        )
    return embedded[0]


def prepare() -> Path:
    """Tokenise all pairs once; returns the folder with `tokens/` and `tokenizer/`, made anew when the file changes."""
    path = source()
    folder = KEPT / f"{path.name.split('.')[0]}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if not (folder / "tokens" / "token_data.json").is_file():
        logging.getLogger("dpo_lab").setLevel(logging.ERROR)
        rows = list(load_preferences(path, on_bad_row="skip"))
        tokenizer = _train_tokenizer(_texts(rows))
        tokenizer.save_pretrained(folder / "tokenizer")
        data, _ = tokenize_pairs(rows, tokenizer, max_length=MAX_LENGTH, on_bad_row="skip")
        data.save(folder / "tokens")
    return folder


class Workload(NamedTuple):
    """A model, its tokenizer, the folder of its pairs, and the longest row."""

    make: Callable[[], Any]
    tokenizer: Path
    folder: Path
    max_length: int


def small() -> Workload:
    """The random Llama with a tokenizer trained on the pairs."""
    folder = prepare()
    return Workload(make_model, folder / "tokenizer", folder, MAX_LENGTH)


def loaded(name: str) -> Workload:
    """ "smollm2", with pairs cut at 384 tokens, or "embedded" with its own pairs."""
    from dpo_lab import load_policy
    from dpo_lab.models.loading import save_policy

    path = source() if name == "smollm2" else next(EMBEDDED.rglob("train*"))
    folder = KEPT / f"{name}-{path.name.split('.')[0]}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    if not (folder / "tokens" / "token_data.json").is_file():
        logging.getLogger("dpo_lab").setLevel(logging.ERROR)
        model, tokenizer = load_policy(name, device="cpu")
        save_policy(model, tokenizer, folder / "model")
        rows = list(load_preferences(path, on_bad_row="skip"))
        data, _ = tokenize_pairs(rows, tokenizer, max_length=384, on_bad_row="skip")
        data.save(folder / "tokens")
    return Workload(lambda: load_policy(folder / "model", device="cpu")[0], folder / "model", folder, 384)


WORKLOADS = {"small": small, "real": lambda: loaded("smollm2"), "embedded": lambda: loaded("embedded")}


def load_pairs(folder: Path, num: int) -> TokenData:
    """`num` pairs drawn with a fixed seed: any run of them has about the same lengths."""
    data = TokenData.load(folder / "tokens")
    order = np.random.default_rng(0).permutation(len(data))
    return data.select(order[:num])


def _texts(rows: list[dict[str, Any]]) -> list[str]:
    texts = []
    for row in rows:
        for name in ("prompt", "chosen", "rejected"):
            turns = [{"content": row[name]}] if isinstance(row[name], str) else row[name]
            texts += [turn["content"] for turn in turns]
    return texts


def _train_tokenizer(texts: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<bos>", "<eos>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", model_max_length=2048
    )
