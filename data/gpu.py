"""Small models trained on a GPU from random weights, and where the time and the memory go: `python data/gpu.py`.

    python data/gpu.py                         # on a GPU: both sizes; planned for some minutes each
    python data/gpu.py --only 30m              # one of them; a second start goes on with the other
    python data/gpu.py --tiny --device cpu --out trial.json     # tries every line, anywhere, in minutes

For Llamas of 30 and 135 million weights: pairs per second of DPO steps in several ways (float32 and bfloat16, separate
and shared rows, compiled, recomputed activations), peak memory, the share of the measured matrix rate that is useful
work, seconds by phase, memory as a step goes on; then SFT from scratch on the pocket world's texts, pairs of the
model's own answers, DPO, and the true reward before and after. Needs torch, transformers and accelerate; nothing is
fetched. Results go to data/results/gpu.json and gpu.md, after each model.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measuring import RESULTS, made_with

from dpo_lab import DPOConfig, SFTConfig, load_policy, train_dpo, train_sft
from dpo_lab.course.speed.flops import FORWARD_AND_BACKWARD, forward_flops
from dpo_lab.course.speed.from_scratch import judged, new_llama, own_pairs, sft_tokens
from dpo_lab.course.speed.memory import KINDS, MemoryBook, peak_device_memory, reset_peak
from dpo_lab.course.speed.phases import summary, timed_steps
from dpo_lab.course.speed.rates import matrix_rate, seconds_of
from dpo_lab.course.speed.sampling import sampling_speed
from dpo_lab.logprobs import score
from dpo_lab.loop import Step
from dpo_lab.models import num_parameters, pick_device
from dpo_lab.preferences import TokenData, encode_prompt, read_preferences, tokenize_pairs
from dpo_lab.worlds import corpus

WAYS: dict[str, dict[str, Any]] = {
    "float32, separate rows": {"precision": "float32", "layout": "separate"},
    "bfloat16, separate rows": {"precision": "bfloat16", "layout": "separate"},
    "float32, shared rows": {"precision": "float32", "layout": "shared"},
    "bfloat16, shared rows": {"precision": "bfloat16", "layout": "shared"},
    "bfloat16, shared rows, compiled": {"precision": "bfloat16", "layout": "shared", "compile": True},
    "bfloat16, shared rows, recomputed": {
        "precision": "bfloat16", "layout": "shared", "gradient_checkpointing": True},
}  # fmt: skip
PROMPT_SEED = 91_000


@dataclass(frozen=True)
class Plan:
    """All that decides what is measured."""

    models: dict[str, dict[str, Any]]
    sizes: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192)
    timed_pairs: int = 256  # per step: enough work to keep a GPU busy
    timed_steps: int = 12
    texts: int = 120_000
    sft_batch: int = 128
    prompts: int = 4_096
    dpo_batch: int = 32
    judged_prompts: int = 400
    sampled: int = 256  # prompts, 8 answers each


FULL = Plan({
    "30m": {"sft_steps": 3_000, "sft_rate": 1e-3, "dpo_rate": 1e-4},
    "135m": {"sft_steps": 2_500, "sft_rate": 6e-4, "dpo_rate": 5e-5},
})  # fmt: skip
TINY = Plan(
    {"tiny": {"sft_steps": 30, "sft_rate": 3e-3, "dpo_rate": 3e-4}}, sizes=(64, 128), timed_pairs=8, timed_steps=3,
    texts=256, sft_batch=16, prompts=32, dpo_batch=4, judged_prompts=16, sampled=8,
)  # fmt: skip


def rates(plan: Plan, device: torch.device) -> dict[str, list[list[float]]]:
    """Matrix products of each size and precision, operations per second."""
    return {
        dtype: [[size, matrix_rate(size, device=device, dtype=dtype, seconds=0.3)] for size in plan.sizes]
        for dtype in ("float32", "bfloat16")
    }


def clock(plan: Plan, device: torch.device) -> dict[str, float]:
    """What a clock sees of one matrix product that waits for the device, and what one that doesn't, in seconds."""
    left = torch.randn(plan.sizes[-1], plan.sizes[-1], device=device)
    product = lambda: left @ left
    median = lambda waits: float(np.median(seconds_of(product, device, repeats=10, waits=waits)))
    return {"with waiting": median(True), "without waiting": median(False)}


def way_of(model: Any, pairs: TokenData, way: str, plan: Plan, rate: float) -> dict[str, Any]:
    """Steps of a copy of the model in one way: speed, share of the rate, peak memory, seconds by phase.

    A fresh copy for each, and the peak of steps without clocks at the borders. On a CPU the peak is the process's own
    and only grows; there it says nothing about one way.
    """
    device = next(model.parameters()).device
    policy = copy.deepcopy(model)
    config = DPOConfig(
        batch_size=plan.timed_pairs, max_steps=plan.timed_steps, max_length=corpus.CONTEXT, epochs=100, **WAYS[way],
        tokens_per_pass=2**20,  # a step in one pass
    )  # fmt: skip
    reference = score(policy, pairs, layout=config.layout, precision=config.precision)
    skip = plan.timed_steps // 3
    by_phase = summary(list(timed_steps(policy, pairs, reference, config)), skip=skip)
    reset_peak(device)
    steps = list(timed_steps(policy, pairs, reference, config, by_phase=False))
    found = summary(steps, skip=skip)
    useful = FORWARD_AND_BACKWARD * float(forward_flops(model.config, pairs).mean())  # per pair, prompts once
    return {
        "way": way, "pairs_per_second": found["pairs_per_second"], "tokens_per_pair": found["tokens_per_pair"],
        "share": useful * found["pairs_per_second"] / rate, "peak_bytes": peak_device_memory(device),
        "phases": by_phase["phases"], "last_loss": steps[-1].loss,
    }  # fmt: skip


def memory_curve(model: Any, pairs: TokenData, plan: Plan) -> dict[str, Any]:
    """Two steps of a copy as the memory book and the device's own meter see them; about 400 events are saved."""
    policy = copy.deepcopy(model)
    config = DPOConfig(
        batch_size=plan.timed_pairs, max_steps=2, max_length=corpus.CONTEXT, precision="bfloat16",
        tokens_per_pass=2**20, epochs=100,
    )  # fmt: skip
    reference = score(policy, pairs, precision="bfloat16")
    with MemoryBook(policy) as book:
        list(timed_steps(policy, pairs, reference, config, by_phase=False, watch=book.watch))
    curve = book.curve()
    num = len(curve["seconds"])
    borders = {event for _, event in curve["phases"]}
    chosen = sorted({*np.linspace(0, num - 1, min(num, 400)).astype(int).tolist(), *(e for e in borders if e < num)})
    thin = {name: [curve[name][event] for event in chosen] for name in ("seconds", *KINDS)}
    thin["device"] = None if curve["device"] is None else [curve["device"][event] for event in chosen]
    thin["phases"] = [[phase, int(np.searchsorted(chosen, event))] for phase, event in curve["phases"]]
    return thin | {"peak": book.peak()}


def drained(events: Any, log: Callable[[str], None], name: str) -> tuple[list[Step], float]:
    """The steps of a training, and its seconds from the first step to the last."""
    began, steps = time.perf_counter(), []
    for event in events:
        if isinstance(event, Step):
            steps.append(event)
            if event.step == 1 or event.step % 500 == 0 or event.step == event.num_steps:
                log(f"{name}: step {event.step} of {event.num_steps}, loss {event.metrics['loss']:.3f}")
    return steps, time.perf_counter() - began


def train(
    name: str, plan: Plan, device: torch.device, tokenizer: Any, texts: TokenData, log: Any
) -> tuple[dict[str, Any], Any]:
    """SFT from random weights, pairs of the model's own answers, DPO; the judge before and after; and the policy."""
    settings = plan.models[name]
    model = new_llama(name, tokenizer).to(device)
    shared = {"max_length": corpus.CONTEXT, "precision": "bfloat16", "device": str(device), "tokens_per_pass": 2**16}
    sft = SFTConfig(
        batch_size=plan.sft_batch, max_steps=settings["sft_steps"], learning_rate=settings["sft_rate"],
        epochs=settings["sft_steps"] * plan.sft_batch / len(texts), schedule="cosine", warmup=0.03, adam_beta2=0.98,
        log_every=max(1, settings["sft_steps"] // 150), **shared,
    )  # fmt: skip
    reset_peak(device)
    steps, seconds = drained(train_sft(model, tokenizer, texts, sft), log, f"{name} SFT")
    conversations = corpus.prompts(plan.judged_prompts, split="test", seed=PROMPT_SEED)
    found: dict[str, Any] = {
        "sft": about(steps, seconds, sft.batch_size) | {"peak_bytes": peak_device_memory(device)},
        "judged": {"after SFT": judged(model, tokenizer, conversations)},
    }
    log(f"{name} after SFT: {found['judged']['after SFT']}")
    rows = own_pairs(model, tokenizer, plan.prompts)
    if not rows:
        rows, _ = read_preferences("embedded", split="train", limit=plan.prompts)
        log(f"{name}: all answers of the model are worth the same; the embedded pairs are taken instead")
        found["pairs_of"] = "the embedded model"
    else:
        found["pairs_of"] = "its own answers"
    pairs, _ = tokenize_pairs(rows, tokenizer, max_length=corpus.CONTEXT)
    dpo = DPOConfig(batch_size=plan.dpo_batch, learning_rate=settings["dpo_rate"], **shared)
    reset_peak(device)
    steps, seconds = drained(train_dpo(model, tokenizer, pairs, dpo), log, f"{name} DPO")
    found["dpo"] = about(steps, seconds, dpo.batch_size) | {
        "pairs": len(pairs), "peak_bytes": peak_device_memory(device),
        "accuracy": float(np.mean([step.metrics["rewards/accuracies"] for step in steps[-20:]])),
    }  # fmt: skip
    found["judged"]["after DPO"] = judged(model, tokenizer, conversations)
    log(f"{name} after DPO: {found['judged']['after DPO']}")
    return found, model


def about(steps: list[Step], seconds: float, batch_size: int) -> dict[str, Any]:
    """Loss over the seconds of a training, and its speed once it runs."""
    first, last = steps[0], steps[-1]
    pace = (last.step - first.step) * batch_size / max(last.seconds - first.seconds, 1e-9)
    return {
        "seconds": seconds, "steps": last.step, "rows_per_second": pace,
        "curve": [[step.step, round(step.seconds, 2), round(step.metrics["loss"], 4)] for step in steps],
    }  # fmt: skip


def measure(name: str, plan: Plan, device: torch.device, found: dict[str, Any], work: Path, log: Any) -> dict:
    """Everything about one model."""
    _, tokenizer = load_policy("embedded", device="cpu")
    rows, _ = read_preferences("embedded", split="train", limit=4 * plan.timed_pairs, seed=0)
    pairs, _ = tokenize_pairs(rows, tokenizer, max_length=corpus.CONTEXT)
    model = new_llama(name, tokenizer).to(device)
    fastest = max(rate for sizes in found["rates"].values() for _, rate in sizes)
    ways = []
    for way in WAYS:
        try:
            ways.append(way_of(model, pairs, way, plan, fastest))
        except Exception as error:  # a machine without a compiler, or too little memory, still measures the rest
            found.setdefault("left out", []).append(f"{name}, {way}: {type(error).__name__}: {str(error)[:200]}")
            log(found["left out"][-1])
        else:
            log(f"{name}, {way}: {ways[-1]['pairs_per_second']:.0f} pairs/s, {ways[-1]['share']:.1%} of the rate")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    curve = memory_curve(model, pairs, plan)
    made: dict[str, Any] = {"parameters": num_parameters(model), "ways": ways, "curve": curve}
    del model
    tokens = work / f"texts-{plan.texts}"
    if not (tokens / "token_data.json").is_file():
        began = time.perf_counter()
        sft_tokens(plan.texts, tokenizer).save(tokens)
        log(f"{plan.texts} texts written and tokenised in {time.perf_counter() - began:.0f} s")
    trained, policy = train(name, plan, device, tokenizer, TokenData.load(tokens), log)
    prompts = [encode_prompt(one.row(), tokenizer) for one in corpus.prompts(plan.sampled, split="test", seed=1)]
    made["sampling"] = {}
    for way, plainly in (("DPO Lab", False), ("generate", True)):
        took = sampling_speed(policy, tokenizer, prompts, plainly=plainly, precision="bfloat16", rows=plan.sampled)
        made["sampling"][way] = took["tokens"] / took["seconds"]
    log(f"{name}, sampling, tokens per second: {made['sampling']}")
    return made | {"training": trained}


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    made = found["made"]
    best = max((rate, dtype) for dtype, sizes in found["rates"].items() for _, rate in sizes)
    lines = [
        "# Small models on a GPU, from random weights", "", *(f"- {key}: {value}" for key, value in made.items()), "",
        f"The fastest matrix product: {best[0] / 1e12:.4g} TFLOP/s in {best[1]}; shares are of this rate, and count "
        "what a step cannot leave out: each prompt once, no padding, nothing twice.",
    ]  # fmt: skip
    for name, model in found["models"].items():
        lines += [
            "", f"## {name}: {model['parameters'] / 1e6:.1f} M weights", "",
            "| DPO steps | pairs/s | tokens per pair | share of the rate | peak memory, GiB |", "|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {way['way']} | {way['pairs_per_second']:.4g} | {way['tokens_per_pair']:.4g} | {way['share']:.1%} | "
            f"{way['peak_bytes'] / 2**30:.2f} |" for way in model["ways"]
        ]  # fmt: skip
        sft, dpo = model["training"]["sft"], model["training"]["dpo"]
        before, after = (model["training"]["judged"][when] for when in ("after SFT", "after DPO"))
        lines += [
            "", f"SFT: {sft['steps']} steps in {sft['seconds']:.0f} s ({sft['rows_per_second']:.4g} texts/s), loss "
            f"{sft['curve'][0][2]:.3f} → {sft['curve'][-1][2]:.3f}. DPO on {dpo['pairs']} pairs of "
            f"{model['training']['pairs_of']}: {dpo['steps']} steps in {dpo['seconds']:.0f} s "
            f"({dpo['rows_per_second']:.4g} pairs/s). Sampling in bfloat16, tokens per second: "
            f"{', '.join(f'{way} {rate:.4g}' for way, rate in model['sampling'].items())}.", "",
            "| | true reward | success | well formed |", "|---|---|---|---|",
            *(f"| {when} | {one['reward']:.3f} | {one['success']:.1%} | {one['well_formed']:.1%} |"
              for when, one in (("after SFT", before), ("after DPO", after))),
        ]  # fmt: skip
    lines += [f"\nLeft out: {one}" for one in found.get("left out", [])]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FULL.models, help="some of the sizes")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and tiny data: tries every line in minutes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "dpo-lab-gpu", help="for the texts")
    arguments = parser.parse_args(argv)
    device, plan = pick_device(arguments.device), TINY if arguments.tiny else FULL
    if device.type == "cpu" and not arguments.tiny:
        raise SystemExit("no GPU was found, and on a CPU this takes days; try every line with --tiny --out FILE")
    if arguments.tiny and arguments.out == RESULTS / "gpu.json":
        raise SystemExit("--tiny is a trial; name another file with --out, so that it doesn't take the results' place")
    began = time.perf_counter()
    log = lambda text: print(f"{time.perf_counter() - began:6.0f} s  {text}", flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    options = " --tiny" if arguments.tiny else ""
    made = made_with(f"python data/gpu.py{options}") | {"device": name}
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    same = ("device", "torch", "transformers", "commit")
    if not found or any(found["made"].get(key) != made[key] for key in same):
        found = {"made": made, "models": {}}
    found["rates"], found["clock"] = rates(plan, device), clock(plan, device)
    log(", ".join(f"{dtype}: {max(r for _, r in sizes) / 1e12:.4g} TFLOP/s" for dtype, sizes in found["rates"].items()))
    for size in plan.models if arguments.tiny else arguments.only or plan.models:
        if size not in found["models"]:
            found["models"][size] = measure(size, plan, device, found, arguments.work, log)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
