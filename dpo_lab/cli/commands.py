"""What each command does. Loaded only when one runs, since this brings torch and transformers."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.checkpoints import latest_checkpoint, read_manifest
from dpo_lab.cli.options import (
    CacheOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    InputOptions,
    LabOptions,
    LossesOptions,
    RunOptions,
    SampleOptions,
    SFTOptions,
    TrainOptions,
)
from dpo_lab.cli.progress import Dashboard, console, number_table, result_table
from dpo_lab.config import DPOConfig, SFTConfig
from dpo_lab.evaluation import evaluate, kl_from_reference
from dpo_lab.loop import Evaluation, Finished
from dpo_lab.losses import LOSSES
from dpo_lab.models import load_policy, num_parameters, save_policy
from dpo_lab.preferences import (
    completion_text,
    prompt_text,
    read_examples,
    read_preferences,
    render_prompt,
    split_rows,
    tokenize_examples,
    tokenize_pairs,
)
from dpo_lab.reference import ReferenceCache
from dpo_lab.runs import Run, compare_runs, comparison_figure, load_runs
from dpo_lab.sampling import generate
from dpo_lab.training import loss_of, train_dpo, train_sft

Row = dict[str, Any]


def execute(options: object) -> int:
    """Run the command that the options belong to; returns the exit status."""
    command: dict[type, Callable[[Any], int]] = {
        TrainOptions: train,
        SFTOptions: sft,
        CacheOptions: cache,
        EvaluateOptions: evaluate_model,
        SampleOptions: sample,
        CompareOptions: compare,
        LossesOptions: losses,
        DemoOptions: demo,
        LabOptions: lab,
    }
    return command[type(options)](options)


# ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(options: TrainOptions) -> int:
    """DPO from pairs to a run folder."""
    config = DPOConfig(**_settings(options, DPOConfig))
    spec, _, _ = loss_of(config)  # a wrong knob is told before anything is loaded
    model, tokenizer = _load(options, config.device)
    rows, held = _training_rows(options, config.seed, read_preferences)
    tokens, held_tokens = _tokens(rows, held, tokenizer, config.max_length, tokenize_pairs)
    with ReferenceCache(options.cache) as store:

        def events(**extra: Any) -> Iterator[Any]:
            dashboard = extra.pop("dashboard")
            return train_dpo(
                model,
                tokenizer,
                tokens,
                config,
                held_out=held_tokens,
                cache=store,
                on_reference=dashboard.reference,
                **extra,
            )

        run, finished = _run("train", options, config, model, tokenizer, held, events)
    if finished.is_complete and spec.needs_reference and options.kl_prompts and held:
        reference, _ = load_policy(options.model, device=config.device, trust_remote_code=options.trust_remote_code)
        estimate = kl_from_reference(
            model, reference, tokenizer, held[: options.kl_prompts], seed=config.seed,
            max_new_tokens=options.max_new_tokens, max_length=config.max_length,
        )  # fmt: skip
        run.add_results({"kl": estimate.mean, "kl_standard_error": estimate.standard_error})
        console.print(f"KL from the reference: {estimate.mean:.3f} ± {estimate.standard_error:.3f} nats per answer")
    return _close(run, finished)


def sft(options: SFTOptions) -> int:
    """Supervised fine-tuning from good answers to a run folder."""
    config = SFTConfig(**_settings(options, SFTConfig))
    model, tokenizer = _load(options, config.device)
    rows, held = _training_rows(options, config.seed, read_examples)
    tokens, held_tokens = _tokens(rows, held, tokenizer, config.max_length, tokenize_examples)

    def events(**extra: Any) -> Iterator[Any]:
        extra.pop("dashboard")
        return train_sft(model, tokenizer, tokens, config, held_out=held_tokens, **extra)

    run, finished = _run("sft", options, config, model, tokenizer, held, events)
    return _close(run, finished)


def _run(
    command: str,
    options: RunOptions,
    config: DPOConfig | SFTConfig,
    model: Any,
    tokenizer: Any,
    held: list[Row],
    events: Callable[..., Iterator[Any]],
) -> tuple[Run, Finished]:
    """Train, record and show; leaves model and samples in the run folder."""
    folder = options.run or Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    if options.resume and options.run is None:
        raise ValueError("--resume needs --run: name the folder of the run to go on with")
    run = Run.create(folder, {"command": command, "settings": settings}, resume=options.resume)
    checkpoint = latest_checkpoint(run.checkpoints) if options.resume else None
    if options.resume:
        step = read_manifest(checkpoint)["step"] if checkpoint else 0
        run.rewind(step)
        console.print(
            f"going on from step {step}" if checkpoint else "no intact checkpoint: starting from the beginning"
        )

    asked = held[: options.samples]
    before = _answers(model, tokenizer, asked, options, config)
    dashboard = Dashboard("pairs" if command == "train" else "examples", config.batch_size)
    first = last = None
    finished: Finished | None = None
    with _Interruption() as interruption:
        stream = events(checkpoints=run.checkpoints, resume=checkpoint, stop=interruption, dashboard=dashboard)
        for event in run.follow(dashboard.follow(stream)):
            if isinstance(event, Evaluation):
                first, last = first or event, event
            elif isinstance(event, Finished):
                finished = event
    assert finished is not None
    if finished.is_complete:
        after = _answers(model, tokenizer, asked, options, config)
        run.add_samples([_sample_row(row, *texts) for row, *texts in zip(asked, before, after, strict=True)])
        save_policy(model, tokenizer, run.model_folder)
    console.print(result_table(first, last, finished))
    return run, finished


def _close(run: Run, finished: Finished) -> int:
    run.write_report()
    if not finished.is_complete:
        console.print(f"stopped after step {finished.step} of {finished.num_steps}; the checkpoint is kept")
        console.print(f"go on with the same command and --run {run.folder} --resume")
        return 130
    console.print(f"report: {run.folder / 'report.html'}")
    console.print(f"model:  {run.model_folder}")
    return 0


def _answers(model: Any, tokenizer: Any, rows: list[Row], options: RunOptions, config: Any) -> list[str]:
    if not rows:
        return []
    texts = generate(
        model, tokenizer, [render_prompt(row, tokenizer) for row in rows], max_new_tokens=options.max_new_tokens,
        temperature=options.sample_temperature, seed=config.seed,
    )  # fmt: skip
    return [str(text) for text in texts]


def _sample_row(row: Row, before: str, after: str) -> Row:
    sample = {"prompt": prompt_text(row), "before": before, "after": after}
    if "chosen" in row:
        sample |= {side: completion_text(row, side) for side in ("chosen", "rejected")}
    return sample


class _Interruption:
    """Ctrl-C asks the loop to stop after the step in hand; a second one stops at once."""

    def __enter__(self) -> _Interruption:
        self.is_asked = False
        self.is_main = threading.current_thread() is threading.main_thread()
        if self.is_main:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            signal.signal(signal.SIGINT, self.previous)

    def __call__(self) -> bool:
        return self.is_asked

    def _ask(self, *_: object) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)


# ── the other commands ───────────────────────────────────────────────────────────────────────────────────────────────


def cache(options: CacheOptions) -> int:
    """Fill the reference cache."""
    model, tokenizer = _load(options, options.device)
    rows, held = _training_rows(options, options.seed, read_preferences)
    dashboard = Dashboard("pairs", 1)
    began = time.perf_counter()
    num_found = num_computed = 0
    with ReferenceCache(options.cache) as store:
        for part in (rows, held):
            if part:
                data, report = tokenize_pairs(part, tokenizer, max_length=options.max_length)
                _say(report)
                result = store.logps(
                    model, data, precision=options.precision, tokens_per_pass=options.tokens_per_pass,
                    progress=dashboard.reference,
                )  # fmt: skip
                num_found, num_computed = num_found + result.num_found, num_computed + result.num_computed
        seconds = time.perf_counter() - began
        console.print(f"{num_computed:,} pairs computed, {num_found:,} found, in {seconds:.1f} s: {store.path}")
    return 0


def evaluate_model(options: EvaluateOptions) -> int:
    """Print the metrics of a model on pairs, and write one line per pair if asked to."""
    model, tokenizer = _load(options, options.device)
    reference, _ = load_policy(options.reference, device=options.device, trust_remote_code=options.trust_remote_code)
    rows = _rows(options, options.seed, read_preferences, default_split="test")
    data, report = tokenize_pairs(rows, tokenizer, max_length=options.max_length)
    _say(report)
    with ReferenceCache(options.cache) as store:
        result = evaluate(
            model, tokenizer, data, reference=reference, cache=store, loss=options.loss, beta=options.beta,
            precision=options.precision, tokens_per_pass=options.tokens_per_pass,
        )  # fmt: skip
    metrics: dict[str, Any] = {"pairs": f"{len(data):,}", **result.metrics}
    if options.kl_prompts:
        estimate = kl_from_reference(
            model, reference, tokenizer, rows[: options.kl_prompts], seed=options.seed,
            max_new_tokens=options.max_new_tokens, max_length=options.max_length,
        )  # fmt: skip
        metrics["KL from the reference, nats"] = f"{estimate.mean:.3f} ± {estimate.standard_error:.3f}"
    console.print(number_table("", metrics))
    if options.table is not None:
        _write_table(options.table, result.rows())
        console.print(f"one line per pair: {options.table}")
    return 0


def sample(options: SampleOptions) -> int:
    """Print answers."""
    model, tokenizer = load_policy(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    if options.pairs is not None:
        rows, report = read_preferences(options.pairs, limit=options.limit, seed=options.seed)
        _say(report)
        prompts = [render_prompt(row, tokenizer) for row in rows]
        shown = [prompt_text(row) for row in rows]
    else:
        texts = list(options.prompts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not texts:
            raise ValueError("nothing to answer: give prompts as arguments, on standard input, or with --pairs")
        system = [{"role": "system", "content": options.system}] if options.system else []
        chats = [{"prompt": text if options.raw else [*system, {"role": "user", "content": text}]} for text in texts]
        prompts, shown = [render_prompt(row, tokenizer) for row in chats], texts
    answers = generate(
        model, tokenizer, prompts, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
        top_p=options.top_p, num_samples=options.num_samples, seed=options.seed,
    )  # fmt: skip
    for prompt, answer in zip(shown, answers, strict=True):
        console.rule(style="dim")
        console.print(prompt, markup=False)
        for text in answer if isinstance(answer, list) else [answer]:
            console.print(f"→ {text}", markup=False, style="bold")
    return 0


def compare(options: CompareOptions) -> int:
    """Print runs side by side."""
    runs = load_runs(options.runs)
    rows = compare_runs(runs)
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(str(name), justify="left" if name == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    if options.csv is not None:
        _write_table(options.csv, rows)
    if options.figure is not None:
        comparison_figure(runs).savefig(options.figure)
    return 0


def losses(_: LossesOptions) -> int:
    """Print the table of losses."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("loss", "needs reference", "knobs", "source", "what it does"):
        table.add_column(title, overflow="fold")
    for name, spec in LOSSES.items():
        knobs = ", ".join(f"{knob} {value:g}" for knob, value in spec.knobs.items())
        table.add_row(name, "yes" if spec.needs_reference else "no", knobs, spec.paper, spec.summary)
    console.print(table)
    return 0


def demo(options: DemoOptions) -> int:
    """The embedded model on the embedded data."""
    run = options.run or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    return train(TrainOptions(run=run, seed=options.seed, device=options.device))


def lab(options: LabOptions) -> int:
    """Start JupyterLab on the loopback address, at the map of the course."""
    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    if not (notebooks / "README.md").is_file():
        raise ValueError(
            "the notebooks are not part of the installed package; get the source of DPO Lab and run `make lab` there"
        )
    try:
        import jupyterlab  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError:
        raise ValueError("JupyterLab is not installed; run `make lab`, or pip install 'dpo-lab[course]'") from None
    command = [
        sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={notebooks.parent}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={options.port}",
        "--LabApp.default_url=/lab/tree/notebooks/README.md?factory=Markdown%20Preview",
    ]  # fmt: skip
    return subprocess.call(command if options.browser else [*command, "--no-browser"], env=dict(os.environ))


# ── shared pieces ────────────────────────────────────────────────────────────────────────────────────────────────────


def _settings(options: Any, kind: type) -> dict[str, Any]:
    """The fields of a configuration among a command's options."""
    return {field.name: getattr(options, field.name) for field in fields(kind)}


def _load(options: InputOptions, device: str) -> tuple[Any, Any]:
    model, tokenizer = load_policy(options.model, device=device, trust_remote_code=options.trust_remote_code)
    console.print(f"model: {options.model}, {num_parameters(model):,} weights, on {next(model.parameters()).device}")
    return model, tokenizer


def _rows(
    options: InputOptions, seed: int, read: Callable[..., tuple[list[Row], Any]], *, default_split: str | None = None
) -> list[Row]:
    split = options.split or (default_split if options.pairs == "embedded" else None)
    rows, report = read(options.pairs, split=split, on_bad_row=options.on_bad_row, limit=options.limit, seed=seed)
    _say(report)
    return rows


def _training_rows(
    options: InputOptions, seed: int, read: Callable[..., tuple[list[Row], Any]]
) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows to evaluate on."""
    rows = _rows(options, seed, read, default_split="train")
    held_out = options.held_out if isinstance(options, RunOptions) else None
    validation = options.validation if isinstance(options, RunOptions) else 0.0
    if held_out is not None:
        held, report = read(held_out, on_bad_row=options.on_bad_row)
        _say(report)
    elif options.pairs == "embedded":
        held, report = read("embedded", split="test", on_bad_row=options.on_bad_row)
    elif validation:
        rows, held = split_rows(rows, validation, seed)
    else:
        held = []
    return list(rows), list(held)


def _tokens(rows: list[Row], held: list[Row], tokenizer: Any, max_length: int, tokenize: Callable[..., Any]) -> Any:
    tokens, report = tokenize(rows, tokenizer, max_length=max_length)
    _say(report)
    held_tokens = None
    if held:
        held_tokens, report = tokenize(held, tokenizer, max_length=max_length)
        _say(report)
    num_held = 0 if held_tokens is None else len(held_tokens)
    console.print(f"data: {len(tokens):,} rows to train on, {num_held:,} held out")
    return tokens, held_tokens


def _say(report: Any) -> None:
    text = report.summary()
    if text:
        console.print(text, markup=False, style="dim")


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} must end in .csv or .jsonl; the ending decides the format")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, default=_plain) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
