"""Ctrl-C, and SIGTERM as a batch system or a container sends it, as a flag that a training or a sweep checks after each
step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ONE_CALL = 2.0
"""Seconds in which signals to several processes are one request: a terminal and a launcher both pass Ctrl-C on."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """While it is entered, SIGTERM raises KeyboardInterrupt: what a command does on Ctrl-C it does then too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, signal.default_int_handler) for number in endings()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def endings() -> list[int]:
    """SIGTERM, and SIGHUP of a terminal that is closed where nohup does not ignore it."""
    hangup = getattr(signal, "SIGHUP", None)
    return [signal.SIGTERM, *([hangup] if hangup and signal.getsignal(hangup) != signal.SIG_IGN else [])]


class Interruption:
    """While it is entered, Ctrl-C or SIGTERM requests a stop after the current step; a second one stops at once.

    unit: what a stop waits for the end of.
    processes: those that train together.
    """

    is_requested = False

    def __init__(self, processes: Any = None, *, unit: str = "step") -> None:
        self.unit = unit
        self.is_several = processes is not None and processes.count > 1
        self.is_speaker = processes is None or processes.is_main

    def __enter__(self) -> Interruption:
        self.is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, *endings())
        self.previous = {number: signal.signal(number, self._request) for number in signals} if self.is_main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.is_requested

    def _request(self, *_: object) -> None:
        if self.is_requested:
            if self.is_several and time.monotonic() - self.requested_at < ONE_CALL:
                return
            raise KeyboardInterrupt
        self.is_requested, self.requested_at = True, time.monotonic()
        if self.is_speaker:
            print(f"\nstopping after this {self.unit}; Ctrl-C again stops at once", file=sys.stderr)
