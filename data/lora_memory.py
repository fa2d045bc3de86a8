"""What LoRA saves: memory and checkpoints of DPO with an adapter, beside DPO of all weights.

    python data/lora_memory.py                        # both shapes, about six minutes on one core
    python data/lora_memory.py --only smollm2-135m    # goes on where an interrupted one stopped

The models have the shapes of SmolLM2-135M and Qwen2.5-0.5B and random weights: memory does not depend on their values.
Each line is a process of its own that takes two steps, so that the peak is its own. What the weights, their gradients
and AdamW's two moments take is counted as well; the rest of the peak is activations and logits, and Python with torch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, made_with
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dpo_lab.config import DPOConfig
from dpo_lab.course.speed.process import peak_memory
from dpo_lab.models.lora import add_lora
from dpo_lab.preferences import TokenData
from dpo_lab.training import train_dpo

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                     "num_attention_heads": 9, "num_key_value_heads": 3},
    "qwen2.5-0.5b": {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "num_key_value_heads": 2},
}  # fmt: skip
WAYS: dict[str, int | None] = {"all weights": None, "LoRA, rank 16": 16, "LoRA, rank 64": 64}
PROMPT, ANSWER, PAIRS, STEPS = 48, 48, 2, 2
MIB = 2**20


def make_model(shape: str) -> nn.Module:
    """A random model of the shape, embeddings tied as published."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    kind = LlamaConfig if shape.startswith("smollm2") else Qwen2Config
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SHAPES[shape], tie_word_embeddings=True), dtype=torch.float32)


def measure(shape: str, way: str) -> dict[str, Any]:
    """Two steps of DPO; what they took."""
    model = make_model(shape)
    if (rank := WAYS[way]) is not None:
        model = add_lora(model, rank=rank)
    draw = lambda num: np.random.default_rng(0).integers(0, SHAPES[shape]["vocab_size"], num).astype(np.int32)
    ids = draw(STEPS * PAIRS * (PROMPT + 2 * ANSWER)).reshape(STEPS * PAIRS, -1)
    ends = PROMPT, PROMPT + ANSWER
    data = TokenData.from_rows([(row[: ends[0]], (row[ends[0] : ends[1]], row[ends[1] :])) for row in ids])
    config = DPOConfig(batch_size=PAIRS, learning_rate=1e-5, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        for _ in train_dpo(model, None, data, config, checkpoints=folder):
            pass
        checkpoint = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "model": shape, "way": way, "trained": trained, "weights": weights,
        "counted_mib": 4 * (weights + 3 * trained) / MIB, "peak_mib": peak_memory() / MIB,
        "checkpoint_mib": checkpoint / MIB,
    }  # fmt: skip


def table(rows: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """The result as Markdown."""
    full = {row["model"]: row for row in rows if WAYS[row["way"]] is None}
    lines = [
        "# DPO with an adapter, beside DPO of all weights", "",
        f"Random weights of the published shapes, float32, AdamW, {PAIRS} pairs a step of {PROMPT} + 2 × {ANSWER} "
        f"tokens, {STEPS} steps, on a CPU. *Counted* are weights, gradients and AdamW's two moments, 4 bytes each; the "
        "peak holds activations, logits, Python and torch as well. The share is of the same model's peak with all "
        "weights trained. A checkpoint is what one step's state takes on the disk.", "",
        *(f"- {key}: {value}" for key, value in made.items()), "",
        "| model | trained | weights trained | counted, MiB | peak, MiB | share | checkpoint, MiB |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        share = f"{row['peak_mib'] / full[row['model']]['peak_mib']:.2f}" if row["model"] in full else ""
        lines.append(
            f"| {row['model']} | {row['way']} | {row['trained']:,} of {row['weights']:,} | {row['counted_mib']:,.0f} | "
            f"{row['peak_mib']:,.0f} | {share} | {row['checkpoint_mib']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cell", nargs=2, metavar=("MODEL", "WAY"), help="measure one line and print it (used within)")
    parser.add_argument("--out", type=Path, default=RESULTS / "lora_memory.json")
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(measure(*arguments.cell)))
        return
    made = made_with("python data/lora_memory.py")
    rows = kept_rows(arguments.out, made)
    for shape in arguments.only:
        for way in WAYS:
            if any((row["model"], row["way"]) == (shape, way) for row in rows):
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--cell", shape, way], check=True, capture_output=True, text=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            arguments.out.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n")
            arguments.out.with_suffix(".md").write_text(table(rows, made))
    print(table(rows, made))


def kept_rows(path: Path, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines that an interrupted measurement has left, if it was on this machine with these versions."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    same = all(saved["made"].get(key) == made[key] for key in ("machine", "python", "torch", "transformers"))
    return saved["rows"] if same else []


if __name__ == "__main__":
    main()
