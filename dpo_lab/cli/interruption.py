"""Ctrl-C as a question that a training or a sweep asks after each step."""

from __future__ import annotations

import signal
import sys
import threading


class Interruption:
    """While it is entered, Ctrl-C asks for a stop after the step in hand; a second one stops at once."""

    is_asked = False

    def __enter__(self) -> Interruption:
        self.is_main = threading.current_thread() is threading.main_thread()
        if self.is_main:
            self.previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_main:
            signal.signal(signal.SIGINT, self.previous)

    def __call__(self) -> bool:
        return self.is_asked

    def _ask(self, *_: object) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
