"""Does it matter that a batch holds pairs of similar length? Learning curves with and without grouping, over seeds.

    python -m tests.benchmarks.order      writes data/results/order_of_pairs.{md,json,png}

Every run starts from the embedded model, with the defaults, on the same pairs; only the seed and the grouping differ.
The difference of the two mean curves is set beside the spread that seeds alone make.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dpo_lab.workbench.plots import Picture, add_title, dress, new_figure, to_png
from dpo_lab.workbench.plots.style import BLUE, ORANGE
from tests.benchmarks.machine import KEPT, heading, machine

CURVES = {
    "eval_loss": "held-out loss",
    "eval_rewards/accuracies": "held-out accuracy",
    "eval_rewards/margins": "held-out margin",
}


def measure(num_seeds: int, num_pairs: int, every: int) -> dict[str, Any]:
    """The held-out curves of `num_seeds` runs of each kind, in turn, and the seconds of their steps."""
    from dpo_lab import DPOConfig, ReferenceCache, load_policy, load_preferences, train_dpo
    from dpo_lab.loop import Evaluation, Step
    from dpo_lab.preferences import tokenize_pairs

    _, tokenizer = load_policy("embedded")
    data, held_out = (
        tokenize_pairs(list(load_preferences("embedded", split=split))[:num], tokenizer)[0]
        for split, num in (("train", num_pairs), ("test", 400))
    )
    runs = []
    with tempfile.TemporaryDirectory() as folder, ReferenceCache(Path(folder) / "reference.sqlite") as cache:
        for seed in range(num_seeds):
            for is_grouped in (True, False):
                config = DPOConfig(seed=seed, group_by_length=is_grouped, evaluate_every=every, device="cpu")
                curve: list[dict[str, float]] = []
                seconds, began = 0.0, time.perf_counter()
                for event in train_dpo(load_policy("embedded")[0], None, data, config, held_out=held_out, cache=cache):
                    now = time.perf_counter()
                    if isinstance(event, Step):
                        seconds += now - began
                    elif isinstance(event, Evaluation):
                        curve.append({"step": event.step} | {name: event.metrics[name] for name in CURVES})
                    began = now
                runs.append({"seed": seed, "grouped": is_grouped, "seconds": seconds, "curve": curve})
                print(f"seed {seed}, {'grouped' if is_grouped else 'not grouped'}: {curve[-1]}", flush=True)
    return {"machine": machine(), "pairs": len(data), "held_out": len(held_out), "runs": runs}


def curves(found: dict[str, Any], name: str, is_grouped: bool) -> list[list[float]]:
    """One list per run: the values of `name` at each evaluation."""
    return [[at[name] for at in run["curve"]] for run in found["runs"] if run["grouped"] == is_grouped]


def differences(found: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """Grouped minus not grouped at each evaluation: the mean over seeds, and its standard error."""
    pairs = list(zip(curves(found, name, True), curves(found, name, False), strict=True))
    gaps = [[a - b for a, b in zip(grouped, plain, strict=True)] for grouped, plain in pairs]
    return [(mean(at), stdev(at) / len(at) ** 0.5) for at in zip(*gaps, strict=True)]


def table(found: dict[str, Any]) -> str:
    runs = found["runs"]
    num_seeds, steps = len(runs) // 2, [at["step"] for at in runs[0]["curve"]]
    seconds = [mean(run["seconds"] for run in runs if run["grouped"] == is_grouped) for is_grouped in (False, True)]
    lines = [
        "# The order of the pairs",
        "",
        heading("python -m tests.benchmarks.order", found["machine"]),
        "",
        "Batches of pairs of similar length (the default) against batches drawn without regard to it: "
        f"{num_seeds} seeds of each, {found['pairs']} pairs, evaluated on {found['held_out']}. Differences are grouped "
        "minus not grouped, with their standard errors. Beside them stands how far seeds alone differ (standard "
        "deviation without grouping).",
        "",
        "| step | " + " | ".join(f"{label}: difference | seeds" for label in CURVES.values()) + " |",
        "|---" * (1 + 2 * len(CURVES)) + "|",
    ]
    for k, step in enumerate(steps):
        cells = []
        for name in CURVES:
            gap, error = differences(found, name)[k]
            cells += [f"{gap:+.4f} ± {error:.4f}", f"{stdev(run[k] for run in curves(found, name, False)):.4f}"]
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"The steps took {seconds[1] / seconds[0]:.2f} of the time that they take without grouping.",
        "",
        "![Learning curves with and without grouping by length](order_of_pairs.png)",
    ]
    return "\n".join(lines) + "\n"


def figure(found: dict[str, Any]) -> Picture:
    """One line per run: grouped in blue, not grouped in orange."""
    picture = new_figure(10, 3.4)
    for ax, (name, label) in zip(picture.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for is_grouped, color, style in ((True, BLUE, "-"), (False, ORANGE, "--")):
            for k, values in enumerate(curves(found, name, is_grouped)):
                kind = "similar lengths" if is_grouped else "any lengths"
                steps = [at["step"] for at in found["runs"][0]["curve"]]
                ax.plot(steps, values, style, color=color, linewidth=1.2, label=kind if k == 0 else None)
        dress(ax, label.capitalize(), "step", "")
        if name == "eval_loss":
            ax.legend(fontsize=8)
    add_title(picture, "Batches of pairs of similar length, and of any length")
    return picture


def write(found: dict[str, Any], folder: Path = KEPT) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "order_of_pairs.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "order_of_pairs.md").write_text(table(found), encoding="utf-8")
    (folder / "order_of_pairs.png").write_bytes(to_png(figure(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1600)
    parser.add_argument("--every", type=int, default=10, help="steps between two evaluations")
    parser.add_argument("--results", type=Path, default=KEPT)
    arguments = parser.parse_args()
    found = measure(arguments.seeds, arguments.pairs, arguments.every)
    write(found, arguments.results)
    print(table(found))


if __name__ == "__main__":
    main()
