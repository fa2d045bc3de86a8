"""What every command that loads a model or data does first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from dpo_lab.cli.options import CacheOptions, InputOptions, RunOptions
from dpo_lab.cli.progress import console
from dpo_lab.models import load_policy, num_parameters, pick_device, position_limit
from dpo_lab.preferences import TokenData, split_rows
from dpo_lab.processes import join

Row = dict[str, Any]
Read = Callable[..., tuple[Sequence[Row], Any]]


def settings_of(options: Any, kind: type) -> dict[str, Any]:
    """The fields of a configuration among a command's options."""
    return {field.name: getattr(options, field.name) for field in fields(kind)}


def load_model(options: InputOptions, device: str) -> tuple[Any, Any]:
    """The policy and its tokenizer, said on the terminal."""
    model, tokenizer = load_policy(options.model, device=device, trust_remote_code=options.trust_remote_code)
    console.print(f"model: {options.model}, {num_parameters(model):,} weights, on {next(model.parameters()).device}")
    return model, tokenizer


def read_rows(options: InputOptions, seed: int, read: Read, *, embedded_split: str) -> list[Row]:
    """The rows that --pairs names; what was left out is said."""
    split = options.split or (embedded_split if options.pairs == "embedded" else None)
    rows, report = read(options.pairs, split=split, on_bad_row=options.on_bad_row, limit=options.limit, seed=seed)
    say(report)
    return list(rows)


def read_training_rows(options: RunOptions, seed: int, read: Read) -> tuple[list[Row] | None, list[Row]]:
    """Rows to train on, or None where they are streamed, and rows to evaluate on."""
    rows = None if options.tokens else read_rows(options, seed, read, embedded_split="train")
    if options.held_out is not None:
        split = options.held_out_split or ("test" if options.held_out in ("embedded", options.pairs) else None)
        held, report = read(options.held_out, split=split, on_bad_row=options.on_bad_row)
        say(report)
    elif options.held_out_split is not None:
        raise ValueError(f"held_out_split is {options.held_out_split!r} without --held-out; name the source as well")
    elif options.pairs == "embedded" and options.split != "test":
        held, _ = read("embedded", split="test", on_bad_row=options.on_bad_row)
    elif options.validation and rows is not None:
        rows, held = split_rows(rows, options.validation, seed)
    else:
        held = []
    return rows if rows is None else list(rows), list(held)


def stream_tokens(
    options: RunOptions | CacheOptions, tokenizer: Any, max_length: int, stream: Any, tokenize: Any
) -> Any:
    """(token ids mapped from the folder --tokens, the report on them), of rows that are read one by one.

    Of several processes the main one reads and writes; the others map what it wrote.
    """
    split = options.split or ("train" if options.pairs == "embedded" else None)
    folder = options.tokens
    assert folder is not None

    def written() -> Any:
        rows, read = stream(options.pairs, split=split, on_bad_row=options.on_bad_row)
        _, report = tokenize(rows, tokenizer, max_length=max_length, folder=folder)
        say(read)
        return report

    device: str = vars(options)["device"]  # of the training's or the scorer's part of the options
    report = join(pick_device(device)).from_main(written)
    return TokenData.load(folder, verify=False), report


def tokenized(
    options: RunOptions,
    rows: list[Row] | None,
    held: list[Row],
    tokenizer: Any,
    max_length: int,
    stream: Callable[..., Any],
    tokenize: Callable[..., Any],
) -> Any:
    """Token ids of both parts; what was shortened is said. Without rows, those to train on are streamed."""
    if rows is None:
        tokens, report = stream_tokens(options, tokenizer, max_length, stream, tokenize)
    else:
        tokens, report = tokenize(rows, tokenizer, max_length=max_length)
    say(report)
    held_tokens = None
    if held:
        held_tokens, report = tokenize(held, tokenizer, max_length=max_length)
        if report.dropped or report.identical:
            say(report)
    num_held = 0 if held_tokens is None else len(held_tokens)
    console.print(f"data: {len(tokens):,} rows to train on, {num_held:,} held out")
    return tokens, held_tokens


def longest_prompt(model: Any, max_length: int, max_new_tokens: int) -> int:
    """Most tokens of a prompt that is to be answered: where positions are a table, up to half of it is the answer's."""
    limit = position_limit(model)
    return max_length if limit is None else min(max_length, limit - min(max_new_tokens, limit // 2))


def say(report: Any) -> None:
    """Print what a report has to tell."""
    if text := report.summary():
        console.print(text, markup=False, style="dim", soft_wrap=True)


def dated_folder(name: str) -> Path:
    """runs/NAME-DATE-TIME, with a number behind it where the clock has shown that time before."""
    folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(other for other in others if not other.exists())
