"""Optuna's study in a folder that several processes share, and that survives the death of any of them.

    sweep.json      the settings that the sweep was begun with
    study.sqlite    the trials, as Optuna stores them (`optuna.load_study` opens it too)
    trials/0007/    each trial's run folder
    locks/          one file per living process, and one that lets them take trials in turn

A trial is taken under a lock, so that no two processes take the same and together they take as many as were requested.
A process holds a lock of its own as long as it lives. Where a trial is running and its process is not, the trial is
marked as failed, and the same values are tried once more.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np

from dpo_lab.storage.files import to_json, write_whole, writing
from dpo_lab.storage.locks import is_held, locked
from dpo_lab.workbench.runs.settings import as_begun as settings_as_begun
from dpo_lab.workbench.runs.settings import is_of
from dpo_lab.workbench.sweeps.settings import OBJECTIVES, WATCHING, SweepSettings
from dpo_lab.workbench.sweeps.space import Choice, Space, Value

if TYPE_CHECKING:
    import optuna

STUDY_NAME = "dpo-lab"
SETTINGS, STORE, TRIALS, LOCKS = "sweep.json", "study.sqlite", "trials", "locks"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
RETRIES = 1
"""How often the values of a trial whose process died are tried again: it may be they that killed it."""

Row = dict[str, Any]


def load_optuna() -> Any:
    """Optuna, or what to do where it is missing."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ModuleNotFoundError(
            "sweeps need Optuna, which is not installed; `pip install 'dpo-lab[sweep]'` brings it along", name="optuna"
        ) from None
    return optuna


class StoredStudy:
    """A study in a folder. `StoredStudy.begin` makes one or joins one that is there, `StoredStudy.load` opens one."""

    def __init__(self, folder: Path, settings: SweepSettings) -> None:
        self.folder, self.settings = folder, settings
        self.space: Space = settings.check()
        self.optuna = load_optuna()
        self._worker = ""

    @classmethod
    def begin(cls, folder: str | Path, settings: SweepSettings) -> StoredStudy:
        """Make the folder and the study in it, or join the study that is there."""
        folder = Path(folder)
        settings = as_begun(folder, settings)
        study = cls(folder, settings)
        if folder.is_dir() and not (folder / SETTINGS).exists() and not (folder / LOCKS).exists() \
                and any(folder.iterdir()):  # fmt: skip
            raise ValueError(f"{folder} is not empty and holds no sweep; give --study a new or an empty folder")
        with writing(folder, "free space or permissions there, or name another folder with --study"):
            (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with study.turn():
            if not (folder / SETTINGS).exists():
                with study._opened(create=True) as stored:
                    if settings.sampler == "grid":  # a process that died here may have put down some of the cells
                        there = [trial.system_attrs.get("fixed_params") for trial in stored.get_trials(deepcopy=False)]
                        for cell in study.space.grid():
                            if cell not in there:
                                stored.enqueue_trial(cell)
                write_whole(folder / SETTINGS, to_json(asdict(settings), indent=2) + b"\n")
            else:
                as_begun(folder, settings)  # another process has just begun it
        return study

    @classmethod
    def load(cls, folder: str | Path) -> StoredStudy:
        """Open a study to look at it."""
        return cls(Path(folder), read_settings(Path(folder)))

    @property
    def objective(self) -> Any:
        """What the study chooses by: a row of `OBJECTIVES`."""
        return OBJECTIVES[self.settings.objective]

    @contextmanager
    def worker(self) -> Iterator[None]:
        """While it is entered, this process may take trials, and counts as alive."""
        self._worker = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path = self._lock_of(self._worker)
        try:
            with locked(path):
                yield
        finally:
            with suppress(OSError):
                path.unlink()

    def turn(self, name: str = "turn", *, patience: float = 600.0) -> Any:
        """The lock under which processes take turns."""
        return locked(self.folder / LOCKS / name, patience=patience)

    # ── trials ───────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self) -> Trial | None:
        """The next trial for this process; None where the budget is spent. First the dead processes' trials are
        marked and put back."""
        with self.turn(), self._opened() as study:
            self._mark_the_dead(study)
            trials = study.get_trials(deepcopy=False)
            num_taken = sum(
                not trial.user_attrs.get("is_repeated") and trial.state.name != "WAITING" for trial in trials
            )
            if num_taken >= self.settings.num_trials(self.space):
                return None
            study.sampler = self._sampler(num_taken)
            trial = study.ask()
            trial.set_user_attr("worker", self._worker)
            values = {name: self._suggest(trial, name) for name in self.space.searched}
            return Trial(self, trial, values)

    def rows(self) -> list[Row]:
        """All trials, each as a flat row: number, state, value, its knobs, seconds, why it ended early."""
        with self._opened() as study:
            trials = study.get_trials(deepcopy=False)
        rows = []
        for trial in trials:
            seconds = trial.user_attrs.get("seconds")
            row: Row = {"trial": trial.number, "state": STATES[trial.state.name], "value": trial.value}
            values = trial.system_attrs.get("fixed_params", {}) | trial.params  # one that waits has only the former
            row |= {name: values.get(name) for name in self.space.searched}
            row |= {"seconds": seconds, "why": trial.user_attrs.get("why", "")}
            row |= {"looks": dict(sorted(trial.intermediate_values.items())),
                    "worker": trial.user_attrs.get("worker", "")}  # fmt: skip
            rows.append(row)
        return rows

    def importances(self) -> dict[str, float]:
        """The share of each knob in what separates the better half of the complete trials from all, by PED-ANOVA
        (Watanabe et al. 2023, arXiv 2304.10255). Empty with fewer than 4 complete trials or a single knob."""
        import warnings

        if len(self.space.searched) < 2:
            return {}
        with self._opened() as study, warnings.catch_warnings():
            done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
            if len(done) < 4 or len({trial.value for trial in done}) < 2:
                return {}
            warnings.simplefilter("ignore")  # its evaluator was marked as experimental in some releases
            importance = self.optuna.importance
            evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
            found = importance.get_param_importances(study, evaluator=evaluator)
        return {name: float(share) for name, share in found.items()}

    def _mark_the_dead(self, study: optuna.Study) -> None:
        for trial in study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker", "")
            if not worker or not is_held(self._lock_of(worker)):
                self._give_back(study, trial._trial_id, "its process ended in the middle", is_death=True)
                with suppress(OSError):
                    self._lock_of(worker).unlink()

    def _give_back(self, study: optuna.Study, trial_id: int, why: str, *, is_death: bool) -> None:
        """Mark a trial as failed, and let its values be tried again."""
        trial = study._storage.get_trial(trial_id)
        attempt = int(trial.user_attrs.get("attempt", 0)) + is_death
        is_repeated = attempt <= RETRIES
        attributes = {"why": why if is_repeated else f"{why}, for the second time", "is_repeated": is_repeated}
        for name, value in attributes.items():
            study._storage.set_trial_user_attr(trial_id, name, value)
        values = trial.system_attrs.get("fixed_params", {}) | trial.params
        # Without all of its values the trial is not put back: its number is free again, and gives the same values.
        if is_repeated and self.space.searched.keys() <= values.keys():
            others = study.get_trials(deepcopy=False)
            if not any(other.user_attrs.get("again") == trial.number for other in others):  # a death here did it before
                study.enqueue_trial(values, user_attrs={"attempt": attempt, "again": trial.number})
        study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL)

    # ── Optuna ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[optuna.Study]:
        """Optuna's study. Opened for each use: SQLite's connections don't outlive it, and none is left to close."""
        from sqlalchemy.pool import NullPool

        optuna, settings = self.optuna, self.settings
        with self._explain_database_error():
            # The path as a path, for in an address ? and % have a meaning; it waits while others write.
            connect = partial(sqlite3.connect, (self.folder / STORE).resolve(), timeout=60, check_same_thread=False)
            storage = optuna.storages.RDBStorage(
                "sqlite://",
                engine_kwargs={"creator": connect, "poolclass": NullPool},
                skip_table_creation=not create,
                skip_compatibility_check=not create,
            )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, settings.evaluations // 3))
        with self._closing(storage):
            if create:
                direction = "maximize" if self.objective.is_larger_better else "minimize"
                yield optuna.create_study(
                    storage=storage, study_name=STUDY_NAME, direction=direction, pruner=pruner, load_if_exists=True
                )
            else:
                yield optuna.load_study(study_name=STUDY_NAME, storage=storage, pruner=pruner)

    @contextmanager
    def _closing(self, storage: Any) -> Iterator[None]:
        """Closes the connections at the end, which come back with the next use; Optuna is silent in between."""
        logging = self.optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.WARNING)
        try:
            with self._explain_database_error():
                yield
        finally:
            storage.remove_session()
            getattr(storage, "_backend", storage).engine.dispose()  # a study may have put its own cache before it
            logging.set_verbosity(before)

    @contextmanager
    def _explain_database_error(self) -> Iterator[None]:
        """Gives what the database complains about the study's file and the remedy."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (self.optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            reason = str(getattr(error.__cause__ or error, "orig", None) or error).splitlines()[0]
            raise OSError(
                f"the study {self.folder / STORE} cannot be read or written ({reason}); free space or permissions "
                "there and join it again, or restore the file if it is damaged"
            ) from error

    def _sampler(self, num_taken: int) -> Any:
        """Seeded by the study's seed and the number of trials taken before: the search does not depend on who takes
        which trial, or on whether it was interrupted, so long as one trial follows the other."""
        seed = int(np.random.SeedSequence([self.settings.seed, num_taken]).generate_state(1)[0])
        samplers = self.optuna.samplers
        if self.settings.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        budget = self.settings.num_trials(self.space)
        return samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, budget // 3)))

    def _suggest(self, trial: optuna.Trial, name: str) -> Value:
        dimension = self.space.searched[name]
        if isinstance(dimension, Choice):
            return trial.suggest_categorical(name, list(dimension.values))
        if dimension.is_whole:
            return trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.is_log)
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.is_log)

    def _lock_of(self, worker: str) -> Path:
        return self.folder / LOCKS / f"worker-{worker}"


class Trial:
    """A trial that this process has taken. It ends by `end` or `give_back`."""

    def __init__(self, study: StoredStudy, trial: optuna.Trial, searched: dict[str, Value]) -> None:
        self.study, self._trial, self.number = study, trial, trial.number
        self.searched = searched
        self.values = study.space.fixed | searched
        self.folder = study.folder / TRIALS / f"{self.number:04d}"
        self._began = time.monotonic()  # Optuna's own times are the wall clock's, which may be set meanwhile

    def report(self, look: int, value: float) -> bool:
        """Record a look (1, 2, … out of `evaluations`); whether the trial stands below the median of the others."""
        with self.study._closing(self._trial.study._storage):
            self._trial.report(value, look)
            return self._trial.should_prune()

    def end(self, state: str, value: float | None = None, why: str = "") -> None:
        """End it: "complete" with the value that it is compared by, "pruned" where the search shall learn that these
        values are worse than the others, "failed" for good and without a verdict on its values."""
        (name,) = (name for name, ours in STATES.items() if ours == state)
        with self.study._closing(self._trial.study._storage):
            if why:
                self._trial.set_user_attr("why", why)
            self._trial.set_user_attr("seconds", round(time.monotonic() - self._began, 3))
            self._trial.study.tell(self._trial, value, state=getattr(self.study.optuna.trial.TrialState, name))

    def give_back(self, why: str) -> None:
        """Mark it as failed and let its values be tried again, by whoever goes on with the study."""
        study = self._trial.study
        with self.study.turn(), self.study._closing(study._storage):
            self.study._give_back(study, self._trial._trial_id, why, is_death=False)


def read_settings(folder: Path) -> SweepSettings:
    """The settings of the sweep in `folder`. ValueError where there is none."""
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder} holds no sweep: {SETTINGS} is missing; give the folder that was given as --study")
    try:
        read = dict(json.loads(path.read_bytes()))
        read |= {name: tuple(value) for name, value in read.items() if isinstance(value, list)}  # JSON has lists only
        found = SweepSettings(**read)
        hints = get_type_hints(SweepSettings)
        for name, value in vars(found).items():
            if not is_of(value, hints[name]):
                raise ValueError(f"{name} can't be {value!r}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or begin another sweep") from None
    return found


def as_begun(folder: Path, settings: SweepSettings) -> SweepSettings:
    """The settings of the study in `folder` where there is one; others than those it was begun with are refused."""
    if not (folder / SETTINGS).exists():
        return settings
    return settings_as_begun(settings, vars(read_settings(folder)), "sweep", folder, free=WATCHING)


def best_row(rows: list[Row], *, is_larger_better: bool) -> Row | None:
    """The complete trial with the best value; of equals the earliest. None where none is complete."""
    complete = [row for row in rows if row["state"] == "complete"]
    if not complete:
        return None
    return (max if is_larger_better else min)(complete, key=lambda row: row["value"])
