"""Real BPE tokenizers, trained in the test from a few sentences: no download, and merges that cross borders."""

from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers import decoders as token_decoders
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The cat sat on the mat and the dog sat on the cat.",
    "What is the answer? The answer is forty-two, and that is that.",
    "Human: how are you? Assistant: I am fine, thank you, and you?",
    "aaaa bbbb abab baba aabb the theme there then that than",
] * 20

CHATML = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif -%}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


@cache
def bpe(*, bos: bool = False, template: str | None = None, eos: str | None = "<eos>", across_words: bool = True):
    """A byte-level BPE of 400 tokens. `across_words` lets merges run over spaces, so borders really move."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not across_words)
    tokenizer.decoder = token_decoders.ByteLevel()
    specials = ["<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token=eos, pad_token="<pad>")
    fast.chat_template = template
    return fast
