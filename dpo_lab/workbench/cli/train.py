"""`dpo-lab train` and `dpo-lab sft`: from data to a run folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dpo_lab.config import DPOConfig, SFTConfig, TrainingConfig
from dpo_lab.engine.processes import ALONE, Processes, ProcessLost, join, leave
from dpo_lab.loop import Evaluation, Event, Finished
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import pick_device
from dpo_lab.models.loading import load_policy, save_policy
from dpo_lab.models.lora import adapted, has_adapter, save_adapter
from dpo_lab.preferences.chat import completion_text, prompt_text
from dpo_lab.preferences.token_cache import EXAMPLES, PAIRS
from dpo_lab.preferences.tokens import encode_prompt
from dpo_lab.reference import ReferenceCache
from dpo_lab.sampling import generate
from dpo_lab.storage.checkpoints import latest_checkpoint, read_manifest
from dpo_lab.training import train_dpo, train_sft
from dpo_lab.workbench.cli.inputs import (
    Row,
    dated_folder,
    load_model,
    longest_prompt,
    settings_of,
    training_data,
)
from dpo_lab.workbench.cli.interruption import Interruption
from dpo_lab.workbench.cli.options import RunOptions, SFTOptions, TrainOptions
from dpo_lab.workbench.cli.progress import Dashboard, console, result_table
from dpo_lab.workbench.evaluation.kl import Estimate, kl_from_reference
from dpo_lab.workbench.runs.publishing import check_push, push_to_hub
from dpo_lab.workbench.runs.run import CONFIG, METRICS, Run
from dpo_lab.workbench.runs.tracking import check_tracker, tracked
from dpo_lab.worlds.pocket.judge import judge
from dpo_lab.worlds.pocket.schema import Conversation

Options = TypeVar("Options", bound=RunOptions)

FREE_ON_RESUME = ("cache", "device", "track", "push_to_hub")
"""Options that may be given anew when a run goes on; all others are those that it was begun with."""


def train(options: TrainOptions) -> int:
    """DPO from pairs to a run folder."""
    options = as_begun(options)
    config = DPOConfig(**settings_of(options, DPOConfig))
    spec, _, _ = loss_of(config)  # a wrong knob is told before anything is loaded
    processes = meet(config)
    with run_folder("train", options, processes) as run:
        with recorded_inputs(options):
            model, tokenizer = load_model(options, config.device)
            tokens, held_tokens, held = training_data(options, config, tokenizer, PAIRS)
        model = adapted(model, options, config.seed)
        dashboard = Dashboard("pairs", config.batch_size)
        with ReferenceCache(options.cache) as cache:

            def begin(**stream: Any) -> Iterator[Event]:
                events = train_dpo(
                    model, tokenizer, tokens, config, held_out=held_tokens, cache=cache,
                    on_reference=dashboard.reference, **stream,
                )  # fmt: skip
                if spec.needs_reference:
                    dashboard.tell_reference(len(tokens) + (len(held_tokens) if held_tokens else 0))
                return events

            finished = follow(run, begin, dashboard, model, tokenizer, held, options, config, processes)
        if not processes.is_main:
            return status_of(finished)
        if finished.is_complete and spec.needs_reference and options.kl_prompts and len(held) > 1:
            estimate = measure_kl(options, model, tokenizer, held)
            run.add_results({"kl": estimate.mean, "kl_standard_error": estimate.standard_error})
            console.print(f"KL from the reference: {estimate.mean:.2f} ± {estimate.standard_error:.2f} nats per answer")
        return close(run, finished, options)


def sft(options: SFTOptions) -> int:
    """Supervised fine-tuning from good answers to a run folder."""
    options = as_begun(options)
    config = SFTConfig(**settings_of(options, SFTConfig))
    processes = meet(config)
    with run_folder("sft", options, processes) as run:
        with recorded_inputs(options):
            model, tokenizer = load_model(options, config.device)
            tokens, held_tokens, held = training_data(options, config, tokenizer, EXAMPLES)
        model = adapted(model, options, config.seed)
        dashboard = Dashboard("examples", config.batch_size)

        def begin(**stream: Any) -> Iterator[Event]:
            return train_sft(model, tokenizer, tokens, config, held_out=held_tokens, **stream)

        finished = follow(run, begin, dashboard, model, tokenizer, held, options, config, processes)
        return close(run, finished, options) if processes.is_main else status_of(finished)


def meet(config: TrainingConfig) -> Processes:
    """Join the processes that were launched together; all but the main one keep quiet."""
    torch.manual_seed(config.seed)  # a process starts with a state by chance, which checkpoints would keep
    processes = join(pick_device(config.device))
    console.quiet = not processes.is_main
    if processes.count > 1:
        console.print(f"{processes.count} processes train together, {config.batch_size} rows per step over all")
    return processes


def as_begun(options: Options) -> Options:
    """On --resume, the options that the run was begun with. An option that says otherwise is refused."""
    if not options.resume:
        return options
    if options.run is None:
        raise ValueError("--resume needs --run: name the folder of the run to go on with")
    begun = Run.load(options.run).config.get("settings", {})
    taken: dict[str, Any] = {}
    for entry in fields(options):
        if entry.name in ("run", "resume") or entry.name not in begun:
            continue
        asked, recorded = getattr(options, entry.name), begun[entry.name]
        if entry.name in ("cache", "tokens") and recorded is not None:
            recorded = Path(recorded)
        elif isinstance(recorded, list):  # as JSON keeps a tuple
            recorded = tuple(recorded)
        if entry.name == "trust_remote_code" and recorded and not asked:
            raise ValueError(
                f"the run in {options.run} runs Python code that comes with its model, which a file alone can't allow; "
                "read that code, then say --trust-remote-code again"
            )
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        if asked not in (default, recorded):
            if entry.name in FREE_ON_RESUME:
                continue
            flag = entry.name.replace("_", "-")
            raise ValueError(
                f"--{flag} is {asked!r}, but the run in {options.run} was begun with {recorded!r}; leave it out "
                "to go on, or begin another run"
            )
        taken[entry.name] = recorded
    return replace(options, **taken)


@contextmanager
def recorded_inputs(options: RunOptions) -> Iterator[None]:
    """On --resume, an error about the model or the data also says which file asks for them."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not options.resume or options.run is None:
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{error} (as the run was begun, says {options.run / CONFIG})") from error


@contextmanager
def run_folder(command: str, options: RunOptions, processes: Processes) -> Iterator[Run]:
    """The run's folder, new or to go on with. The main process makes it.

    Where the run ends before anything was recorded, a new folder goes away again: after a slip in the options the
    same command can be given once more.
    """
    if options.track is not None:
        check_tracker(options.track)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub)
    folder = options.run or dated_folder(command)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    kept: dict[str, Any] = {"command": command, "settings": settings}
    if processes.count > 1:
        kept["processes"] = processes.count
    run = processes.broadcast_from_main(lambda: Run.create(folder, kept, resume=options.resume))
    try:
        yield run
    except BaseException as error:
        if not options.resume and not (run.folder / METRICS).exists():
            with suppress(OSError):
                if processes.is_main:
                    (run.folder / CONFIG).unlink()
                    run.folder.rmdir()
        elif isinstance(error, KeyboardInterrupt | ProcessLost):
            print(f"\ngo on with: {way_on(run, processes)}", file=sys.stderr)
        raise


def way_on(run: Run, processes: Processes = ALONE) -> str:
    """The command that goes on with a run."""
    line = f"dpo-lab {run.config['command']} --run {shlex.quote(str(run.folder))} --resume"
    return line if processes.count == 1 else f"{line} (by the launcher, or in one process)"


def follow(
    run: Run,
    begin: Callable[..., Iterator[Event]],
    dashboard: Dashboard,
    model: Any,
    tokenizer: Any,
    held: list[Row],
    options: RunOptions,
    config: TrainingConfig,
    processes: Processes,
) -> Finished:
    """Train, record and show; leaves samples and the model in the run's folder. Of several processes the main one
    records, and the others only train."""
    asked = held[: options.samples] if processes.is_main else []
    before = answers_to(asked, model, tokenizer, options, config)
    checkpoint = processes.broadcast_from_main(lambda: latest_checkpoint(run.checkpoints)) if options.resume else None
    first = last = finished = None
    interruption = Interruption(processes)
    events = begin(checkpoints=run.checkpoints, resume=checkpoint, stop=interruption)
    if options.resume:
        step = read_manifest(checkpoint)["step"] if checkpoint else 0
        if processes.is_main:
            run.rewind(step)
        where = f"going on after step {step}" if checkpoint else "no intact checkpoint: from the beginning"
        console.print(f"{where}, with the settings in {run.folder / CONFIG}", soft_wrap=True)
    with interruption:
        events = tracked(run.follow(dashboard.follow(events)), options.track, run) if processes.is_main else events
        for event in events:
            if isinstance(event, Evaluation):
                first, last = first or event, event
            elif isinstance(event, Finished):
                finished = event
    assert finished is not None, "a stream of events ends with Finished"
    leave()  # what is left to do, the main process does alone
    if finished.is_complete and processes.is_main:
        after = answers_to(asked, model, tokenizer, options, config)
        run.add_samples([sample_row(*each) for each in zip(asked, before, after, strict=True)])
        save_policy(model, tokenizer, run.model_folder)
        if has_adapter(model):
            save_adapter(model, run.adapter_folder)
    console.print(result_table(first, last, finished))
    return finished


def close(run: Run, finished: Finished, options: RunOptions) -> int:
    """Write the report and the model's card, and say where everything is, or how to go on."""
    run.write_report()
    if not finished.is_complete:
        console.print(f"stopped after step {finished.step} of {finished.num_steps}; a checkpoint is kept")
        console.print(f"go on with: {way_on(run)}", soft_wrap=True)
    else:
        run.write_card()
        console.print(f"report: {run.folder / 'report.html'}", soft_wrap=True)
        console.print(f"model:  {run.model_folder}", soft_wrap=True)
        if options.push_to_hub is not None:
            console.print(f"on the Hub, private: {push_to_hub(run.model_folder, options.push_to_hub)}", soft_wrap=True)
    return status_of(finished)


def status_of(finished: Finished) -> int:
    """The exit status of a run that ended well, or was stopped."""
    return 0 if finished.is_complete else 130


def answers_to(rows: list[Row], model: Any, tokenizer: Any, options: RunOptions, config: TrainingConfig) -> list[str]:
    """One answer to each row's prompt."""
    if not rows:
        return []
    longest = longest_prompt(model, config.max_length, options.max_new_tokens)
    texts = generate(
        model, tokenizer, [encode_prompt(row, tokenizer, longest) for row in rows],
        max_new_tokens=options.max_new_tokens, temperature=options.sample_temperature, seed=config.seed,
    )  # fmt: skip
    return [str(text) for text in texts]


def sample_row(row: Row, before: str, after: str) -> Row:
    """A line of samples.jsonl; with true rewards where the row comes from the pocket world."""
    sample: Row = {"prompt": prompt_text(row), "before": before, "after": after}
    if "chosen" in row:
        sample |= {side: completion_text(row, side) for side in ("chosen", "rejected")}
    if "task" in row and "job" in row:
        conversation = Conversation.from_row(row)
        sample["reward_before"], sample["reward_after"] = (judge(conversation, text).reward for text in (before, after))
    return sample


def measure_kl(options: TrainOptions, model: Any, tokenizer: Any, held: list[Row]) -> Estimate:
    """KL of the trained model from the one it started as: the base behind its adapter, or loaded again for this."""
    reference = None
    if not has_adapter(model):
        reference, _ = load_policy(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    return kl_from_reference(
        model, reference, tokenizer, held[: options.kl_prompts], seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        max_length=longest_prompt(model, options.max_length, options.max_new_tokens),
    )  # fmt: skip
