"""Experiment trackers, through accelerate: a run's events, logged to TensorBoard, wandb, MLflow, … as well.

The run's own record (`metrics.jsonl`) is complete without them: a tracker that fails on the way is dropped, with a
warning. accelerate is loaded when a tracker is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dpo_lab.config import TrackerName
from dpo_lab.workbench.runs.run import Run, row_of

if TYPE_CHECKING:
    from dpo_lab.loop import Event

logger = logging.getLogger("dpo_lab")

PROJECT = "dpo-lab"
_NAME_OF_RUN = {"wandb": "name", "trackio": "name", "mlflow": "run_name"}
"""What a tracker calls one run of a project, where accelerate passes it on; the others know only the project."""


def tracked(events: Iterable[Event], tracker: TrackerName | None, run: Run) -> Iterator[Event]:
    """Pass the events of a training on, each step and evaluation logged to the tracker under the names of the record.

    tracker: None passes them on untouched. TensorBoard writes into the run's folder `tensorboard/`; the others go where
        their own settings point (wandb: WANDB_PROJECT, WANDB_MODE=offline; MLflow: MLFLOW_TRACKING_URI).
    Raises at the call: ValueError for an unknown tracker, ImportError for one that is not installed.
    """
    if tracker is None:
        return iter(events)
    check_tracker(tracker)
    return _tracked(events, tracker, run)


def check_tracker(tracker: TrackerName) -> None:
    """ValueError for a tracker that accelerate does not know, ImportError for one that is not installed."""
    known = TrackerName.__args__
    if tracker not in known:
        raise ValueError(f"tracker {tracker!r} is not known; choose one of {', '.join(known)}")
    from accelerate.tracking import get_available_trackers

    if tracker not in map(str, get_available_trackers()):
        package = tracker.replace("_", "-")
        raise ImportError(f"the tracker {tracker} is not installed; install it with pip install {package}")


def _tracked(events: Iterable[Event], name: TrackerName, run: Run) -> Iterator[Event]:
    open_tracker: Any = None
    is_lost = False
    try:
        for event in events:
            row = row_of(event)
            if row is not None and row["kind"] != "finished" and not is_lost:
                step = row["step"]
                values = {key: value for key, value in row.items() if key not in ("kind", "step", "seconds")}
                try:
                    open_tracker = open_tracker or _opened(name, run, step)
                    open_tracker.log(values, step=step)
                except Exception as error:  # a lost connection must not cost the training
                    is_lost = True
                    logger.warning(
                        "%s failed at step %d (%s: %s) and is left alone; the run goes on, and its own record in %s "
                        "is complete", name, step, type(error).__name__, error, run.folder,
                    )  # fmt: skip
            yield event
    finally:
        if open_tracker is not None and not is_lost:
            open_tracker.finish()


def _opened(name: TrackerName, run: Run, step: int) -> Any:
    """The tracker with the run's settings. Opened at the first event: the processes have found each other by then."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":  # what a resumed run takes again is shown once
        tracker = kind("tensorboard", run.folder, purge_step=step)
    else:
        named = {_NAME_OF_RUN[name]: run.folder.resolve().name} if name in _NAME_OF_RUN else {}
        place = (str(run.folder),) if kind.requires_logging_directory else ()
        tracker = kind(PROJECT, *place, **named)
    tracker.start()
    plain = lambda value: value if isinstance(value, bool | int | float | str) else str(value)
    tracker.store_init_configuration({key: plain(value) for key, value in run.config["settings"].items()})
    return tracker
