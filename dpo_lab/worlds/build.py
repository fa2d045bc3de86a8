"""Rebuild the pocket world's data and base model from seeds: `python -m dpo_lab.worlds.build --help`.

Stages, each reading what the one before it wrote into the work folder:
    texts      conversations with answers of mixed quality for SFT, byte for byte the same everywhere
    tokenizer  byte-pair encoding trained on those texts
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from dpo_lab.worlds.pocket import POCKET_CHAT_TEMPLATE, sample_conversation, write_answer
from dpo_lab.worlds.pocket.template import PAD, TURN_END, TURN_START

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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=("texts", "tokenizer", "all"), nargs="?", default="all")
    parser.add_argument(
        "--work", type=Path, default=Path("build/pocket"), help="folder for what is only needed to build"
    )
    parser.add_argument("--num-texts", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(argv)
    texts = settings.work / "sft.jsonl.gz"
    if settings.stage in ("texts", "all"):
        write_texts(texts, settings.num_texts, seed=settings.seed)
    if settings.stage in ("tokenizer", "all"):
        tokenizer = train_tokenizer(training_texts(read_rows(texts)))
        tokenizer.save_pretrained(settings.work / "tokenizer")


if __name__ == "__main__":
    main()
