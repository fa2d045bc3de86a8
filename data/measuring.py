"""What the measuring scripts of this folder share: answers judged, KL, a training drained, results written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from dpo_lab import generate, load_policy
from dpo_lab.loop import Event, Step
from dpo_lab.preferences import encode_prompt, render_prompt
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.worlds.pocket import Conversation
from dpo_lab.worlds.pocket.quality import quality

RESULTS = Path(__file__).resolve().parent / "results"
VALIDATION_SEED = 77_000
MAX_NEW_TOKENS = 80


def answer(model: Any, tokenizer: Any, conversations: list[Conversation], seed: int) -> list[str]:
    """One answer each at temperature 1."""
    prompts = [render_prompt(c.row(), tokenizer) for c in conversations]
    texts = generate(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, seed=seed, batch_size=128)
    return [str(text) for text in texts]


def true_quality(model: Any, tokenizer: Any, conversations: list[Conversation], seed: int) -> dict[str, float]:
    return quality(conversations, answer(model, tokenizer, conversations, seed))


def kl(model: Any, tokenizer: Any, conversations: list[Conversation], seed: int) -> dict[str, float]:
    """KL from the embedded model per answer, in nats, on 128 prompts."""
    reference, _ = load_policy("embedded")
    ids = [encode_prompt(c.row(), tokenizer) for c in conversations[:128]]
    answers = generate_ids(model, tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    estimate = kl_of_samples(model, reference, ids, [[one.ids for one in row] for row in answers])
    return {"kl": estimate.mean, "kl_standard_error": estimate.standard_error}


def trained(events: Any) -> tuple[float, Event]:
    """Drain a training; its seconds and its last step."""
    began, last = time.perf_counter(), None
    for event in events:
        if isinstance(event, Step):
            last = event
    assert last is not None
    return time.perf_counter() - began, last


def made_with(command: str) -> dict[str, Any]:
    """What a result must carry to be read later: commit, machine, versions, command."""
    try:
        answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        commit = answer.stdout.strip() or "unknown"
    except OSError:  # a machine without git still measures
        commit = "unknown"
    return {
        "commit": commit,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": command,
    }


def keep(name: str, title: str, lead: str, names: list[str], rows: list[dict[str, Any]],
         conversations: list[Conversation], *, command: str, raw: Any = None, **more: Any) -> None:  # fmt: skip
    """Write data/results/NAME.json and NAME.md; `more` says further how the rows were made."""
    RESULTS.mkdir(exist_ok=True)
    made = made_with(command) | {"prompts": len(conversations)} | more
    (RESULTS / f"{name}.json").write_text(json.dumps({"made": made, "rows": raw or rows}, indent=1) + "\n")
    cell = lambda value: f"{value:.3g}" if isinstance(value, float) else str(value)
    facts = [f"- {key}: {value}" for key, value in made.items() if not isinstance(value, list | dict)]
    lines = [f"# {title}", "", lead, "", *facts, "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in names) + " |" for row in rows]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
