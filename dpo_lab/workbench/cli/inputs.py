"""What every command that loads a model or data does first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from dpo_lab.config import DPOConfig, SFTConfig, TrainingConfig
from dpo_lab.engine.processes import join
from dpo_lab.models.gguf import origin_of
from dpo_lab.models.inside import bfloat16_gain, num_parameters, pick_device
from dpo_lab.models.loading import load_policy
from dpo_lab.preferences.reports import counted
from dpo_lab.preferences.token_cache import (
    DataSettings,
    Kind,
    PreparedData,
    prepare,
    read_held_out,
    reading,
    stream_tokens,
    tokenize_held_out,
)
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.storage.logp_store import token_cache_folder
from dpo_lab.workbench.cli.options import DataOptions
from dpo_lab.workbench.cli.terminal import console
from dpo_lab.workbench.runs.settings import ReadingSettings, shared_fields

Options = TypeVar("Options", bound=Any)
Row = dict[str, Any]
Read = Callable[..., tuple[Sequence[Row], Any]]

SMALL = 2**26
"""Bytes of weights below which a model is small: rounding would cost it more than it gains."""
LEAST_GAIN = 1.2
"""How many times as fast bfloat16's products must be to be taken."""
RATES = {DPOConfig: (2e-6, 2e-5), SFTConfig: (2e-5, 2e-4)}
"""Usual learning rates for full training of a pretrained model, and for an adapter."""


def settled(options: Options) -> Options:
    """The options with what depends on model and machine, a precision in place of `auto` and a learning rate in place
    of None, the same in all processes; lines on the terminal say which."""
    if issubclass(type(options), TrainingConfig):
        options = with_rate(options)
    if options.precision != "auto":
        return options
    device = pick_device(options.device)
    processes = join(device)

    def found() -> tuple[str, str]:
        if is_small(options.model):
            return "float32", "the model is small"
        ratio = bfloat16_gain(device)
        return "bfloat16" if ratio >= LEAST_GAIN else "float32", f"bfloat16 multiplies {ratio:.1f} times as fast here"

    precision, why = processes.broadcast_from_main(found)
    if processes.is_main:
        console.print(f"precision: {precision}, since {why}")
    return replace(options, precision=precision)


def with_rate(options: Options) -> Options:
    """The options with a learning rate that suits the model, where none was given; a line on the terminal says so."""
    if options.learning_rate is not None:
        return options
    kind: type[TrainingConfig] = SFTConfig if issubclass(type(options), SFTConfig) else DPOConfig
    rate, model = RATES[kind][0], "full training of a pretrained model"
    if is_small(options.model):
        rate, model = kind.learning_rate, "a small model"
    elif options.lora:
        rate, model = RATES[kind][1], "an adapter"
    if join(pick_device(options.device)).is_main:
        console.print(f"learning rate: {rate:g}, usual for {model}")
    return replace(options, learning_rate=rate)


def is_small(name: str) -> bool:
    """Whether a model is the embedded one or has weights of the same order on disk."""
    return name == "embedded" or 0 < sum(file.stat().st_size for file in Path(name).glob("*.safetensors")) < SMALL


def load_model(options: ReadingSettings, device: str) -> tuple[Any, Any]:
    """The policy and its tokenizer; a line on the terminal says which."""
    model, tokenizer = load_policy(options.model, device=device, trust_remote_code=options.trust_remote_code)
    which = f"smollm2 ({origin_of(model)})" if options.model == "smollm2" else options.model
    console.print(f"model: {which}, {num_parameters(model):,} weights, on {next(model.parameters()).device}")
    return model, tokenizer


def load_reference(options: ReadingSettings, name: str, tokenizer: Any) -> Any:
    """The reference called `name`; it must speak in the tokens of the model."""
    reference, own = load_policy(name, device=vars(options)["device"], trust_remote_code=options.trust_remote_code)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ValueError(
            f"the reference {name} has another tokenizer than {options.model}, so their log-probs are of other tokens; "
            "give --reference the model that training began from"
        )
    console.print(f"reference: {name}", soft_wrap=True)
    return reference


def read_rows(options: ReadingSettings, seed: int, read: Read, *, embedded_split: str) -> list[Row]:
    """The rows that --pairs names; what was left out is printed."""
    split = options.split or (embedded_split if options.pairs == "embedded" else None)
    rows, report = read(options.pairs, split=split, limit=options.limit, seed=seed, **reading(options, options.pairs))
    print_report(report)
    return list(rows)


def training_data(options: DataOptions, tokenizer: Any, kind: Kind) -> PreparedData:
    """Token ids to train on and to evaluate on, saved for the next run beside the cache of log-probs, or streamed; what
    was left out or shortened is printed."""
    settings = DataSettings(**shared_fields(options, DataSettings))
    folder = options.tokens
    if folder is None:
        data = prepare(settings, tokenizer, kind, folder=token_cache_folder(options.cache), log=print_note)
    else:
        held = read_held_out(settings, kind, print_note) or []
        processes = join(pick_device(vars(options)["device"]))  # the main one writes; the others map what it wrote
        processes.broadcast_from_main(lambda: stream_tokens(folder, settings, tokenizer, kind, print_note))
        tokens = TokenData.load(folder, verify=False)
        data = PreparedData(tokens, *tokenize_held_out(held, settings, tokenizer, kind, print_note))
    num_held = 0 if data.held is None else len(data.held)
    console.print(f"data: {counted(len(data.train), 'row')} to train on, {num_held:,} held out")
    if options.tokens is not None and not num_held:
        console.print("nothing is held out: rows are streamed; give --held-out DATA to evaluate on", soft_wrap=True)
    return data


def print_report(report: Any) -> None:
    """Print the summary of a report, with every row that was left out."""
    print_note(report.summary(None))


def print_note(text: str) -> None:
    """Print something less important."""
    if text:
        console.print(text, style="dim", soft_wrap=True)


def dated_folder(name: str) -> Path:
    """runs/NAME-DATE-TIME, with a number behind it where the clock has shown that time before."""
    folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(other for other in others if not other.exists())
