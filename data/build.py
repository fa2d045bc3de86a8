"""Rebuild the embedded data and model from seeds: `python data/build.py` runs every stage, `--help` lists them.

texts      conversations with answers of mixed quality for SFT, byte for byte the same everywhere
tokenizer  byte-pair encoding trained on those texts
model      a small Llama, trained on those answers (the long stage; it resumes where it was stopped)
measure    the model's true quality at temperature 1 on held-out prompts
pairs      its own answers, several per prompt, labelled by the judge with Bradley–Terry noise
manifest   SHA-256 sums, sizes, settings and measured quality of what is embedded
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from cards import blocks, fill

from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import JOBS
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.schema import Split

HERE = Path(__file__).resolve().parent
MODEL, PAIRS = Path("models", "pocket-sft"), Path("pairs")
STAGES = ("texts", "tokenizer", "model", "measure", "pairs", "manifest")


@dataclass(frozen=True)
class Settings:
    """All that decides what is built."""

    seed: int = 0
    num_texts: int = 400_000
    vocabulary: int = corpus.VOCABULARY
    width: int = 160
    layers: int = 4
    heads: int = 5
    batch_size: int = 64
    steps: int = 10_000
    learning_rate: float = 2e-3
    warmup: float = 0.03
    train_pairs: int = 10_240
    test_pairs: int = 400
    answers_per_prompt: int = 4
    temperature: float = 0.3
    """Of the labels: σ(difference of true rewards / temperature) is the chance of the right one."""


def build_texts(settings: Settings, work: Path, out: Path) -> None:
    corpus.write_texts(work / "sft.jsonl.gz", settings.num_texts, seed=settings.seed)


def build_tokenizer(settings: Settings, work: Path, out: Path) -> None:
    rows = corpus.read_rows(work / "sft.jsonl.gz")
    corpus.train_tokenizer(corpus.training_texts(rows), settings.vocabulary).save_pretrained(work / "tokenizer")


def build_model(settings: Settings, work: Path, out: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from dpo_lab import SFTConfig, train_sft
    from dpo_lab.loop import Step
    from dpo_lab.models import num_parameters, save_policy
    from dpo_lab.preferences import TokenData, tokenize_examples
    from dpo_lab.storage.checkpoints import latest_checkpoint

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=settings.width * 8 // 3 // 16 * 16,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads, max_position_embeddings=corpus.CONTEXT,
        tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    tokens = work / "tokens"
    if not tokens.exists():
        tokenize_examples(list(corpus.read_rows(work / "sft.jsonl.gz")), tokenizer, max_length=corpus.CONTEXT)[0].save(
            tokens
        )
    config = SFTConfig(
        epochs=settings.steps * settings.batch_size / settings.num_texts, max_steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, schedule="cosine", warmup=settings.warmup, adam_beta2=0.98,
        max_length=corpus.CONTEXT, seed=settings.seed, log_every=20, checkpoint_every=250, keep_checkpoints=1,
        layout="separate",  # one answer per prompt: there is nothing to share, and few long calls beat many short ones
    )  # fmt: skip
    checkpoints = work / "checkpoints"
    resume = latest_checkpoint(checkpoints) if checkpoints.is_dir() else None
    print(f"{num_parameters(model):,} parameters, {settings.steps} steps of {settings.batch_size}", flush=True)
    events = train_sft(model, tokenizer, TokenData.load(tokens), config, checkpoints=checkpoints, resume=resume)
    for event in events:
        if isinstance(event, Step) and event.step % 100 == 0:
            print(f"step {event.step}: loss {event.metrics['loss']:.3f} after {event.seconds:.0f} s", flush=True)
    save_policy(model, tokenizer, out / MODEL)


def build_measure(settings: Settings, work: Path, out: Path) -> dict[str, Any]:
    """Success, well-formedness and length on 400 held-out prompts, one answer each at temperature 1."""
    from dpo_lab import generate, load_policy

    model, tokenizer = load_policy(out / MODEL)
    report: dict[str, Any] = {}
    for split in get_args(Split):
        conversations = corpus.prompts(400, split=split, seed=settings.seed + 1000)
        answers = generate(
            model, tokenizer, [c.row() for c in conversations], max_new_tokens=80, seed=settings.seed, batch_size=128
        )
        found = quality(conversations, [str(answer) for answer in answers])
        report[split] = {name: round(value, 4) for name, value in found.items()}
        print(split, json.dumps(report[split]))
    (work / "quality.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def build_pairs(settings: Settings, work: Path, out: Path) -> None:
    from dpo_lab import load_policy

    model, tokenizer = load_policy(out / MODEL)
    (out / PAIRS).mkdir(parents=True, exist_ok=True)
    for split, num in zip(get_args(Split), (settings.train_pairs, settings.test_pairs), strict=True):
        build_pairs_of(model, tokenizer, split, num, settings, out / PAIRS / f"{split}.jsonl.gz")


def build_pairs_of(model: Any, tokenizer: Any, split: Split, num: int, settings: Settings, path: Path) -> None:
    """`num` pairs of one split from the model's own answers."""
    from dpo_lab import generate

    # A few prompts give no pair, since all their answers are worth the same.
    conversations = corpus.prompts(num * 5 // 4, split=split, seed=settings.seed + 2000)
    answers = generate(
        model, tokenizer, [c.row() for c in conversations], max_new_tokens=80,
        num_samples=settings.answers_per_prompt, seed=settings.seed + 1, batch_size=1024,
    )  # fmt: skip
    several = [[one] if isinstance(one, str) else one for one in answers]
    rows, without = corpus.pair_answers(conversations, several, temperature=settings.temperature, seed=settings.seed)
    if not rows:
        raise SystemExit(f"no {split} pair: all answers of the model are worth the same; train it for longer")
    corpus.write_rows(path, rows[:num])
    wrong = statistics.mean(row["reward_chosen"] < row["reward_rejected"] for row in rows[:num])
    print(f"{split}: {len(rows[:num])} pairs, {wrong:.1%} labelled the wrong way; {without} prompts gave none")


def build_manifest(settings: Settings, work: Path, out: Path) -> None:
    """Sums, sizes, settings and quality; the same numbers go into the marked blocks of the cards."""
    texts, report = work / "sft.jsonl.gz", work / "quality.json"
    for path, stage in ((texts, "texts"), (report, "measure")):
        if not path.exists():
            raise SystemExit(f"{path} is missing; run the stage {stage} first")
    pairs = {split: list(corpus.read_rows(out / PAIRS / f"{split}.jsonl.gz")) for split in get_args(Split)}
    files = sorted(path for folder in (MODEL, PAIRS) for path in (out / folder).rglob("*") if path.is_file())
    weights = out / MODEL / "model.safetensors"
    seen = prompts_seen(texts, pairs)
    manifest = {
        "settings": asdict(settings),
        "made_with": {"python": platform.python_version(), "cores": os.cpu_count()}
        | {name: version(name) for name in ("tokenizers", "torch", "transformers")},
        "texts": content(texts) | {"first_thousand_sha256": first_thousand(texts)},
        "model": json.loads((out / MODEL / "config.json").read_text()) | {"parameters": num_weights(weights)},
        "pairs": {split: about(rows) | {"prompts_seen": seen[split]} for split, rows in pairs.items()},
        "quality": json.loads(report.read_text()),
        "files": {path.relative_to(out).as_posix(): on_disk(path) for path in files},
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    cards = out / "README.md"
    if cards.exists():
        cards.write_text(fill(cards.read_text(), blocks(manifest, pairs["test"][0])))


def on_disk(path: Path) -> dict[str, Any]:
    found = {"bytes": path.stat().st_size, "sha256": sha256([path.read_bytes()])}
    return found | content(path) if path.suffix == ".gz" else found


def content(path: Path) -> dict[str, Any]:
    """Rows and sum of what a gzipped file holds: its own bytes differ between versions of zlib."""
    with gzip.open(path) as lines:
        held = list(lines)
    return {"rows": len(held), "content_sha256": sha256(held)}


def first_thousand(path: Path) -> str:
    """Sum of the first thousand lines, which can be written again in a second."""
    with gzip.open(path) as lines:
        return sha256(islice(lines, 1000))


def prompts_seen(texts: Path, pairs: dict[Split, list[dict[str, Any]]]) -> dict[Split, float]:
    """Share of each split's pairs whose prompt, tools included, stands word for word among the SFT texts."""
    key = lambda row: json.dumps([row["prompt"], row.get("tools")])
    wanted = {key(row) for rows in pairs.values() for row in rows}
    met = wanted.intersection(map(key, corpus.read_rows(texts)))
    return {split: round(statistics.mean(key(row) in met for row in rows), 4) for split, rows in pairs.items()}


def sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def num_weights(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "np") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def about(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pairs, share with the worse answer in front, that share as Bradley–Terry expects it, mean rewards, each job."""
    gaps = [abs(row["reward_chosen"] - row["reward_rejected"]) for row in rows]
    wrong = lambda temperature: statistics.mean(1 / (1 + math.exp(gap / temperature)) for gap in gaps)
    return {
        "pairs": len(rows),
        "labelled_wrong": round(statistics.mean(row["reward_chosen"] < row["reward_rejected"] for row in rows), 4),
        "wrong_at": {f"{temperature:g}": round(wrong(temperature), 4) for temperature in (0.1, 0.3, 1, 3)},
        "reward_chosen": round(statistics.mean(row["reward_chosen"] for row in rows), 4),
        "reward_rejected": round(statistics.mean(row["reward_rejected"] for row in rows), 4),
    } | {job: sum(row["job"] == job for row in rows) for job in JOBS}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "stages", nargs="*", choices=[*STAGES, []], metavar="stage", help=f"some of {', '.join(STAGES)}"
    )
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / "build" / "pocket", help="folder for intermediate files"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder for what is embedded")
    defaults = Settings()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")
    chosen = vars(parser.parse_args(argv))
    stages, work, out = chosen.pop("stages") or list(STAGES), chosen.pop("work"), chosen.pop("out")
    settings = Settings(**chosen)
    work.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        start = time.monotonic()
        getattr(sys.modules[__name__], f"build_{stage}")(settings, work, out)
        print(f"{stage} took {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
