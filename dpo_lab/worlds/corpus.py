"""What the base model learns from: texts for SFT, a tokenizer for them, and preference pairs with noisy labels.

Everything follows from seeds; rows are written so that equal rows are equal bytes. `data/build.py` puts the stages
together and trains the model.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from dpo_lab.worlds.pocket import sample_conversation
from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.schema import JOBS, Conversation, Split
from dpo_lab.worlds.pocket.template import PAD, POCKET_CHAT_TEMPLATE, TURN_END, TURN_START
from dpo_lab.worlds.pocket.writer import write_answer

VOCABULARY = 1600
CONTEXT = 256
# A word with a capital stands apart from the space before it, so a name is the same tokens in a sentence, in JSON and
# at a line's start: that is what lets a small model copy it. Other words take their space along, digits stand alone.
WORDS = r"[A-Z]+(?![a-z])|[A-Z][a-z]*| ?[a-z]+(?:'[a-z]+)?|'s|[0-9]|\n| ?[^\sA-Za-z0-9]+|\s"


def write_texts(path: Path, num: int, *, seed: int = 0) -> None:
    """`num` training conversations with one answer each, as gzipped JSON lines; the bytes depend on the seed alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rows(path, sft_rows(num, seed=seed))


def sft_rows(num: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows for SFT: prompt, completion, tools where there are any, and the job."""
    rng = Random(seed)
    for _ in range(num):
        conversation = sample_conversation(rng)
        answer = write_answer(conversation, rng)
        row = {key: value for key, value in conversation.row().items() if key in ("prompt", "tools", "job")}
        yield row | {"completion": [{"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines, gzipped without name and time so that equal rows are equal bytes."""
    with open(path, "wb") as file, gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
        for row in rows:
            packed.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY) -> Any:
    """A fast tokenizer with the pocket world's marks and chat template, byte-pair merges learnt from `texts`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    marks = [PAD, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,  # two more are added below
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Part of the text, not turn marks: kept when special tokens are left out of a decoded answer.
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in ("<tool_call>", "</tool_call>")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = POCKET_CHAT_TEMPLATE
    return fast


def training_texts(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Every turn of the rows as plain text; the marks between turns have tokens of their own."""
    for row in rows:
        for message in [*row["prompt"], *row["completion"]]:
            yield message["content"].replace("<tool_call>", "").replace("</tool_call>", "")
        for tool in row.get("tools") or ():
            yield f"\nTools:\n{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})\n"
        yield "system\nuser\nassistant\ntool\n"


def prompts(num: int, *, split: Split, seed: int) -> list[Conversation]:
    """`num` different conversations, the jobs in turn."""
    rng = Random(seed)
    chosen: dict[str, Conversation] = {}
    while len(chosen) < num:
        conversation = sample_conversation(rng, JOBS[len(chosen) % len(JOBS)], split)
        chosen.setdefault(json.dumps([conversation.messages, conversation.tools]), conversation)
    return list(chosen.values())


def pair_answers(
    conversations: Sequence[Conversation], answers: Sequence[Sequence[str]], *, temperature: float, seed: int
) -> tuple[list[dict[str, Any]], int]:
    """One pair from each conversation's answers, labelled by `prefers`; also how many conversations gave none.

    The best answer is compared with one drawn at random among those that are worth less, as preference sets made from
    several answers usually are (UltraFeedback as Zephyr uses it, arXiv 2310.16944, section 3): two bad answers say
    little about a good one. A conversation whose answers are all worth the same states no preference. Rows keep both
    true rewards, the job, the split and what the judge needs.
    """
    rng = Random(seed)
    rows, without = [], 0
    for conversation, texts in zip(conversations, answers, strict=True):
        worth = {text: judge(conversation, text).reward for text in dict.fromkeys(texts) if text.strip()}
        best = max(worth.values(), default=0.0)
        others = [text for text in worth if worth[text] < best]
        if not others:
            without += 1
            continue
        first, second = rng.choice([text for text in worth if worth[text] == best]), rng.choice(others)
        if not prefers(worth[first], worth[second], temperature, rng):
            first, second = second, first
        row = conversation.row() | {
            "chosen": [{"role": "assistant", "content": first}],
            "rejected": [{"role": "assistant", "content": second}],
            "reward_chosen": worth[first],
            "reward_rejected": worth[second],
        }
        rows.append(row)
    return rows, without


def prefers(first: float, second: float, temperature: float, rng: Random) -> bool:
    """A draw of "the first answer is preferred" with probability σ((first − second) / temperature): Bradley–Terry.

    Temperature 0 always prefers the larger reward; a larger one makes more labels wrong.
    """
    chance = rng.random()
    if temperature == 0:
        return first > second
    return chance < 1 / (1 + math.exp(-(first - second) / temperature))


def relabel(rows: Iterable[dict[str, Any]], *, temperature: float, seed: int = 0) -> list[dict[str, Any]]:
    """The same pairs with labels drawn anew from the true rewards that they keep: label noise as a knob."""
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}; 0 makes no wrong label, 1 makes many")
    rng = Random(seed)
    labelled = []
    for row in rows:
        stays = prefers(row["reward_chosen"], row["reward_rejected"], temperature, rng)
        swapped = {"chosen": row["rejected"], "rejected": row["chosen"]}
        swapped |= {"reward_chosen": row["reward_rejected"], "reward_rejected": row["reward_chosen"]}
        labelled.append(dict(row) if stays else row | swapped)
    return labelled
