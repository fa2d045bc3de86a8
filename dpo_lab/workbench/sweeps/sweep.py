"""A sweep as a stream of events: take a trial, train, look, prune or finish; until the budget is spent.

    for event in run_sweep(SweepSettings(beta="0.05:1:log", limit=400), "runs/first-sweep"):
        ...

Several processes may run the same folder at once. Nothing is computed until the stream is read; it prints nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Evaluation, Finished, Step, num_steps
from dpo_lab.losses.table import loss_of
from dpo_lab.models.inside import disable_dropout
from dpo_lab.models.loading import load_policy
from dpo_lab.preferences.reading import read_pairs, split_rows
from dpo_lab.preferences.token_cache import reading
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.preferences.tokens import encode_prompt, tokenize_pairs
from dpo_lab.reference import ReferenceCache
from dpo_lab.sampling import generate
from dpo_lab.training import train_dpo
from dpo_lab.workbench.runs.run import Run
from dpo_lab.workbench.runs.settings import option
from dpo_lab.workbench.sweeps.settings import SweepSettings
from dpo_lab.workbench.sweeps.space import Space, Value
from dpo_lab.workbench.sweeps.study import Row, StoredStudy, Trial, as_begun, best_row
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.schema import Conversation


@dataclass(frozen=True)
class Prepared:
    """Model and data are read, and the reference's log-probs are there for all trials."""

    num_pairs: int
    num_validation: int
    num_scored: int  # pairs that the reference was run on now; the others were in the cache


@dataclass(frozen=True)
class TrialBegan:
    number: int
    num_ended: int  # trials of the study that ended before
    num_trials: int  # the budget
    values: dict[str, Value]
    folder: str


@dataclass(frozen=True)
class TrialStep:
    number: int
    step: int
    num_steps: int
    seconds: float  # of this trial


@dataclass(frozen=True)
class TrialLook:
    """The objective in the middle of a trial, or at its end."""

    number: int
    look: int
    num_looks: int
    value: float


@dataclass(frozen=True)
class TrialEnded:
    number: int
    state: str  # complete, pruned or failed
    value: float | None
    why: str = ""


@dataclass(frozen=True)
class SweepEnded:
    """The last event. `is_complete` is False when a stop was requested before its budget was spent."""

    is_complete: bool
    rows: list[Row] = field(repr=False)
    best: Row | None


SweepEvent = Prepared | TrialBegan | TrialStep | TrialLook | TrialEnded | SweepEnded


def run_sweep(
    settings: SweepSettings,
    folder: str | Path,
    *,
    cache: str | os.PathLike[str] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Iterator[SweepEvent]:
    """Begin the sweep in `folder`, or join the one that is there, and work on it until its budget is spent.

    cache: where the reference's log-probs are stored, as for `ReferenceCache`. All trials share it, so the reference is
        scored once.
    stop: called after every step; when it returns True, the trial in hand is given back and the stream ends.
    Raises ValueError for a space that cannot be, before anything is read.
    """
    settings = as_begun(Path(folder), settings)
    check_losses(settings, settings.check())
    study = StoredStudy.begin(folder, settings)
    return _events(study, cache, stop or (lambda: False))


def check_losses(settings: SweepSettings, space: Space) -> None:
    """Every loss of the space must have every knob that the sweep turns, in the range that it is turned."""
    knobs = ("loss", "beta", "label_smoothing", "divergence")
    searched = {name: dimension for name, dimension in space.searched.items() if name in knobs}
    for values in Space(searched, {name: value for name, value in space.fixed.items() if name in knobs}).corners():
        loss_of(settings.trial_config(values))


def train_line(values: dict[str, Value], settings: SweepSettings) -> str:
    """The line of `dpo-lab train` that trains with these values, at four digits, on the sweep's pairs, validation
    included."""
    names = ("seed", "max_length", "score_turns", "precision", "device", "model", "pairs", "split", "limit",
             "on_bad_row", "columns", "pairing", "trust_remote_code")  # fmt: skip
    default = SweepSettings()
    own = [(name, getattr(settings, name)) for name in names
           if getattr(settings, name) != getattr(default, name) or _settles_otherwise(name, settings)]  # fmt: skip
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}
    changed = [(name, value) for name, value in rounded.items() if value != getattr(DPOConfig(), name)]
    return " ".join(["dpo-lab train", *(option(name, value) for name, value in changed + own)])


def _settles_otherwise(name: str, settings: SweepSettings) -> bool:
    """Whether a command without this setting may take another: `--precision auto`."""
    return name == "precision" and settings.model != "embedded"


def sweep_line(settings: SweepSettings, folder: str | Path | None = None) -> str:
    """The line of `dpo-lab sweep` that begins this sweep."""
    default = vars(SweepSettings())
    changed = {name: value for name, value in vars(settings).items()
               if value != default[name] or _settles_otherwise(name, settings)}  # fmt: skip
    if folder is not None:
        changed["study"] = folder
    return " ".join(["dpo-lab sweep", *(option(name, value) for name, value in changed.items())])


@dataclass
class _Data:
    """What all trials share."""

    tokens: TokenData
    validation: TokenData
    conversations: list[Conversation]  # judged prompts; none where nothing is judged
    prompts: list[Sequence[int]]

    @classmethod
    def read(cls, settings: SweepSettings, tokenizer: Any, *, needs_judge: bool) -> _Data:
        split = settings.split or ("train" if settings.pairs == "embedded" else None)
        rows, _ = read_pairs(
            settings.pairs, split=split, limit=settings.limit, seed=settings.seed, **reading(settings, settings.pairs)
        )
        train, held = split_rows(list(rows), settings.validation, settings.seed)
        how = {name: getattr(settings, name) for name in ("max_length", "score_turns", "on_bad_row")}
        tokens, validation = (tokenize_pairs(part, tokenizer, **how)[0] for part in (train, held))
        if not len(tokens) or not len(validation):
            raise ValueError(
                f"{len(train)} pairs to train on and {len(held)} to compare on are too few; raise limit, or change "
                f"validation, which is {settings.validation}"
            )
        judged = []
        if needs_judge:
            judged = [row for row in held if "task" in row and "job" in row][: settings.judged_prompts]
            if not judged:
                raise ValueError(
                    f"the objective {settings.objective} needs prompts that the judge knows, and the rows of "
                    f"{settings.pairs} have no job and task; choose by accuracy, or take pairs of the pocket world"
                )
        return cls(tokens, validation, [Conversation.from_row(row) for row in judged],
                   [encode_prompt(row, tokenizer) for row in judged])  # fmt: skip


def _events(study: StoredStudy, cache: Any, stop: Callable[[], bool]) -> Iterator[SweepEvent]:
    settings = study.settings
    load = lambda: load_policy(settings.model, device=settings.device, trust_remote_code=settings.trust_remote_code)
    with ReferenceCache(cache) as store, study.worker():
        model, tokenizer = load()
        data = _Data.read(settings, tokenizer, needs_judge=study.objective.needs_judge)
        yield Prepared(len(data.tokens), len(data.validation), _score_reference(study, model, data, store))
        while not stop() and (trial := study.take()) is not None:
            policy = model if model is not None else load()[0]
            model = None  # the next trial begins with a fresh one
            yield from _run_trial(trial, policy, tokenizer, data, store, stop)
    rows = study.rows()
    yield SweepEnded(
        is_complete=not stop() or _num_ended(rows) >= settings.num_trials(study.space), rows=rows,
        best=best_row(rows, is_larger_better=study.objective.is_larger_better),
    )  # fmt: skip


def _num_ended(rows: list[Row]) -> int:
    return sum(row["state"] in ("complete", "pruned") for row in rows)


def _score_reference(study: StoredStudy, model: Any, data: _Data, store: ReferenceCache) -> int:
    """Fill the cache before the first trial. Processes that begin together wait for each other: one scores for all."""
    names = study.space.searched.get("loss")
    losses = names.values if names is not None else (study.space.fixed.get("loss", "dpo"),)  # pyright: ignore
    if not any(loss_of(DPOConfig(loss=str(name)))[0].needs_reference for name in losses):
        return 0
    disable_dropout(model)
    with study.turn("reference", patience=86_400):
        return sum(
            store.logps(model, part, precision=study.settings.precision).num_computed
            for part in (data.tokens, data.validation)
        )


def _run_trial(
    trial: Trial, model: Any, tokenizer: Any, data: _Data, store: ReferenceCache, stop: Callable[[], bool]
) -> Iterator[SweepEvent]:
    """One trial from its first step to its verdict."""
    study, settings = trial.study, trial.study.settings
    num_ended, num_trials = _num_ended(study.rows()), settings.num_trials(study.space)
    config = _looking(settings, trial.values, len(data.tokens))
    is_pruned, value, is_complete = False, math.nan, False
    try:
        yield TrialBegan(trial.number, num_ended, num_trials, dict(trial.searched), str(trial.folder))
        run = Run.create(trial.folder, {"command": "train", "settings": _recorded(config, settings)})
        events = train_dpo(
            model, tokenizer, data.tokens, config, held_out=data.validation, cache=store,
            stop=lambda: is_pruned or stop(),
        )  # fmt: skip
        length = 1
        for event in run.follow(events):
            if isinstance(event, Step):
                length = event.num_steps
                yield TrialStep(trial.number, event.step, length, event.seconds)
            elif isinstance(event, Evaluation) and event.step and not is_pruned:
                value = _measure(study, event, model, tokenizer, data)
                look = max(1, round(settings.evaluations * event.step / length))
                is_below = trial.report(look, value)
                yield TrialLook(trial.number, look, settings.evaluations, value)
                is_pruned = settings.prune and is_below and event.step < length
            elif isinstance(event, Finished):
                is_complete = event.is_complete
    except ArithmeticError as error:  # the loss or the model's probabilities are no numbers: a verdict on the values
        yield _ended(trial, "pruned", why=f"diverged: {error}")
        return
    except (Exception, GeneratorExit, KeyboardInterrupt) as error:
        if isinstance(error, Exception):
            trial.end("failed", why=f"{type(error).__name__}: {error}")
        else:
            trial.give_back("stopped")
        raise
    if is_complete:
        if study.objective.needs_judge:
            run.add_results({f"true/{settings.objective}": value})
        yield _ended(trial, "complete", value)
    elif is_pruned:
        yield _ended(trial, "pruned", why="below the median of the earlier trials")
    else:
        trial.give_back("stopped")
        yield TrialEnded(trial.number, "failed", None, "stopped")


def _ended(trial: Trial, state: str, value: float | None = None, why: str = "") -> TrialEnded:
    trial.end(state, value, why)
    return TrialEnded(trial.number, state, value, why)


def _measure(study: StoredStudy, event: Evaluation, model: Any, tokenizer: Any, data: _Data) -> float:
    """The objective, from the evaluation or from answers."""
    if not study.objective.needs_judge:
        return event.metrics[study.objective.metric]
    settings = study.settings
    answers = generate(
        model, tokenizer, data.prompts, max_new_tokens=settings.max_new_tokens, seed=settings.seed, batch_size=128
    )
    return quality(data.conversations, [str(answer) for answer in answers])[study.objective.metric]


def _looking(settings: SweepSettings, values: dict[str, Value], num_pairs: int) -> DPOConfig:
    """The trial's configuration, with its looks evenly over its steps."""
    config = settings.trial_config(values)
    every = math.ceil(num_steps(config, math.ceil(num_pairs / config.batch_size)) / settings.evaluations)
    return settings.trial_config(values, evaluate_every=max(1, every))


def _recorded(config: DPOConfig, settings: SweepSettings) -> dict[str, Any]:
    """The settings that a run folder records."""
    sources = {name: getattr(settings, name) for name in ("model", "pairs", "split", "limit", "validation")}
    return {entry.name: asdict(config)[entry.name] for entry in fields(config)} | sources
