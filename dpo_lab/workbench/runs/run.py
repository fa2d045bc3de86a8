"""A run as a folder: what was requested, what was measured, what the model answers now.

    config.json     command, settings, sources, seed, device, versions, when it began
    metrics.jsonl   one line per logged step, evaluation and round, {"kind", "step", metric: value, …, "seconds"}
    margins.jsonl   the implicit-reward margin of every held-out pair, one line per evaluation
    samples.jsonl   answers before and after
    rounds/         of `workbench.rounds`: each round's answers, verdicts and pairs; judged.jsonl: what an endpoint said
    curves.png, report.html, checkpoints/, model/ with its card, and adapter/ where one was trained

No torch here: looking at runs and comparing them is quick.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_lab.storage.files import (
    Lines,
    append_line,
    flush,
    mend,
    number,
    read_lines,
    to_json,
    write_lines,
    write_whole,
    writing,
)
from dpo_lab.storage.locks import held_alone
from dpo_lab.workbench.runs.provenance import completed, plain_json

if TYPE_CHECKING:
    import numpy as np

    from dpo_lab.loop import Event

logger = logging.getLogger("dpo_lab")

CONFIG, METRICS, MARGINS, SAMPLES = "config.json", "metrics.jsonl", "margins.jsonl", "samples.jsonl"
CURVES, REPORT, CHECKPOINTS, MODEL, ADAPTER = "curves.png", "report.html", "checkpoints", "model", "adapter"
CARD, LOCK = "README.md", ".lock"
_LOCKS = (LOCK, f"{LOCK}-holder")  # of whoever writes to the run
ENDINGS = ("finished", "result")  # kinds of rows that stand after the end of training
# Settings that name places, not what is computed.
PLACES = {"run", "resume", "cache", "tokens", "track", "push_to_hub"}


class Run:
    """A run's folder. `Run.create` begins one, `Run.load` opens one that is there."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.checkpoints = folder / CHECKPOINTS
        self.model_folder = folder / MODEL
        """Where the tuned model lies: what `load_policy` and `from_pretrained` load."""
        self._is_held = False
        self.adapter_folder = folder / ADAPTER
        """Where the adapter alone lies, where one was trained; `model_folder` holds it merged into its base."""

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @classmethod
    def create(cls, folder: str | Path, config: Mapping[str, Any], *, resume: bool = False) -> Run:
        """Begin a run in a new or empty folder, or with `resume` open the one that is to go on.

        config: what the run is: "command" ("train" or "sft"), "settings", and anything else worth recording. Sources,
            seed, device, versions and time are added where they are not given. A resumed run keeps its own.
        """
        folder = Path(folder)
        config = plain_json(dict(config), "config")
        if resume:
            if not (folder / CONFIG).is_file():
                raise ValueError(f"{folder} holds no run to go on with; leave out --resume to begin one there")
            run = cls.load(folder)
            if config.get("command") not in (None, run.config.get("command")):
                raise ValueError(
                    f"{folder} was begun with {run.config.get('command')!r} and cannot go on with "
                    f"{config['command']!r}; use the command it was begun with, or another --run"
                )
            return run
        _check_free(folder)
        run = cls(folder, completed(config))
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with run.held():
                _check_free(folder)  # another process may have begun one in this moment
                write_whole(folder / CONFIG, to_json(run.config, indent=2) + b"\n")
        return run

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it is entered, this object alone writes to the run: OSError where another process holds it.

        `follow` enters it by itself; enter it before where more than that is written.
        """
        if self._is_held:
            yield
            return
        with held_alone(self.folder / LOCK, f"the run {self.folder}"):
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Open the run in `folder`. ValueError explains what is wrong where there is none."""
        folder = Path(folder)
        path = folder / CONFIG
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}; give the folder of a run, such as runs/NAME")
        if not path.is_file():
            raise ValueError(f"{folder} holds no run: {CONFIG} is missing; give the folder that was given as --run")
        try:
            config = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}); restore it, or train again into another folder") from None
        except OSError as error:
            raise OSError(f"{path} cannot be read ({error.strerror}); give yourself permission to read it") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}; restore it")
        if "command" not in config:  # a model's folder has a config.json too
            raise ValueError(
                f"{folder} holds no run: its {CONFIG} has no command; give the folder that was given as --run"
            )
        for name, kind in {"command": str, "settings": dict, "data": dict, "versions": dict}.items():
            if not isinstance(config.get(name, kind()), kind):
                raise ValueError(f"{path} is damaged: its {name} must be of {kind.__name__}, got {config[name]!r:.60}; "
                                 "restore it, or train again into another folder")  # fmt: skip
        return cls(folder, config)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass the events of a training on, each recorded first; the end when its reader goes on, with the model saved.

        Goes on where the record ends: `seconds` counts on, and an evaluation that is already recorded (one that a
        checkpoint preceded) is not written twice. A crash costs at most the line in hand.
        """
        if any(row["kind"] in ENDINGS for row in self.metrics):
            raise ValueError(
                f"{self.folder} holds a run that has ended; call rewind(step) with the checkpoint's step to go on, or "
                "create another run"
            )
        return self._follow(events)

    def _follow(self, events: Iterable[Event]) -> Iterator[Event]:
        with self.held():
            rows, metrics = self._repaired(METRICS), self.folder / METRICS
            self._repaired(MARGINS)
            seconds_before = max((row.get("seconds", 0.0) for row in rows), default=0.0)
            last_step = max((row["step"] for row in rows if row["kind"] == "step"), default=0)
            recorded = {(row["kind"], row["step"]) for row in rows if row["kind"] in ("evaluation", "round")}
            for event in events:
                row = row_of(event)
                if row is None:  # a checkpoint: what it will be resumed with must be on the disk too
                    if metrics.exists():
                        with writing(metrics):
                            flush(metrics)
                elif row["kind"] == "step" and row["step"] <= last_step:
                    raise ValueError(
                        f"{self.folder} already records step {last_step}, got step {row['step']}; call rewind(step) "
                        "with the step that training goes on from, or create another run"
                    )
                elif (row["kind"], row["step"]) not in recorded:
                    if margins := getattr(event, "margins", ()):
                        rounded = [float(f"{margin:.7g}") for margin in margins]  # float32 has no more digits
                        append_line(self.folder / MARGINS, {"step": row["step"], "margins": rounded})
                    row |= {"seconds": round(row["seconds"] + seconds_before, 3)}
                    if row["kind"] in ENDINGS:
                        try:
                            yield event  # the reader saves the model now
                        except GeneratorExit:  # and reads no further
                            if self.model_folder.is_dir():
                                append_line(metrics, row)
                            raise
                        append_line(metrics, row)
                        continue
                    append_line(metrics, row)
                yield event

    def rewind(self, step: int) -> None:
        """Forget everything after `step`, the step of the checkpoint that training goes on from (0: the beginning).

        Samples and results go too: they are a later model's. Call it once the training has accepted the checkpoint.
        """
        metrics = [row for row in self._repaired(METRICS) if row["step"] <= step and row["kind"] not in ENDINGS]
        margins = [row for row in self._repaired(MARGINS) if row["step"] <= step]
        write_lines(self.folder / MARGINS, margins)
        write_lines(self.folder / METRICS, metrics)
        with writing(self.folder):
            (self.folder / SAMPLES).unlink(missing_ok=True)

    def add_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record answers: rows of prompt, before, after, and where known chosen, rejected, reward_before, …"""
        rows = [plain_json(dict(row), "a sample") for row in rows]
        for row in rows:
            if "prompt" not in row:
                raise ValueError(f"a sample needs a prompt, got the fields {', '.join(row) or 'none'}; add one")
        for row in rows:
            append_line(self.folder / SAMPLES, row)

    def add_results(self, results: Mapping[str, float]) -> None:
        """Record what was measured after training, such as {"kl": 3.1, "kl_standard_error": 0.2}."""
        step = max((row["step"] for row in self._repaired(METRICS)), default=0)
        append_line(self.folder / METRICS, {"kind": "result", "step": step} | plain_json(dict(results), "results"))

    def add_facts(self, **facts: Any) -> None:
        """Record what is known only when the data is read, such as `num_examples`, in config.json."""
        if not facts.items() <= self.config.items():
            self.config |= plain_json(facts, "facts")
            write_whole(self.folder / CONFIG, to_json(self.config, indent=2) + b"\n")

    def write_report(self) -> Path:
        """Draw curves.png and write report.html, which needs nothing else to be read. Returns the report's path."""
        from dpo_lab.workbench.plots.curves import curves_pngs, panels_of
        from dpo_lab.workbench.runs.report import render_report

        rows, panels = self.metrics, {}
        if panels_of(rows):
            curves, panels = curves_pngs(rows, title=self.folder.name)
            write_whole(self.folder / CURVES, curves)
        html = render_report(self, panels)
        write_whole(self.folder / REPORT, html.encode())
        return self.folder / REPORT

    def write_card(self) -> list[Path]:
        """Write the model card, README.md, beside the model and the adapter that were saved. Returns its places."""
        from dpo_lab.workbench.runs.card import model_card

        card = model_card(self.folder.resolve().name, self.config, self.metrics).encode()
        places = [folder / CARD for folder in (self.model_folder, self.adapter_folder) if folder.is_dir()]
        for place in places:
            write_whole(place, card)
        return places

    def discard_if_empty(self) -> bool:
        """Remove the folder of a run that measured nothing: after a slip the same folder can be given again."""
        if self.has_metrics:
            return False
        with suppress(OSError):
            for name in (CONFIG, *_LOCKS):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        return True

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_metrics(self) -> bool:
        """Whether anything was measured yet."""
        return (self.folder / METRICS).exists()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl as they stand now."""
        return self._read(METRICS).rows

    @property
    def margins(self) -> dict[int, list[float]]:
        """The margins of the held-out pairs, by the step of the evaluation."""
        return {row["step"]: [number(margin) for margin in row["margins"]] for row in self._read(MARGINS).rows}

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The rows of samples.jsonl."""
        return self._read(SAMPLES).rows

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, such as "loss" or "eval_rewards/margins"; empty where it was not measured."""
        from dpo_lab.workbench.plots.curves import series

        return series(self.metrics, metric)

    def summary(self) -> dict[str, Any]:
        """Where the run stands (step, is_complete, seconds) and the last value of every metric."""
        rows, last = self.metrics, {}
        for row in rows:
            last |= row
        ended = [row for row in rows if row["kind"] == "finished"]
        state = {"step": last.get("step", 0), "is_complete": bool(ended and ended[-1]["is_complete"])}
        return state | {name: value for name, value in last.items() if name not in ("kind", *state)}

    def _read(self, name: str) -> Lines:
        path = self.folder / name
        lines = read_lines(path)
        needed = {
            METRICS: {"kind": str, "step": int}, MARGINS: {"step": int, "margins": list}, SAMPLES: {"prompt": object},
        }  # fmt: skip
        for i, row in enumerate(lines.rows):
            fields = needed[name] | ({"is_complete": bool, "num_steps": int} if row.get("kind") == "finished" else {})
            for field, kind in fields.items():
                if not isinstance(row.get(field), kind):
                    raise ValueError(f"{path}, line {i + 1} must have a {field} ({kind.__name__}); restore the file")
            measured = [value for field, value in row.items() if field != "kind"] if name == METRICS else []
            if odd := [value for value in [*measured, *row.get("margins", [])] if not _is_number(value)]:
                raise ValueError(f"{path}, line {i + 1} holds {odd[0]!r:.40}, which is no number; restore the file")
            if name == METRICS:
                lines.rows[i] = {key: value if key == "kind" else number(value) for key, value in row.items()}
        if lines.torn:
            logger.warning("%s ends in a line that was cut off; it is left out", path)
        return lines

    def _repaired(self, name: str) -> list[dict[str, Any]]:
        """The rows, after a last line that was cut off or not ended has been repaired in the file."""
        lines = self._read(name)
        mend(self.folder / name, lines)
        return lines.rows


def _is_number(value: Any) -> bool:
    is_small = not isinstance(value, int) or abs(value) < 2**63
    return isinstance(number(value), int | float) and is_small


def _check_free(folder: Path) -> None:
    """A run begins in a new folder, or in one that holds nothing but what a process that was killed left."""
    with writing(folder):
        inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG in inside:
        raise ValueError(f"{folder} already holds a run; give another --run, or go on with it by --resume")
    if inside - {f".{CONFIG}.partial", *_LOCKS}:
        raise ValueError(f"{folder} is not empty and holds no run; give --run a new or an empty folder")


def row_of(event: Event) -> dict[str, Any] | None:
    """An event as a row of metrics.jsonl; None for a checkpoint. Panels draw from these rows as well."""
    match type(event).__name__:  # by name, so that torch is not loaded to look at runs
        case "Step" | "Evaluation" as name:
            return {"kind": name.lower(), "step": event.step, **event.metrics, "seconds": event.seconds}  # pyright: ignore
        case "Round":
            numbers = {"round": event.round, "num_rounds": event.num_rounds}  # pyright: ignore
            return {"kind": "round", "step": event.step, **numbers, **event.metrics, "seconds": event.seconds}  # pyright: ignore
        case "Finished":
            state = {"num_steps": event.num_steps, "is_complete": event.is_complete}  # pyright: ignore
            return {"kind": "finished", "step": event.step, **state, "seconds": event.seconds}  # pyright: ignore
        case "Checkpoint":
            return None
        case name:
            raise ValueError(f"a training yields Step, Evaluation, Round, Checkpoint and Finished, got {name}")
