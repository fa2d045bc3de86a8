"""A GPU on paper: a queue that is worked through while the program goes on. Its clock is a number, not a time.

device = SimulatedGPU(launch=1, run=10)
device.launch()          # the program pays 1 and goes on; the device works until 11
device.clock()           # 1
device.wait()            # the program stands still until the queue is empty
device.clock()           # 11
"""

from __future__ import annotations


class SimulatedGPU:
    """launch: what a call costs the program; run: what the work costs the device; first: what its first call adds.

    All in milliseconds, as is `clock()`. `history` holds, for each call, when the program wrote it down and when the
    device began and ended it: (written, began, ended).
    """

    def __init__(self, *, launch: float = 1.0, run: float = 10.0, first: float = 0.0) -> None:
        if min(launch, run, first) < 0:
            raise ValueError(f"times must not be negative, got launch {launch}, run {run}, first {first}")
        self.cost, self.run, self.first = launch, run, first
        self.history: list[tuple[float, float, float]] = []
        self._now = self._done_at = 0.0
        self._is_loaded = False

    def launch(self) -> None:
        """Write one piece of work into the queue."""
        self._now += self.cost
        began = max(self._now, self._done_at)
        self._done_at = began + self.run + (0.0 if self._is_loaded else self.first)
        self._is_loaded = True
        self.history.append((self._now, began, self._done_at))

    def wait(self) -> None:
        """Stand still until the queue is empty, as `torch.cuda.synchronize()` does."""
        self._now = max(self._now, self._done_at)

    def clock(self) -> float:
        """What the program's clock shows, in milliseconds."""
        return self._now
