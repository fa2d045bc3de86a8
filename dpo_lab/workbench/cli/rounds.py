"""`dpo-lab rounds`: online, semi-online and offline DPO, from prompts to a run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from dpo_lab.engine.processes import ALONE
from dpo_lab.loop import Evaluation, Finished, Step
from dpo_lab.models.lora import adapted
from dpo_lab.preferences.reading import read_preferences
from dpo_lab.storage.checkpoints import latest_checkpoint
from dpo_lab.workbench.cli.inputs import Row, dated_folder, load_model, load_reference, read_rows, settled
from dpo_lab.workbench.cli.interruption import Interruption
from dpo_lab.workbench.cli.options import RoundsOptions
from dpo_lab.workbench.cli.suites import find_judge
from dpo_lab.workbench.cli.terminal import console, plain_table
from dpo_lab.workbench.cli.train import kept_all_the_same, recorded_inputs, resumed, rewind, way_on
from dpo_lab.workbench.recipes.session import save_outcome
from dpo_lab.workbench.rounds.config import RoundsConfig
from dpo_lab.workbench.rounds.endpoint import EndpointJudge
from dpo_lab.workbench.rounds.judges import ImplicitReward, InstructionReward, true_reward
from dpo_lab.workbench.rounds.training import ROUNDS, Round, prompt_row, train_rounds
from dpo_lab.workbench.runs.run import Run
from dpo_lab.workbench.runs.settings import shared_fields
from dpo_lab.worlds.instructions import Task, draw

JUDGED = "judged.jsonl"
SHOWN = {"reward": "mean score", "kl": "KL from the reference, in nats", "answer_length": "tokens per answer",
         "finished": "answers that end by themselves"}  # fmt: skip


def rounds(options: RoundsOptions) -> int:
    """Rounds from prompts to a run folder, or the rest of a run's rounds."""
    options = settled(resumed(options))
    config = RoundsConfig(**shared_fields(options, RoundsConfig))
    settings = {"command": "rounds", "settings": dict(vars(options))}
    run = Run.create(options.run or dated_folder("rounds"), settings, resume=options.resume)
    with run.held():
        try:
            finished, shown = carry_out(run, options, config)
        except BaseException as error:
            if not options.resume and not (run.folder / ROUNDS).is_dir():
                run.discard_if_empty()
            elif isinstance(error, KeyboardInterrupt | OSError):
                print(f"\ngo on with: {way_on(run)}", file=sys.stderr)
            raise
    if shown:
        rows = [(title, *(f"{one[name]:.3f}" for one in (shown[0], shown[-1])))
                for name, title in SHOWN.items() if name in shown[0]]  # fmt: skip
        console.print(plain_table(("", "first", "last"), rows))
    with kept_all_the_same(run, "the report could not be written"):
        run.write_report()
    if not finished.is_complete:
        console.print(f"stopped after step {finished.step} of {finished.num_steps}; a checkpoint is saved")
        console.print(f"go on with: {way_on(run)}", soft_wrap=True)
        return 130
    run.write_card()
    console.print(f"answers, verdicts and pairs: {run.folder / ROUNDS}", soft_wrap=True)
    console.print(f"report: {run.folder / 'report.html'}", soft_wrap=True)
    console.print(f"model:  {run.model_folder}", soft_wrap=True)
    return 0


def carry_out(run: Run, options: RoundsOptions, config: RoundsConfig) -> tuple[Finished, list[dict[str, float]]]:
    """Train and record; how it finished, and what was measured of held-out prompts, or of each round without any."""
    with recorded_inputs(options):
        model, tokenizer = load_model(options, config.device)
        prompts, held, tasks = read_prompts(options)
        reference = None if options.reference is None else load_reference(options, options.reference, tokenizer)
    model = adapted(model, options, config.seed)
    judge = find(options, config, tasks, model, reference, tokenizer, run)
    checkpoint = latest_checkpoint(run.checkpoints) if options.resume else None
    measured: dict[type, list[dict[str, float]]] = {Evaluation: [], Round: []}
    interruption, finished = Interruption(unit="round"), None
    with console.status("") as status:
        events = train_rounds(
            model, tokenizer, prompts, judge, config, reference=reference, held_out=held or None, folder=run.folder,
            checkpoints=run.checkpoints, resume=checkpoint, stop=interruption,
            progress=lambda what, done, total: status.update(f"round {done}/{total}: {what}"),
        )  # fmt: skip
        if options.resume:
            rewind(run, checkpoint, ALONE)
        with interruption:
            for event in run.follow(show(events, status)):  # pyright: ignore[reportArgumentType]
                if isinstance(event, Evaluation | Round):
                    names = {name.removeprefix("eval_"): value for name, value in event.metrics.items()}
                    measured[type(event)].append(names)
                elif isinstance(event, Finished):
                    finished = event
                    if finished.is_complete:  # before its end is recorded
                        save_outcome(run, model, tokenizer, [], dtype=options.save_dtype)
    assert finished is not None, "a stream of events ends with Finished"
    return finished, measured[Evaluation] or measured[Round]


def show(events: Iterator[Any], status: Any) -> Iterator[Any]:
    """A line for each round and evaluation, and the step in hand on a terminal."""
    for event in events:
        metrics = getattr(event, "metrics", {})
        if isinstance(event, Round):
            extra = f", {metrics['replayed']:.0f} replayed" if metrics["replayed"] else ""
            extra += "".join(f", {metrics[f'judge/{name}']:.0f} {name.replace('_', ' ')}" for name in (
                "disagreements", "without_verdict", "tokens") if metrics.get(f"judge/{name}"))  # fmt: skip
            console.print(
                f"round {event.round}/{event.num_rounds}: reward {metrics['reward']:+.3f}  KL {metrics['kl']:.2f}  "
                f"{metrics['answer_length']:.1f} tokens  {metrics['mixed']:.0%} of prompts mixed  "
                f"{metrics['pairs']:.0f} pairs{extra}", soft_wrap=True,
            )  # fmt: skip
        elif isinstance(event, Evaluation):
            shown = [f"{name.replace('_', ' ')} {metrics[f'eval_{name}']:.3f}" for name in SHOWN
                     if f"eval_{name}" in metrics]  # fmt: skip
            console.print(f"held-out after step {event.step}: {'  '.join(shown)}", soft_wrap=True)
        elif isinstance(event, Step):
            status.update(f"step {event.step}/{event.num_steps}  loss {metrics['loss']:.4f}")
        yield event


def read_prompts(options: RoundsOptions) -> tuple[list[Row], list[Row], list[Task]]:
    """Rows to answer, each prompt once, rows to measure with, and the tasks that they are of."""
    num = options.held_prompts
    if options.tasks:
        tasks, own = (
            draw("train", options.tasks, seed=options.seed),
            draw("test", num, seed=options.seed) if num else [],
        )
        prompts, held = ([task.row() for task in some] for some in (tasks, own))
        tasks = [*tasks, *own]
    else:
        tasks, prompts = [], distinct(read_rows(options, options.seed, read_preferences, embedded_split="train"))
        if options.pairs == "embedded":
            held = distinct(read_preferences("embedded", split="test")[0])[:num]
        else:
            held, prompts = prompts[:num], prompts[num:]
            if not prompts:
                raise ValueError(f"{options.pairs} has {len(held)} prompts, and --held-prompts {num} takes them "
                                 "all; lower it")  # fmt: skip
    console.print(f"data: {len(prompts):,} prompts to learn from, {len(held):,} held out")
    return prompts, held, tasks


def distinct(rows: Any) -> list[Row]:
    """The rows' prompts, each once."""
    return list(
        {json.dumps([row["prompt"], row.get("system"), row.get("tools")]): prompt_row(row) for row in rows}.values()
    )


def find(
    options: RoundsOptions,
    config: RoundsConfig,
    tasks: list[Task],
    model: Any,
    reference: Any,
    tokenizer: Any,
    run: Run,
) -> Any:
    """The judge that --judge names."""
    name = options.judge
    if name.startswith(("http://", "https://")):
        return EndpointJudge(name, str(options.judge_model), cache=run.folder / JUDGED)
    if name == "true":
        return InstructionReward(tasks) if tasks else true_reward
    if name == "implicit":
        return ImplicitReward(
            model, reference, tokenizer, length_price=options.length_price, max_length=config.max_length,
            tokens_per_pass=config.tokens_per_pass, precision=config.precision,
        )  # fmt: skip
    if ":" not in name:
        raise ValueError(f"judge {name!r} is not known; take true, implicit, http(s)://HOST/v1, or name a function as "
                         "MODULE:FUNCTION")  # fmt: skip
    return find_judge(name)
