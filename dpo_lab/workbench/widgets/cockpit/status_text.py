"""A training in words and numbers: how far it is, how long it takes, what it left. No widgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_lab.loop import Checkpoint, Evaluation, Event, Finished, Step
from dpo_lab.workbench.recipes.session import Answers, Prepared
from dpo_lab.workbench.runs.report import verdict
from dpo_lab.workbench.runs.run import CONFIG, Run

RunEvent = Event | Prepared | Answers


class Progress:
    """How far a run is: a share of the way, and words."""

    def __init__(self) -> None:
        self.share: float | None = None  # None where nobody knows
        self.words = "starting"
        self.first: Step | None = None
        self.last: Step | None = None

    def during(self, what: str, done: int, total: int) -> None:
        """Something that takes a while; `total` 0 where its length is not known."""
        if self.last is not None:  # within the training, the share of its steps stays
            self.words = f"{step_words(self.last, self.first)}; {what}"
        else:
            self.share = done / total if total else None
            self.words = f"{what} {done:,} of {total:,}" if total else what

    def after(self, event: RunEvent) -> None:
        """An event of the stream."""
        match event:
            case Prepared():
                self.share, self.words = 0.0, prepared_words(event)
            case Step():
                self.first, self.last = self.first or event, event
                self.share, self.words = event.step / event.num_steps, step_words(event, self.first)
            case Finished():
                self.share = event.step / event.num_steps if event.num_steps else 0.0
                self.words = f"step {event.step} of {event.num_steps}"
            case Evaluation() | Checkpoint() | Answers():
                pass

    def end(self) -> None:
        """Nothing goes on any more."""
        self.share = self.share or 0.0
        self.words = step_words(self.last) if self.last else "no step was taken"


def prepared_words(event: Prepared) -> str:
    """What a run begins with, and what the cache spared."""
    cached = event.num_pairs + event.num_held_out - event.num_scored
    reference = (
        f"{event.num_scored:,} pairs scored, {cached:,} found in the cache"
        if event.num_scored
        else "all found in the cache or not needed, none scored"
    )
    return f"{event.num_pairs:,} pairs to train on, {event.num_held_out:,} held out; reference: {reference}"


def step_words(event: Step, first: Step | None = None) -> str:
    """One line on a step: where it stands, what was measured, how long the rest takes."""
    parts = [f"step {event.step} of {event.num_steps}"]
    for name, word, form in (
        ("loss", "loss", ".4f"), ("rewards/margins", "margin", "+.3f"), ("rewards/accuracies", "accuracy", ".2f"),
    ):  # fmt: skip
        if name in event.metrics:
            parts.append(f"{word} {event.metrics[name]:{form}}")
    left = seconds_left(event, first)
    if left is not None and event.step < event.num_steps:
        parts.append(f"about {in_words(left)} left")
    return ", ".join(parts)


def seconds_left(event: Step, first: Step | None) -> float | None:
    """Seconds to the last step at the pace since the first one reported; None before there is a pace."""
    if first is None or event.step <= first.step:
        return None
    return (event.num_steps - event.step) * (event.seconds - first.seconds) / (event.step - first.step)


def in_words(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ending(run: Run) -> str:
    """What became of a run that is over, in a sentence."""
    last = run.summary()
    state = "complete" if last["is_complete"] else "stopped"
    steps = f"{last['step']} of {last.get('num_steps', '?')} steps in {in_words(last.get('seconds', 0.0))}"
    held_out = [
        f"{word} {last[name]:{form}}"
        for name, word, form in (
            ("eval_rewards/accuracies", "accuracy", ".3f"), ("eval_rewards/margins", "margin", "+.3f"),
            ("eval_true_reward", "true reward", "+.2f"),
        )
        if name in last
    ]  # fmt: skip
    measured = f" Held out, when last looked at: {', '.join(held_out)}. {verdict(run.samples)}" if held_out else ""
    return f"{run.folder.name}: {state}, {steps}.{measured} Model, curves and report are in {run.folder}."


def saved_runs(folder: str | Path) -> tuple[list[Run], list[str]]:
    """The runs in a folder, oldest first, and a complaint for each that cannot be read."""
    runs, complaints = [], []
    for path in sorted(Path(folder).glob(f"*/{CONFIG}"), key=lambda path: (path.stat().st_mtime_ns, path)):
        try:
            run = Run.load(path.parent)
            run.summary()
        except (ValueError, OSError) as error:
            complaints.append(str(error))
        else:
            runs.append(run)
    return runs, complaints


def samples_so_far(prompts: Sequence[str], first: Answers, last: Answers) -> list[dict[str, Any]]:
    """Rows as in samples.jsonl while a run goes on: what the model said at the first evaluation, and at the last."""
    return [
        {"prompt": prompt, "before": first.texts[i], "after": last.texts[i], "after_step": last.step,
         "reward_before": first.rewards[i], "reward_after": last.rewards[i]}
        for i, prompt in enumerate(prompts)
    ]  # fmt: skip


def sample_columns(sample: Mapping[str, Any]) -> dict[str, tuple[str | None, float | None]]:
    """A row of samples.jsonl as columns of (text, true reward): before, after, and the pair's own answers."""
    after = f"after {sample['after_step']} steps" if "after_step" in sample else "after"
    columns: dict[str, tuple[str | None, float | None]] = {
        "before": (sample.get("before"), sample.get("reward_before")),
        after: (sample.get("after"), sample.get("reward_after")),
    }
    return columns | {f"the pair's {side}": (sample[side], None) for side in ("chosen", "rejected") if side in sample}
