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
