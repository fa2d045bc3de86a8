"""A training in a thread of its own: it hands its events on as they come, can be stopped, and reports its failure.

    job = Job(lambda stop: train_dpo(..., stop=stop.is_set), on_event=show)
    job.stop()     # the stream ends after the step in hand
    job.wait(60)   # returns when the thread is gone; raises what went wrong in it

No widgets here, no torch: the panels stand on this, and a script may.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

PATIENCE = 10.0
"""Seconds that a leaving kernel waits for its jobs to put their runs in order."""

_jobs: weakref.WeakSet[Job] = weakref.WeakSet()


class Job:
    """A stream of events, read in a thread from the moment that the job is made.

    start: called in the thread with an event that is set when the job shall stop; returns the stream. Whoever writes
        the stream looks at the event, and ends it in order.
    on_event: called in the thread with each event. What it raises ends the job, as a failure of the stream does.
    on_end: called in the thread when the stream is over and closed, with the error or None; `running` is False then,
        so another job may begin.

    A kernel that is left stops its jobs and waits a little; the thread never keeps it alive.
    """

    def __init__(
        self, start: Callable[[threading.Event], Iterable[Any]], on_event: Callable[[Any], None] | None = None, *,
        on_end: Callable[[BaseException | None], None] | None = None, name: str = "training",
    ) -> None:  # fmt: skip
        self.error: BaseException | None = None
        self._start, self._on_event, self._on_end = start, on_event, on_end
        self._stop, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"dpo-lab {name}", daemon=True)
        _jobs.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Request the stream's end. Returns at once; `wait` returns when it has ended."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the thread is gone, and raise what was raised in it.

        TimeoutError after `timeout` seconds: the job goes on. Interrupting the kernel while it waits stops the job.
        """
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        if self._thread.is_alive():
            raise TimeoutError(f"the job still runs after {timeout:g} s; wait longer, or stop() it")
        if self.error is not None:
            raise self.error

    @property
    def running(self) -> bool:
        """Whether the stream has not ended yet."""
        return not self._is_over.is_set()

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # whatever it is, `wait` raises it: nobody else sees what a thread raises
            self.error = error
        finally:
            self._is_over.set()
        if self._on_end is not None:
            try:
                self._on_end(self.error)
            except BaseException as error:
                self.error = self.error or error

    def _read(self) -> None:
        events = self._start(self._stop)
        try:
            for event in events:
                if self._on_event is not None:
                    self._on_event(event)
        finally:
            if (close := getattr(events, "close", None)) is not None:
                close()  # a generator puts its things in order now, not when it is collected


class HasJob:
    """What every panel with a job offers: whether it runs, Stop, and waiting for its end."""

    job: Job | None = None

    @property
    def running(self) -> bool:
        """Whether a job goes on."""
        return self.job is not None and self.job.running

    def stop(self) -> None:
        """Request the end of the job in hand, after the step in hand."""
        if self.job is not None:
            self.job.stop()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job in hand has ended, and raise what was raised in it."""
        if self.job is not None:
            self.job.wait(timeout)


class Throttle:
    """Does something now and then: at most `share` of the time goes into it, and not more often than every `least` s.

    So drawing what a training reports slows the training by no more than that share, however long one drawing takes.
    """

    def __init__(
        self, *, share: float = 0.05, least: float = 0.5, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if not 0 < share <= 1 or least < 0:
            raise ValueError(f"share must lie in (0, 1] and least not be negative, got {share} and {least}; "
                             "0.05 and 0.5 are the usual start")  # fmt: skip
        self.share, self.least, self.clock = share, least, clock
        self.spent = 0.0  # seconds, in total
        self._next = -float("inf")

    def __call__(self, work: Callable[[], Any]) -> bool:
        """Do the work if its time has come; says whether it did."""
        if self.clock() < self._next:
            return False
        self.now(work)
        return True

    def now(self, work: Callable[[], Any]) -> None:
        """Do the work whatever the time is."""
        began = self.clock()
        try:
            work()
        finally:
            ended = self.clock()
            self.spent += ended - began
            self._next = ended + max(self.least, (ended - began) * (1 / self.share - 1))


@atexit.register
def _leave() -> None:
    running = [job for job in _jobs if job._thread.is_alive()]
    for job in running:
        job.stop()
    ends = time.monotonic() + PATIENCE
    for job in running:
        job._thread.join(max(0.0, ends - time.monotonic()))
