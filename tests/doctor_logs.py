"""The logs in tests/doctor_logs, made by training: each with one thing wrong on purpose, or with nothing wrong.

`python -m tests.doctor_logs` makes them all anew (minutes), with names only those. `CASES` says what is wrong with
each, written down before it was diagnosed. Thresholds of the doctor were set with an eye on the logs that are not
kept out. The others have other seeds, pairs and settings, and were diagnosed once the thresholds stood.
"""

from __future__ import annotations

import copy
import csv
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

FOLDER = Path(__file__).with_name("doctor_logs")
Rows = list[dict[str, Any]]


class Case(NamedTuple):
    """A log: its name in `FOLDER`, the cause that must come first (None: no alarm), and how it is made."""

    name: str
    cause: str | None
    is_kept_out: bool
    make: Callable[[Path], None]


CASES: list[Case] = []


def case(name: str, cause: str | None, *, kept_out: bool = False) -> Callable[[Callable[[Path], None]], None]:
    return lambda make: CASES.append(Case(name, cause, kept_out, make))


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pocket(num: int, seed: int, split: str = "train") -> Rows:
    """Pairs of the embedded set."""
    from dpo_lab import load_preferences

    rows = load_preferences("embedded", split=split).to_list()
    return Random(seed).sample(rows, num)


def words(num: int, seed: int, *, label: str = "good", longest: int = 7) -> Rows:
    """Pairs of made-up words. label "good": the answer with more of good, happy, yes is chosen; "none": at random."""
    from tests.tiny import WORDS

    rng, rows = Random(seed), []
    draw = lambda low: " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, longest)))
    while len(rows) < num:
        one, two = draw(3), draw(3)
        worth = [sum(word in ("good", "happy", "yes") for word in answer.split()) for answer in (one, two)]
        if label == "good" and worth[0] == worth[1]:
            continue
        if label == "good" and worth[0] < worth[1]:
            one, two = two, one
        rows.append({"prompt": f"{draw(2)} ", "chosen": one, "rejected": two})
    return rows


def longer_chosen(rows: Rows) -> Rows:
    """Labels by length alone."""
    size = lambda row, side: len(row[side][-1]["content"].split())
    turn = lambda row: row | {"chosen": row["rejected"], "rejected": row["chosen"]}
    return [row if size(row, "chosen") > size(row, "rejected") else turn(row) for row in rows]


def embedded() -> tuple[Any, Any]:
    from dpo_lab import load_policy

    return load_policy("embedded", device="cpu")


def tiny(seed: int) -> tuple[Any, Any]:
    from tests.conftest import tiny_llama
    from tests.tiny import tiny_tokenizer

    return tiny_llama(seed=seed, initializer_range=0.1), tiny_tokenizer()


def tuned(rows: Rows, side: str, *, steps: int = 20, seed: int = 0) -> Any:
    """The embedded model after SFT on one side of some pairs."""
    from dpo_lab import SFTConfig, train_sft

    model, tokenizer = embedded()
    config = SFTConfig(learning_rate=4e-4, batch_size=16, max_steps=steps, epochs=99, seed=seed, device="cpu")
    list(train_sft(model, tokenizer, [row | {"chosen": row[side]} for row in rows], config))
    return model


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """What the doctor reads of a row, with four digits."""
    from dpo_lab.workbench.doctor.reading import KNOWN

    keeps = lambda name: name.removeprefix("eval_") in KNOWN or name in ("kind", "step", "num_steps", "is_complete")
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in row.items() if keeps(name)}  # fmt: skip


def ours(
    path: Path, start: tuple[Any, Any], rows: Rows, held: Rows | None = None, *, reference: Any = None,
    stop_after: int | None = None, kl: Rows | None = None, samples: Rows | None = None, **knobs: Any,
) -> None:  # fmt: skip
    """A run folder of DPO Lab."""
    from dpo_lab import DPOConfig, train_dpo
    from dpo_lab.loop import Step
    from dpo_lab.sampling import generate
    from dpo_lab.storage.files import spelled
    from dpo_lab.workbench.evaluation import kl_from_reference
    from dpo_lab.workbench.runs import Run

    (policy, tokenizer), base = start, copy.deepcopy(start[0])
    shared = {"beta": 0.1, "batch_size": 8, "learning_rate": 2e-4, "seed": 0, "device": "cpu"}
    config, steps = DPOConfig(**(shared | knobs)), [0]
    run = Run.create(path, {"command": "train", "settings": vars(config)})
    answers = lambda model: generate(model, tokenizer, samples or [], seed=1, max_new_tokens=60) if samples else []
    before = answers(policy)
    stop = None if stop_after is None else (lambda: steps[0] + 1 >= stop_after)
    for event in run.follow(train_dpo(policy, tokenizer, rows, config, held_out=held, reference=reference, stop=stop)):
        steps[0] += isinstance(event, Step)
    if kl:
        estimate = kl_from_reference(policy, base, tokenizer, kl, max_new_tokens=60)
        run.add_results({"kl": estimate.mean})
    told = [{"prompt": "-", "before": b, "after": a} for b, a in zip(before, answers(policy), strict=True)]
    if told:
        run.add_samples(told)
    kept = {name: getattr(config, name) for name in ("loss", "beta", "learning_rate", "max_grad_norm", "batch_size")}
    (path / "config.json").write_text(json.dumps({"command": "train", "settings": kept}) + "\n")
    lines = [json.dumps(spelled(rounded(row)), separators=(",", ":")) for row in run.metrics]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (path / "margins.jsonl").unlink(missing_ok=True)


def trl(
    path: Path, start: tuple[Any, Any], rows: Rows, held: Rows | None = None, *, form: str = "state",
    reference: Any = None, **settings: Any,
) -> None:  # fmt: skip
    """A log of TRL's DPOTrainer, as its trainer state, as LLaMA-Factory logs it, as CSV, or as TensorBoard's events."""
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer

        model, tokenizer = start
        reference = copy.deepcopy(model) if reference is None else reference
        plain = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "beta": 0.1,
                 "disable_tqdm": True, "dataloader_pin_memory": False, "per_device_train_batch_size": 8,
                 "per_device_eval_batch_size": 32, "logging_steps": 1, "max_length": None, "save_strategy": "no",
                 "num_train_epochs": 1, "learning_rate": 2e-4, "warmup_steps": 2, "seed": 0}  # fmt: skip
        if held:
            plain |= {"eval_strategy": "steps", "eval_on_start": True}
        keep = ("prompt", "chosen", "rejected")
        table = lambda some: some and Dataset.from_list([{name: row[name] for name in keep} for row in some])
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(output_dir=folder, **(plain | settings))
            trainer = DPOTrainer(model=model, ref_model=reference, args=args, train_dataset=table(rows),
                                 eval_dataset=table(held), processing_class=tokenizer)  # fmt: skip
            trainer.train()
            state = trainer.state
            if args.save_strategy != "no":  # the log of a run that was killed after its first checkpoint
                first = min(
                    Path(folder).glob("checkpoint-*/trainer_state.json"), key=lambda file: len(file.read_text())
                )
                saved = json.loads(first.read_text())
                state.log_history, state.global_step = saved["log_history"], saved["global_step"]
    write(path, form, [rounded(row) for row in state.log_history], state)


def write(path: Path, form: str, history: Rows, state: Any) -> None:
    """A log in the form of a tool."""
    history = [row for row in history if len(row) > 1]
    slashed = lambda name: f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
    match form:
        case "state":
            path.mkdir()
            whole = {"global_step": state.global_step, "max_steps": state.max_steps, "log_history": history}
            (path / "trainer_state.json").write_text(json.dumps(whole, separators=(",", ":")) + "\n")
        case "factory":
            names = {"loss": "loss", "eval_loss": "eval_loss", "rewards/accuracies": "accuracy", "learning_rate": "lr"}
            lines = [{"current_steps": row["step"], "total_steps": state.max_steps}
                     | {new: row[old] for old, new in names.items() if old in row} for row in history]  # fmt: skip
            path.mkdir()
            (path / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        case "csv":
            lines = [{slashed(name) if name != "step" else "train/global_step": value for name, value in row.items()}
                     for row in history]  # fmt: skip
            with path.open("w", newline="") as text:
                writer = csv.DictWriter(text, ["_step", *dict.fromkeys(name for row in lines for name in row)],
                                        lineterminator="\n")  # fmt: skip
                writer.writeheader()
                writer.writerows({"_step": number} | row for number, row in enumerate(lines))
        case "events":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(path))
            for row in history:
                for name, value in row.items():
                    if name != "step":
                        writer.add_scalar(slashed(name), value, row["step"], walltime=0.0)
            writer.close()
            (made,) = path.glob("events*")
            made.rename(path / "events.out.tfevents.0.tiny")  # without the machine's name


def with_lengths(path: Path, rows: Rows, prompts: Rows, seed: int, **knobs: Any) -> None:
    """CSV of a run whose answers' mean length was logged every few steps, as TRL's online trainers do."""
    from dpo_lab import DPOConfig, train_dpo
    from dpo_lab.loop import Step
    from dpo_lab.sampling import generate

    policy, tokenizer = embedded()
    config = DPOConfig(**({"batch_size": 8, "seed": seed, "device": "cpu"} | knobs))
    lines: Rows = []
    for event in train_dpo(policy, tokenizer, rows, config):
        if isinstance(event, Step):
            row = rounded({"step": event.step} | event.metrics)
            if event.step % 4 == 1:
                answers = generate(policy, tokenizer, prompts, seed=event.step, max_new_tokens=80)
                row["completions/mean_length"] = round(sum(len(str(a).split()) for a in answers) / len(answers), 2)
            lines.append(row)
    with path.open("w", newline="") as text:
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in lines for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


# ── healthy ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@case("healthy-ours", None)
def _(path: Path) -> None:
    ours(path, embedded(), pocket(320, 1), pocket(48, 1, "test"), beta=0.5, learning_rate=3e-4, evaluate_every=10)


@case("healthy-trl", None)
def _(path: Path) -> None:
    trl(
        path,
        embedded(),
        pocket(160, 2),
        pocket(24, 2, "test"),
        learning_rate=2e-4,
        eval_steps=20,
        per_device_train_batch_size=4,
    )


@case("healthy-trl-windows.csv", None, kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(3), words(960, 3), beta=0.3, form="csv", logging_steps=4, learning_rate=2e-3)


@case("healthy-ours-simpo", None, kept_out=True)
def _(path: Path) -> None:
    ours(path, embedded(), pocket(240, 4), pocket(32, 4, "test"), loss="simpo", beta=2.0, learning_rate=1e-4, seed=4,
         evaluate_every=20)  # fmt: skip


@case("healthy-ours-ipo", None, kept_out=True)
def _(path: Path) -> None:
    ours(path, embedded(), pocket(240, 5), pocket(32, 5, "test"), loss="ipo", beta=0.5, seed=5, evaluate_every=10)


@case("healthy-factory", None, kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(6), words(800, 6), words(64, 60), form="factory", learning_rate=2e-3, beta=0.2, eval_steps=25,
        per_device_train_batch_size=16)  # fmt: skip


@case("healthy-events", None, kept_out=True)
def _(path: Path) -> None:
    trl(path, embedded(), pocket(160, 7), pocket(24, 7, "test"), form="events", learning_rate=1.5e-4, beta=0.2,
        eval_steps=20, lr_scheduler_type="cosine", per_device_train_batch_size=4, seed=7)  # fmt: skip


# ── one thing wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


@case("displacement-ours", "displacement")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(240, 11), pocket(32, 11, "test"), beta=0.05, learning_rate=2.5e-3, evaluate_every=10)


@case("displacement-trl.csv", "displacement", kept_out=True)
def _(path: Path) -> None:
    trl(path, embedded(), pocket(160, 13), form="csv", learning_rate=2e-3, beta=0.05, per_device_train_batch_size=4,
        seed=13)  # fmt: skip


@case("stuck-rate", "stuck")
def _(path: Path) -> None:
    trl(path, tiny(14), words(320, 14), learning_rate=1e-8)


@case("stuck-rate-factory", "stuck", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(15), words(240, 15), words(32, 51), form="factory", learning_rate=5e-9, eval_steps=15)


@case("stuck-zero.csv", "stuck", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(16), words(400, 16), form="csv", learning_rate=0.0, logging_steps=2)


@case("stuck-labels", "stuck", kept_out=True)
def _(path: Path) -> None:
    ours(path, tiny(17), words(640, 17, label="none"), words(128, 18, label="none"), learning_rate=1e-3, batch_size=16,
         evaluate_every=10)  # fmt: skip


@case("memorised-trl", "memorised")
def _(path: Path) -> None:
    trl(path, tiny(19), words(24, 19), learning_rate=5e-3, num_train_epochs=16, beta=0.2)


@case("memorised-ours", "memorised", kept_out=True)
def _(path: Path) -> None:
    ours(path, embedded(), pocket(32, 20), learning_rate=3e-4, epochs=14.0, beta=0.3, seed=20)


@case("margins-ours", "margins")
def _(path: Path) -> None:
    ours(path, tiny(21), words(24, 21), learning_rate=6e-3, epochs=80.0, beta=0.3, schedule="constant", log_every=6)


@case("margins-trl.csv", "margins", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(22), words(16, 22), form="csv", learning_rate=5e-3, num_train_epochs=80, beta=0.5, seed=22,
        lr_scheduler_type="constant", logging_steps=4)  # fmt: skip


@case("length-ours", "length")
def _(path: Path) -> None:
    rows, prompts = longer_chosen(pocket(320, 23)), pocket(40, 23, "test")
    ours(path, embedded(), rows, samples=prompts, beta=0.2, learning_rate=8e-4)


@case("length.csv", "length", kept_out=True)
def _(path: Path) -> None:
    with_lengths(path, longer_chosen(pocket(280, 24)), pocket(24, 24, "test"), 24, beta=0.3, learning_rate=8e-4)


@case("rate-ours", "learning_rate")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(320, 25), pocket(32, 25, "test"), learning_rate=5e-3, evaluate_every=20)


@case("rate-trl", "learning_rate", kept_out=True)
def _(path: Path) -> None:
    trl(path, embedded(), pocket(160, 26), learning_rate=4e-3, beta=0.2, per_device_train_batch_size=4, seed=26)


@case("rate-events", "learning_rate", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(27), words(480, 27), words(48, 28), form="events", learning_rate=0.1, eval_steps=20, seed=27)


@case("kl-ours", "kl")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(160, 29), pocket(32, 29, "test"), kl=pocket(32, 29, "test"), beta=0.01,
         learning_rate=4e-3, epochs=4.0, log_every=2, evaluate_every=40)  # fmt: skip


@case("kl-ours-words", "kl", kept_out=True)
def _(path: Path) -> None:
    ours(path, tiny(30), words(400, 30), kl=words(32, 31), beta=0.01, learning_rate=1e-2, epochs=4.0, log_every=4)


@case("reference-trl", "wrong_reference")
def _(path: Path) -> None:
    rows = pocket(480, 32)
    trl(path, embedded(), rows[:140], reference=tuned(rows[160:], "rejected", steps=40), per_device_train_batch_size=4)


@case("reference-ours-stale", "wrong_reference", kept_out=True)
def _(path: Path) -> None:
    rows = pocket(480, 33)
    start = tuned(rows[240:], "chosen", steps=30, seed=33), embedded()[1]
    ours(path, start, rows[:240], pocket(48, 33, "test"), reference=embedded()[0], beta=0.3)


@case("reference-trl-windows.csv", "wrong_reference", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(34), words(480, 34), form="csv", reference=tiny(35)[0], learning_rate=1e-3, logging_steps=3)


@case("overfitting-ours", "overfitting")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(48, 36), pocket(64, 36, "test"), epochs=8.0, beta=0.5, learning_rate=5e-4,
         evaluate_every=8)  # fmt: skip


@case("overfitting-trl", "overfitting", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(37), words(48, 37), words(96, 38), num_train_epochs=10, learning_rate=4e-3, beta=0.3, eval_steps=6,
        logging_steps=2, seed=37)  # fmt: skip


@case("not-finite-trl", "not_finite")
def _(path: Path) -> None:
    trl(path, tiny(39), words(240, 39), learning_rate=1e30, max_grad_norm=0.0, optim="sgd")


@case("not-finite.csv", "not_finite", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(40), words(200, 40), form="csv", learning_rate=1e20, optim="sgd", logging_nan_inf_filter=False)


@case("clipped-ours", "clipped")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(240, 41), max_grad_norm=0.01, learning_rate=2e-4)


@case("clipped-trl", "clipped", kept_out=True)
def _(path: Path) -> None:
    trl(path, embedded(), pocket(120, 42), beta=2.0, optim="sgd", learning_rate=2e-3, per_device_train_batch_size=4)


@case("short-ours", "too_short")
def _(path: Path) -> None:
    ours(path, embedded(), pocket(480, 43), pocket(24, 43, "test"), stop_after=24)


@case("short-trl-checkpoint", "too_short", kept_out=True)
def _(path: Path) -> None:
    trl(path, tiny(44), words(480, 44), save_strategy="steps", save_steps=24, max_steps=60, learning_rate=1e-3)


@case("short-few.csv", "too_short", kept_out=True)
def _(path: Path) -> None:
    trl(path, embedded(), pocket(48, 45), form="csv", learning_rate=1e-4, per_device_train_batch_size=4, seed=45)


def main(names: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for one in CASES:
        if not names or one.name in names:
            path = FOLDER / one.name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            one.make(path)
            print(one.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
