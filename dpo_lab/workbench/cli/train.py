"""`dpo-lab train` and `dpo-lab sft`: from data to a run folder."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.engine.processes import ALONE, Processes, ProcessLost, join, leave
from dpo_lab.loop import Evaluation, Event, Finished, num_steps
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import pick_device
from dpo_lab.models.loading import load_policy
from dpo_lab.models.lora import adapted, has_adapter
from dpo_lab.preferences.token_cache import EXAMPLES, PAIRS, UNPAIRED, PreparedData
from dpo_lab.reference import ReferenceCache
from dpo_lab.storage.checkpoints import latest_checkpoint, read_manifest
from dpo_lab.training import train_dpo, train_sft
from dpo_lab.workbench.cli.inputs import Row, dated_folder, load_model, settled, training_data
from dpo_lab.workbench.cli.interruption import Interruption
from dpo_lab.workbench.cli.options import RoundsOptions, RunOptions, SFTOptions, TrainOptions
from dpo_lab.workbench.cli.progress import Dashboard, result_table
from dpo_lab.workbench.cli.terminal import complain, console
from dpo_lab.workbench.evaluation.kl import kl_from_reference
from dpo_lab.workbench.recipes.answers import answer_rows, longest_prompt, sample_row, true_reward
from dpo_lab.workbench.recipes.session import save_outcome
from dpo_lab.workbench.runs.publishing import check_push, push_to_hub
from dpo_lab.workbench.runs.run import CONFIG, Run
from dpo_lab.workbench.runs.settings import as_begun, shared_fields
from dpo_lab.workbench.runs.tracking import check_tracker, tracked

Options = TypeVar("Options", bound=RunOptions | RoundsOptions)

FREE_ON_RESUME = ("cache", "device", "track", "push_to_hub")
"""Options that may be given anew when a run goes on; all others are those that it was begun with."""


def train(options: TrainOptions) -> int:
    """DPO from pairs to a run folder."""
    options = settled(resumed(options))
    config = DPOConfig(**shared_fields(options, DPOConfig))
    loss_of(config)  # a wrong knob is refused before anything is loaded
    return carry_out("train", options, config)


def sft(options: SFTOptions) -> int:
    """Supervised fine-tuning from good answers to a run folder."""
    options = settled(resumed(options))
    return carry_out("sft", options, SFTConfig(**shared_fields(options, SFTConfig)))


def carry_out(command: str, options: TrainOptions | SFTOptions, config: DPOConfig | SFTConfig) -> int:
    """Train, record and show; leaves samples, the model and the report in the run's folder.

    Of several processes the main one records, and the others only train.
    """
    processes, kind, needs_reference = meet(config), EXAMPLES, False
    if isinstance(config, DPOConfig):
        kind, needs_reference = UNPAIRED if config.is_unpaired else PAIRS, loss_of(config)[0].needs_reference
    with run_folder(command, options, processes) as run:
        with recorded_inputs(options):
            model, tokenizer = load_model(options, config.device)
            data = training_data(options, tokenizer, kind)
        model = adapted(model, options, config.seed)
        rows = data.held_rows[: options.samples] if processes.is_main else []
        answers = lambda: answer_rows(model, tokenizer, rows, options, max_length=config.max_length, seed=config.seed)
        before = answers()
        dashboard, interruption, checkpoint = Dashboard(kind.name, config.batch_size), Interruption(processes), None
        if options.resume:
            checkpoint = processes.broadcast_from_main(lambda: latest_checkpoint(run.checkpoints))
        stream: dict[str, Any] = {"checkpoints": run.checkpoints, "resume": checkpoint, "stop": interruption}
        with ReferenceCache(options.cache) if isinstance(config, DPOConfig) else nullcontext() as cache:
            if isinstance(config, SFTConfig):
                events = train_sft(model, tokenizer, data.train, config, held_out=data.held, **stream)
            else:
                events = train_dpo(
                    model, tokenizer, data.train, config, held_out=data.held, cache=cache,
                    on_reference=dashboard.reference, **stream,
                )  # fmt: skip
            if isinstance(config, DPOConfig) and needs_reference:
                if config.sync_reference:
                    steps = num_steps(config, math.ceil(len(data.train) / config.batch_size))
                    never = f"would move after step {config.sync_reference}, and there are {steps}: it never moves"
                    how = "follows the policy" if steps > config.sync_reference else never
                    console.print(f"reference: it {how}, scored in every step without the cache", soft_wrap=True)
                else:
                    dashboard.report_reference(num_of_reference(config, data))
            if options.resume:
                rewind(run, checkpoint, processes)
            if processes.is_main:
                run.add_facts(num_examples=len(data.train))
                events = tracked(run.follow(dashboard.follow(events)), options.track, run)

            def save() -> None:
                leave()  # what is left to do, the main process does alone
                if processes.is_main:
                    samples = [
                        sample_row(row, old, new, true_reward(row, old), true_reward(row, new))
                        for row, old, new in zip(rows, before, answers(), strict=True)
                    ]
                    save_outcome(run, model, tokenizer, samples, dtype=options.save_dtype)

            with interruption:
                first, last, finished = drain(events, save)
        leave()
        with suppress(OSError):  # a disk that is full costs the log and nothing else
            console.print(result_table(first, last, finished))
        if processes.is_main and finished.is_complete and needs_reference:
            with kept_all_the_same(run, "the KL from the reference could not be estimated"):
                record_kl(run, options, model, tokenizer, data.held_rows)
        if processes.is_main:
            close(run, finished, options)
    return 0 if finished.is_complete else 130


def num_of_reference(config: DPOConfig, data: PreparedData) -> int:
    """Rows of which the reference's log-probs are needed: of pairs taken apart two each; KTO needs mismatched answers
    as well, LD-DPO the heads."""
    num = sum(len(part) * (part.num_completions if config.is_unpaired else 1) for part in data[:2] if part is not None)
    return num * (2 if loss_of(config)[0].baseline == "mismatched" or config.ld_alpha is not None else 1)


def meet(config: DPOConfig | SFTConfig) -> Processes:
    """Join the processes that were launched together; all but the main one are silent."""
    torch.manual_seed(config.seed)  # a process starts with a random state, which checkpoints would save
    processes = join(pick_device(config.device))
    console.quiet = not processes.is_main
    if processes.count > 1:
        console.print(f"{processes.count} processes train together, {config.batch_size} rows per step over all")
    return processes


def resumed(options: Options) -> Options:
    """On --resume, the options that the run was begun with. One that was given otherwise is refused."""
    if not options.resume:
        return options
    if options.run is None:
        raise ValueError("--resume needs --run: name the folder of the run to go on with")
    settings = Run.load(options.run).config.get("settings", {})
    begun: dict[str, Any] = {name: value for name, value in settings.items() if name not in ("run", "resume")}
    begun |= {name: tuple(value) for name, value in begun.items() if isinstance(value, list)}  # JSON has lists only
    begun |= {name: Path(begun[name]) for name in ("cache", "tokens") if isinstance(begun.get(name), str)}
    return as_begun(options, begun, "run", options.run, free=FREE_ON_RESUME)


@contextmanager
def recorded_inputs(options: RunOptions | RoundsOptions) -> Iterator[None]:
    """On --resume, an error about the model or the data also names the file that requests them."""
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
    config: dict[str, Any] = {"command": command, "settings": dict(vars(options))}
    if processes.count > 1:
        config["processes"] = processes.count
    folder = options.run or dated_folder(command)
    run = processes.broadcast_from_main(lambda: Run.create(folder, config, resume=options.resume))
    with ExitStack() as stack:
        processes.broadcast_from_main(lambda: stack.enter_context(run.held()))
        try:
            yield run
        except BaseException as error:
            if not options.resume and not run.has_metrics:
                if processes.is_main:
                    run.discard_if_empty()
            elif isinstance(error, KeyboardInterrupt | ProcessLost):
                print(f"\ngo on with: {way_on(run, processes)}", file=sys.stderr)
            raise


def way_on(run: Run, processes: Processes = ALONE) -> str:
    """The command that goes on with a run."""
    line = f"dpo-lab {run.config['command']} --run {shlex.quote(str(run.folder))} --resume"
    return line if processes.count == 1 else f"{line} (by the launcher, or in one process)"


def rewind(run: Run, checkpoint: Path | None, processes: Processes) -> None:
    """Forget what came after the checkpoint, once the training has accepted it."""
    step = read_manifest(checkpoint)["step"] if checkpoint else 0
    if processes.is_main:
        run.rewind(step)
    where = f"going on after step {step}" if checkpoint else "no intact checkpoint: from the beginning"
    console.print(f"{where}, with the settings in {run.folder / CONFIG}", soft_wrap=True)


def drain(events: Iterator[Event], save: Callable[[], None]) -> tuple[Evaluation | None, Evaluation | None, Finished]:
    """Train to the end of the stream: the first evaluation, the last, and how it finished. What is complete is saved
    before its end is recorded."""
    first = last = finished = None
    for event in events:
        if isinstance(event, Evaluation):
            first, last = first or event, event
        elif isinstance(event, Finished):
            finished = event
            if finished.is_complete:
                save()
    assert finished is not None, "a stream of events ends with Finished"
    return first, last, finished


def record_kl(run: Run, options: Any, model: Any, tokenizer: Any, held: list[Row]) -> None:
    """KL of the trained model from the one it started as: the base behind its adapter, or loaded again for this."""
    if not options.kl_prompts or len(held) < 2:
        return
    reference = None
    if not has_adapter(model):
        reference, _ = load_policy(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    estimate = kl_from_reference(
        model, reference, tokenizer, held[: options.kl_prompts], seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        max_length=longest_prompt(model, options.max_length, options.max_new_tokens),
    )  # fmt: skip
    run.add_results({"kl": estimate.mean, "kl_standard_error": estimate.standard_error})
    console.print(f"KL from the reference: {estimate.mean:.2f} ± {estimate.standard_error:.2f} nats per answer")


@contextmanager
def kept_all_the_same(run: Run, problem: str) -> Iterator[None]:
    """After training an error costs no more than what it hinders: the rest goes on, and a line says what is missing."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        complain(f"dpo-lab: {problem} ({reason}); what was trained and measured is in {run.folder}, and "
                 f"dpo-lab report {shlex.quote(str(run.folder))} writes the report again")  # fmt: skip


def close(run: Run, finished: Finished, options: RunOptions) -> None:
    """Write the report and the model's card, and print where everything is, or how to go on."""
    with kept_all_the_same(run, "the report could not be written"):
        run.write_report()
        run.write_card()
        if finished.is_complete:
            console.print(f"report: {run.folder / 'report.html'}", soft_wrap=True)
    if not finished.is_complete:
        console.print(f"stopped after step {finished.step} of {finished.num_steps}; a checkpoint is saved")
        console.print(f"go on with: {way_on(run)}", soft_wrap=True)
        return
    console.print(f"model:  {run.model_folder}", soft_wrap=True)
    if options.push_to_hub is not None:
        console.print(f"on the Hub, private: {push_to_hub(run.model_folder, options.push_to_hub)}", soft_wrap=True)
