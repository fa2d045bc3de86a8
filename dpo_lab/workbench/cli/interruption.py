"""Ctrl-C as a flag that a training or a sweep checks after each step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from typing import Any

ONE_CALL = 2.0
"""Seconds in which signals to several processes are one request: a terminal and a launcher both pass Ctrl-C on."""


class Interruption:
    """While it is entered, Ctrl-C requests a stop after the current step; a second one stops at once.

    unit: what a stop waits for the end of.
    processes: those that train together. Where they are several, SIGTERM requests it too: a launcher sends it, and so
        does a cluster that wants its machines back.
    """

    is_requested = False

    def __init__(self, processes: Any = None, *, unit: str = "step") -> None:
        self.unit = unit
        self.is_several = processes is not None and processes.count > 1
        self.is_speaker = processes is None or processes.is_main

    def __enter__(self) -> Interruption:
        self.is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if self.is_several else (signal.SIGINT,)
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
