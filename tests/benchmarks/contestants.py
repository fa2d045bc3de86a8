"""One side of the benchmark in a process of its own: trains, and prints what it took as one line of JSON.

    python -m tests.benchmarks.contestants dpo_lab --pairs 320
    python -m tests.benchmarks.contestants trl_live --pairs 320 --part 0 --parts 5     on 64 of the 320

Time runs from the call of the trainer to the end of training; loading the model and the tokens is not in it. On our
side everything that a user gets is in it: the check of the model, the hash of the reference, the look-up or filling of
the cache, metrics and events of every step, the run folder, the last checkpoint, the curves and the report. TRL writes
no files, and its own preparation (precomputing the reference's log-probs) is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.course.speed.process import peak_memory
from dpo_lab.preferences import TokenData
from tests.benchmarks.workload import Workload

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BATCH, LEARNING_RATE = 8, 1e-4


def part_of(data: TokenData, part: int, parts: int) -> TokenData:
    """One of `parts` parts of the data, in its order: each has short and long pairs in the same shares."""
    by_length = np.argsort(data.prompt_lengths + data.completion_lengths.sum(1), kind="stable")
    return data.select(np.sort(by_length[part::parts]))


def dpo_lab(
    data: TokenData, load: Workload, work: Path, precision: str, *, is_compiled: bool = False
) -> dict[str, float]:
    """Twice: with an empty cache (the cache pass and one epoch), then again with the cache filled."""
    from dpo_lab.config import DPOConfig
    from dpo_lab.course.speed.flops import forward_flops
    from dpo_lab.loop import Step
    from dpo_lab.reference import ReferenceCache
    from dpo_lab.training import train_dpo
    from dpo_lab.workbench.runs import Run

    config = DPOConfig(
        epochs=1, batch_size=BATCH, learning_rate=LEARNING_RATE, max_length=load.max_length, precision=precision,
        device="cpu", compile=is_compiled,
    )  # fmt: skip

    def train(name: str, pairs: TokenData, kept: str) -> dict[str, float]:
        model = load.make()
        with ReferenceCache(work / f"{kept}.sqlite") as cache:
            began = time.perf_counter()
            run = Run.create(work / name, {"command": "train", "settings": vars(config)})
            events = train_dpo(model, None, pairs, config, cache=cache, checkpoints=run.checkpoints)
            steps = [event for event in run.follow(events) if isinstance(event, Step)]
            run.write_report()
            seconds = time.perf_counter() - began
        assert len(steps) == -(-len(pairs) // BATCH)
        return {"seconds": seconds, "last_loss": steps[-1].metrics["loss"], "seconds_of_steps": steps[-1].seconds}

    warm_up(lambda: train("warm-up", data.select(range(8)), "warm-up"))
    cold, warm = (train(name, data, "reference") for name in ("cold", "warm"))
    return {
        "seconds_with_reference": cold["seconds"],
        "seconds": warm["seconds"],
        "seconds_of_steps": warm["seconds_of_steps"],
        "flops_per_pair": float(forward_flops(load.make().config, data).mean()),
    }


def trl(
    data: TokenData, load: Workload, work: Path, precision: str, *, is_live: bool, is_grouped: bool = False
) -> dict[str, float]:
    """TRL's trainer, with a live reference or with precomputed log-probs; its pairs in a random order, or grouped by
    length, for which it has a switch."""
    import copy

    from transformers import AutoTokenizer

    from tests.benchmarks import trl_side

    tokenizer = AutoTokenizer.from_pretrained(load.tokenizer)
    rows = trl_side.rows_of(data)
    changes: dict[str, Any] = {
        "learning_rate": LEARNING_RATE, "per_device_train_batch_size": BATCH, "seed": 0, "bf16": precision == "bfloat16"
    }  # fmt: skip
    if is_grouped:
        changes |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
        rows = rows.add_column("length", (data.prompt_lengths + data.completion_lengths.max(1)).tolist())

    def trainer(rows: Any):
        model = load.make()
        reference = copy.deepcopy(model) if is_live else None
        config = trl_side.settings(work, precompute_ref_log_probs=not is_live, **changes)
        return trl_side.make_trainer(trl_side.GivenTokens, model, reference, rows, tokenizer, config)

    warm_up(lambda: trainer(rows.select(range(8))).train())
    contestant = trainer(rows)
    began = time.perf_counter()
    contestant.train()
    return {"seconds": time.perf_counter() - began}


def sampling(data: TokenData, load: Workload, work: Path, precision: str, *, plainly: bool) -> dict[str, float]:
    """8 answers of at most 64 tokens to each of 64 prompts: our sampler, or transformers' `generate`."""
    from transformers import AutoTokenizer

    from dpo_lab.course.speed.sampling import sampling_speed

    prompts = [data.row(i).prompt.tolist() for i in range(min(64, len(data)))]
    tokenizer = AutoTokenizer.from_pretrained(load.tokenizer)
    return sampling_speed(load.make(), tokenizer, prompts, plainly=plainly, precision=precision)


CONTESTANTS: dict[str, Callable[..., dict[str, float]]] = {
    "dpo_lab": dpo_lab,
    "dpo_lab_compiled": partial(dpo_lab, is_compiled=True),
    "trl_precomputed": lambda *where: trl(*where, is_live=False),
    "trl_live": lambda *where: trl(*where, is_live=True),
    "trl_precomputed_grouped": lambda *where: trl(*where, is_live=False, is_grouped=True),
    "sampling": lambda *where: sampling(*where, plainly=False),
    "sampling_plainly": lambda *where: sampling(*where, plainly=True),
}


def warm_up(work: Callable[[], Any]) -> None:
    """A step that does not count: lazy imports and the memory's first touch."""
    work()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", choices=("small", "real", "embedded"), default="small")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    import torch

    from tests.benchmarks import workload

    torch.set_num_threads(arguments.threads)
    load = workload.WORKLOADS[arguments.model]()
    data = part_of(workload.load_pairs(load.folder, arguments.pairs), arguments.part, arguments.parts)
    with tempfile.TemporaryDirectory() as work:
        found = CONTESTANTS[arguments.name](data, load, Path(work), arguments.precision)
    print(json.dumps(found | {"pairs": len(data), "peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
