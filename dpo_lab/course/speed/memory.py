"""What a training step holds in memory, tensor by tensor, and the device's own meter beside it.

    with MemoryBook(model, optimizer) as book:
        logps = token_logps(model, batch); book.enter("backward"); loss.backward(); …
    book.curve()   # bytes of weights, gradients, moments, and what is saved for the backward pass, event by event

Four things last longer than an operation: the weights, their gradients, the optimiser's moments, and what the forward
pass keeps for the backward pass. The book counts these exactly, the same on every machine. What an operation needs
only while it runs comes on top; on a GPU torch's own meter counts that too, and the book notes it down beside.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from dpo_lab.course.speed.process import peak_memory

KINDS = ("weights", "gradients", "moments", "kept")


def device_memory(device: torch.device | str) -> int | None:
    """Bytes of all tensors on a GPU now, by torch's own meter; None on a CPU, which has none."""
    return torch.cuda.memory_allocated(device) if torch.device(device).type == "cuda" else None


def reset_peak(device: torch.device | str) -> None:
    """Begin a new peak on a GPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_memory(device: torch.device | str) -> int:
    """Most bytes held since `reset_peak`: on a GPU by tensors, elsewhere by this whole process since it began."""
    return torch.cuda.max_memory_allocated(device) if torch.device(device).type == "cuda" else peak_memory()


class MemoryBook:
    """Enter it around training steps; every change is written down. See the module."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.parameters, self.optimizer = list(model.parameters()), optimizer
        self.device = self.parameters[0].device
        self.phases: list[tuple[str, int]] = []  # name, and the event that it begins with
        self._rows: list[tuple[float, ...]] = []
        self._own = {_storage(parameter)[0] for parameter in self.parameters}
        self._users: Counter[int] = Counter()  # of each storage that autograd holds
        self._bytes: dict[int, int] = {}
        self._with_gradient: set[int] = set()
        self._now = dict.fromkeys(KINDS, 0)

    def __enter__(self) -> MemoryBook:
        self._began = time.perf_counter()
        self._handles = [p.register_post_accumulate_grad_hook(self._graded) for p in self.parameters if p.requires_grad]
        self._hooks = saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)
        self._hooks.__enter__()
        self.enter("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()
        self._count()

    def enter(self, phase: str) -> None:
        """A new phase begins: gradients and moments are counted afresh, since they go at other times than they come."""
        self.phases.append((phase, len(self._rows)))
        self._count()

    def watch(self, phase: str, optimizer: torch.optim.Optimizer) -> None:
        """What `phases.timed_steps` calls at each border: the optimiser, which is made there, and the phase."""
        self.optimizer = optimizer
        self.enter(phase)

    def curve(self) -> dict[str, Any]:
        """Lists, an entry per event: seconds, the four kinds in bytes, and `device`, torch's meter (None on a CPU)."""
        columns = list(zip(*self._rows, strict=True))
        found: dict[str, Any] = dict(zip(("seconds", *KINDS, "device"), map(list, columns), strict=True))
        if device_memory(self.device) is None:
            found["device"] = None
        return found | {"phases": [list(phase) for phase in self.phases]}

    def peak(self) -> dict[str, int]:
        """The four kinds at the moment when they were most together, and `total`."""
        most = max(self._rows, key=lambda row: sum(row[1:5]))
        return {kind: int(value) for kind, value in zip((*KINDS, "total"), (*most[1:5], sum(most[1:5])), strict=True)}

    def _count(self) -> None:
        graded = [p for p in self.parameters if p.grad is not None]
        self._with_gradient = {id(p) for p in graded}
        self._now["weights"] = _sum_of_storages(self.parameters)
        self._now["gradients"] = _sum_of_storages([p.grad for p in graded if p.grad is not None])
        states = [] if self.optimizer is None else [v for s in self.optimizer.state.values() for v in s.values()]
        self._now["moments"] = _sum_of_storages([v for v in states if isinstance(v, Tensor) and v.ndim])
        self._write()

    def _graded(self, parameter: Tensor) -> None:
        if id(parameter) not in self._with_gradient and parameter.grad is not None:
            self._with_gradient.add(id(parameter))
            self._now["gradients"] += _storage(parameter.grad)[1]
            self._write()

    def _take(self, place: int, size: int) -> None:
        self._users[place] += 1
        if self._users[place] == 1 and place not in self._own:
            self._bytes[place] = size
            self._now["kept"] += size
            self._write()

    def _release(self, place: int) -> None:
        self._users[place] -= 1
        if not self._users[place] and place in self._bytes:
            self._now["kept"] -= self._bytes.pop(place)
            self._write()

    def _write(self) -> None:
        seconds = time.perf_counter() - self._began
        self._rows.append((seconds, *self._now.values(), device_memory(self.device) or 0))


class _Saved:
    """A tensor that autograd keeps; it lives as long as autograd needs it, and says when it goes."""

    def __init__(self, tensor: Tensor, book: MemoryBook) -> None:
        self.tensor = tensor.detach()  # the tensor itself would hold the graph that holds it
        self.place, size = _storage(tensor)
        self.book = book
        book._take(self.place, size)

    def __del__(self) -> None:
        self.book._release(self.place)


def _storage(tensor: Tensor) -> tuple[int, int]:
    """Where the memory behind a tensor lies, and its bytes: views of one tensor are one piece of memory."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _sum_of_storages(tensors: Sequence[Tensor]) -> int:
    return sum(dict(map(_storage, tensors)).values())
