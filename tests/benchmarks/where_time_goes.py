"""A profile of our training steps: which operations take the time, as a table.

    python -m tests.benchmarks.where_time_goes after              writes data/results/profile_after.txt
    python -m tests.benchmarks.where_time_goes before --plain     the same without any fast path

The data is that of the speed benchmark: forward, loss, backward, clipping and AdamW on batches of 8 pairs. Passes are
whole, on both cores; training makes two halves of one, a core each, which the profiler would not see. The plain
way is a padded row for each completion, pairs in a random order, logits at every position, and AdamW parameter by
parameter: what the kit began with.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from dpo_lab.batching import epoch_batches, row_lengths, split_passes
from dpo_lab.config import DPOConfig
from dpo_lab.course.speed.flops import forward_flops
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import Scorer, score, scoring_path
from dpo_lab.loop import make_optimizer
from dpo_lab.losses.table import loss_of
from dpo_lab.training import DPOObjective
from tests.benchmarks.machine import ROOT, heading, matrix_rate
from tests.benchmarks.workload import load_pairs, make_model, prepare

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="what the table is called: before, after, …")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-per-pass", type=int, default=16384)
    parser.add_argument("--plain", action="store_true", help="without any fast path")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = load_pairs(prepare(), 8 * arguments.steps)
    config = DPOConfig(batch_size=8, device="cpu", tokens_per_pass=arguments.tokens_per_pass)
    _, loss, beta = loss_of(config)
    model = make_model()
    # The model's own log-probs, as at the start of a run: far from them the loss has no gradient left, and products of
    # numbers too small for float32 take many times as long.
    reference = score(model, data)
    layout = "separate" if arguments.plain else "shared"
    objective = DPOObjective(data, None, config, layout, Engine(CPU), loss, beta, reference, reference)
    scoring_path(model).chunked = not arguments.plain
    scorer, optimizer = Scorer(model), make_optimizer(model, config)
    if arguments.plain:
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, foreach=False, fused=False)
    batches = epoch_batches(row_lengths(data), 8, seed=0, group_by_length=not arguments.plain)

    def step(indices: np.ndarray) -> None:
        for part in split_passes(indices, objective.lengths, tokens_per_pass=config.tokens_per_pass):
            objective.loss(scorer, part, CPU)[0].div(len(indices)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step(batches[0])
    began = time.perf_counter()
    for indices in batches:
        step(indices)
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for indices in batches[:5]:
            step(indices)
    rate = matrix_rate(arguments.threads)
    share = 3 * forward_flops(model.config, data).sum() / seconds / rate
    table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60)
    text = (
        f"{heading(' '.join(['python -m tests.benchmarks.where_time_goes', *sys.argv[1:]]))}\n\n"
        f"{len(batches)} steps of 8 pairs: {len(data) / seconds:.2f} pairs/s, {share:.1%} of "
        f"{rate / 1e9:.0f} GFLOP/s in useful operations. Five steps under the profiler:\n\n{table}"
    )
    path = ROOT / "data" / "results" / f"profile_{arguments.name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
