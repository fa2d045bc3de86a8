"""Jobs in a thread: they end in order, tell what failed, and leave nothing behind; drawing now and then."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from dpo_lab.workbench.widgets.background import Job, Throttle


def counting(stop: threading.Event, *, most: int = 10_000):
    """0, 1, 2, … until it is asked to stop; then one event more, as a training tells that it has finished."""
    for i in range(most):
        if stop.is_set():
            break
        yield i
        time.sleep(0.001)
    yield "finished"


def threads_of_jobs() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpo-lab")]


def test_events_are_handed_on_in_order_and_the_thread_is_gone():
    seen, ends = [], []
    job = Job(lambda stop: counting(stop, most=5), seen.append, on_end=ends.append)
    job.wait(5)
    assert seen == [0, 1, 2, 3, 4, "finished"]
    assert ends == [None]
    assert not job.running
    assert threads_of_jobs() == []


def test_a_stream_may_be_any_iterable_and_needs_no_listener():
    Job(lambda stop: [1, 2]).wait(5)


def test_stop_lets_the_stream_end_in_order():
    seen = []
    job = Job(counting, seen.append)
    assert job.running
    while len(seen) < 3:
        time.sleep(0.001)
    job.stop()
    job.stop()  # twice is once
    job.wait(5)
    assert seen[-1] == "finished"
    assert len(seen) < 5000
    assert threads_of_jobs() == []


def test_wait_raises_what_the_stream_raised_with_its_traceback_as_often_as_it_is_asked():
    def failing(stop):
        yield 1
        raise ArithmeticError("step 2: the loss is nan")

    seen, ends = [], []
    job = Job(failing, seen.append, on_end=ends.append)
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="step 2") as caught:
            job.wait(5)
        assert "failing" in [entry.name for entry in caught.traceback]
    assert seen == [1]
    assert ends == [job.error]
    assert not job.running


def test_what_fails_before_the_stream_begins_is_raised_too():
    def start(stop):
        raise ValueError("no model folder at 'x'")

    job = Job(start)
    with pytest.raises(ValueError, match="no model folder"):
        job.wait(5)


def test_a_failing_listener_ends_the_job_and_the_stream_is_closed():
    closed = []

    def stream(stop):
        try:
            yield from range(100)
        finally:
            closed.append(True)

    def listen(event):
        if event == 3:
            raise KeyError("listener")

    with pytest.raises(KeyError, match="listener"):
        Job(stream, listen).wait(5)
    assert closed == [True]


def test_a_failure_at_the_end_is_raised_but_does_not_hide_the_first():
    def broken_end(error):
        raise OSError("the end")

    with pytest.raises(OSError, match="the end"):
        Job(lambda stop: [], on_end=broken_end).wait(5)

    def failing(stop):
        raise ValueError("the cause")

    with pytest.raises(ValueError, match="the cause"):
        Job(failing, on_end=broken_end).wait(5)


def test_waiting_too_short_says_so_and_the_job_goes_on():
    job = Job(counting)
    with pytest.raises(TimeoutError, match=r"still runs after 0.01 s; wait longer, or stop\(\) it"):
        job.wait(0.01)
    assert job.running
    job.stop()
    job.wait(5)


def test_when_the_end_is_told_another_job_may_begin():
    jobs, seen = [], []
    is_named = threading.Event()

    def begin_again(error):
        is_named.wait(5)
        assert not jobs[0].running
        jobs.append(Job(lambda stop: ["again"], seen.append))

    jobs.append(Job(lambda stop: [1], on_end=begin_again))
    is_named.set()
    for i in (0, 1):
        jobs[i].wait(5)
    assert seen == ["again"]


def test_a_program_that_ends_asks_its_jobs_to_stop_and_lets_them_put_their_things_in_order(tmp_path):
    code = f"""
import time, pathlib
from dpo_lab.workbench.widgets.background import Job

def stream(stop):
    while not stop.is_set():
        yield 1
        time.sleep(0.01)
    time.sleep(0.2)
    pathlib.Path({str(tmp_path / "saved")!r}).write_text("in order")

job = Job(stream)
time.sleep(0.05)
"""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert (tmp_path / "saved").read_text() == "in order"
    assert time.perf_counter() - began < 10


def test_jobs_need_neither_widgets_nor_torch():
    heavy = "[m for m in ('ipywidgets', 'torch') if m in sys.modules]"
    code = f"import sys, dpo_lab.workbench.widgets.background; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ── now and then ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_throttle_spends_at_most_its_share_of_the_time():
    clock = Clock()
    throttle = Throttle(share=0.05, least=0.5, clock=clock)

    def draw():
        clock.now += 0.3

    while clock.now < 600:
        throttle(draw)
        clock.now += 0.01  # a step of the training
    assert throttle.spent / clock.now == pytest.approx(0.05, abs=0.003)


def test_quick_work_is_done_no_more_often_than_asked():
    clock = Clock()
    throttle, times = Throttle(share=0.05, least=0.5, clock=clock), []
    for _ in range(1000):
        throttle(lambda: times.append(clock.now))
        clock.now += 0.01
    assert len(times) == 20
    assert times[0] == 0.0  # the first time at once


def test_work_that_must_be_done_now_is_done_and_counts():
    clock = Clock()
    throttle, times = Throttle(share=0.5, least=1.0, clock=clock), []
    assert throttle(lambda: times.append("first"))
    assert not throttle(lambda: times.append("too early"))
    throttle.now(lambda: times.append("at the end"))
    assert times == ["first", "at the end"]


@pytest.mark.parametrize(("share", "least"), [(0.0, 0.5), (1.5, 0.5), (0.05, -1.0)])
def test_a_throttle_refuses_what_is_no_share(share, least):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        Throttle(share=share, least=least)
