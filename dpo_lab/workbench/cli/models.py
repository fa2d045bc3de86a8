"""`dpo-lab cache`, `evaluate`, `sample`: what a model answers and how it scores; `merge`: base and adapter as one."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from dpo_lab.config import DPOConfig
from dpo_lab.engine.engine import Engine
from dpo_lab.engine.processes import join, leave
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import check_length, pick_device
from dpo_lab.models.loading import load_policy, save_policy
from dpo_lab.models.lora import base_of, merge_adapter
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.preferences.reading import OnePrompt, read_preferences, read_prompts
from dpo_lab.preferences.token_cache import PAIRS, UNPAIRED, reading
from dpo_lab.preferences.tokens import check_kept, single_answers
from dpo_lab.reference import ReferenceCache
from dpo_lab.sampling import generate
from dpo_lab.training import token_parts
from dpo_lab.workbench.cli.inputs import (
    load_model,
    load_reference,
    print_report,
    read_rows,
    settled,
    training_data,
)
from dpo_lab.workbench.cli.options import CacheOptions, EvaluateOptions, MergeOptions, SampleOptions
from dpo_lab.workbench.cli.progress import Dashboard
from dpo_lab.workbench.cli.suites import evaluate_suites
from dpo_lab.workbench.cli.tables import TABLES, check_output, write_table
from dpo_lab.workbench.cli.terminal import console, number_table
from dpo_lab.workbench.evaluation.kl import kl_from_reference
from dpo_lab.workbench.evaluation.pairs import evaluate as evaluate_pairs
from dpo_lab.workbench.recipes.answers import longest_prompt


def cache(options: CacheOptions) -> int:
    """Fill the reference cache with all that a run looks up there; of several processes, each scores its share."""
    config = DPOConfig(loss=options.loss, max_length=options.max_length)
    if not loss_of(config)[0].needs_reference:
        raise ValueError(f"the loss {options.loss} needs no reference, so there is nothing to save; train at once")
    options, kind = settled(options), UNPAIRED if config.is_unpaired else PAIRS
    processes = join(pick_device(options.device))
    console.quiet = not processes.is_main
    model, tokenizer = load_model(options, options.device)
    try:
        data = training_data(options, tokenizer, kind)
    except OnePrompt:  # which a run would refuse to split; here they are scored
        data = training_data(replace(options, validation=0.0), tokenizer, kind)
    parts, probes = token_parts(data.train, data.held, model, tokenizer, config)
    began = time.perf_counter()
    with ReferenceCache(options.cache) as store:
        results = [
            store.logps(
                model, part, precision=options.precision, tokens_per_pass=options.tokens_per_pass,
                progress=Dashboard(kind.name, 1).reference if processes.is_main else None,
                engine=Engine(processes.device, processes),
            )
            for part in (*parts, *probes)
        ]  # fmt: skip
        seconds = time.perf_counter() - began
        computed, found = sum(one.num_computed for one in results), sum(one.num_found for one in results)
        console.print(f"{computed:,} {kind.name} computed, {found:,} found, in {seconds:.1f} s")
        console.print(f"saved in {store.path}", soft_wrap=True)
    leave()
    return 0


def evaluate(options: EvaluateOptions) -> int:
    """Print the metrics of a model on rows; with --table, write one line for each. --suite and --against: `suites`."""
    if options.suite is not None or options.against is not None:
        return evaluate_suites(options)
    if options.table is not None:
        check_output(options.table, TABLES)
    config = DPOConfig(loss=options.loss, beta=options.beta)
    loss_of(config)  # a wrong knob is refused before anything is loaded
    options, kind = settled(options), UNPAIRED if config.is_unpaired else PAIRS
    model, tokenizer = load_model(options, options.device)
    reference = load_reference(options, options.reference or "embedded", tokenizer)
    rows = read_rows(options, options.seed, read_preferences, embedded_split="test")
    rows = list(single_answers(rows)) if config.is_unpaired else rows  # of each pair two
    settings = {name: getattr(options, name) for name in ("max_length", "score_turns", "on_bad_row")}
    data, report = kind.tokenize(rows, tokenizer, **settings)
    check_kept(data, report, options.pairs)
    print_report(report)
    check_length(model, report.longest, "--pairs")
    with ReferenceCache(options.cache) as store:
        result = evaluate_pairs(
            model, tokenizer, data, reference=reference, cache=store, loss=options.loss, beta=options.beta,
            max_length=options.max_length, precision=options.precision, tokens_per_pass=options.tokens_per_pass,
        )  # fmt: skip
    metrics: dict[str, Any] = {kind.name: f"{len(result.table['row']):,}", **result.metrics}
    usable = [rows[index] for index in data.source_rows[: options.kl_prompts]]
    if len(usable) == 1:
        metrics["KL from the reference, nats"] = "needs two rows"
    elif usable:
        estimate = kl_from_reference(
            model, reference, tokenizer, usable, seed=options.seed,
            max_new_tokens=options.max_new_tokens,
            max_length=longest_prompt(model, options.max_length, options.max_new_tokens),
        )  # fmt: skip
        metrics["KL from the reference, nats"] = f"{estimate.mean:.2f} ± {estimate.standard_error:.2f}"
    console.print(number_table("", metrics))
    if options.table is not None:
        write_table(options.table, result.rows())
        console.print(f"one line for each: {options.table}", soft_wrap=True)
    return 0


def sample(options: SampleOptions) -> int:
    """Print answers."""
    model, tokenizer = load_policy(options.model, device=options.device, trust_remote_code=options.trust_remote_code)
    if options.pairs is not None:
        split = options.split or ("test" if options.pairs == "embedded" else None)
        rows, report = read_prompts(
            options.pairs, split=split, limit=options.limit, seed=options.seed, **reading(options, options.pairs)
        )
        print_report(report)
        shown = [prompt_text(row) for row in rows]
    else:
        shown = list(options.prompts) or [line.rstrip("\n") for line in sys.stdin if line.strip()]
        if not shown:
            raise ValueError("nothing to answer: give prompts as arguments, on standard input, or with --pairs")
        system = [{"role": "system", "content": options.system}] if options.system else []
        rows = [{"prompt": text if options.raw else [*system, {"role": "user", "content": text}]} for text in shown]
    answers = generate(
        model, tokenizer, rows, max_new_tokens=options.max_new_tokens, temperature=options.temperature,
        top_p=options.top_p, num_samples=options.num_samples, seed=options.seed,
    )  # fmt: skip
    for prompt, answer in zip(shown, answers, strict=True):
        console.rule(style="dim")
        console.print(prompt, soft_wrap=True)
        for text in answer if isinstance(answer, list) else [answer]:
            console.print(f"→ {text}", style="bold", soft_wrap=True)
    return 0


def merge(options: MergeOptions) -> int:
    """Write an adapter and its base as one model."""
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise ValueError(f"--output {options.output} is not empty; name a new or an empty folder")
    name = options.model or base_of(options.adapter)
    base, tokenizer = load_policy(name, device="cpu", trust_remote_code=options.trust_remote_code)
    save_policy(merge_adapter(base, options.adapter), tokenizer, options.output)
    console.print(f"{options.adapter} merged into {name}: {options.output}", soft_wrap=True)
    return 0
