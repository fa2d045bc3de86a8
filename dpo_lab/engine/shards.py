"""Weights, gradients and optimiser state split over several processes (FSDP)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Shards:
    """A twin of a model whose weights, gradients and optimiser state are split over the processes (FSDP).

    The twin is trained. The model itself waits in the host's memory and gets the whole weights when it is looked at:
    to be evaluated, written to a checkpoint, or handed back. So all that is written is what one process would write.
    """

    def __init__(self, whole: nn.Module, device: torch.device) -> None:
        self.whole, self.device = whole.to("cpu"), device
        self.twin = copy.deepcopy(whole)
        self.optimizer: Any = None
        self._state: dict[str, Any] = {}

    def gather(self) -> None:
        """Give the model the twin's weights, on the device."""
        self.whole.to(self.device)
        with torch.no_grad():
            for whole, part in self._pairs():
                whole.copy_(part.full_tensor())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """While it is entered, the model holds the twin's weights."""
        self.gather()
        try:
            yield
        finally:
            self.whole.to("cpu")

    def scatter(self) -> None:
        """Give the twin the model's weights."""
        with torch.no_grad():
            for whole, part in self._pairs():
                part.copy_(_split_like(whole.detach(), part))

    def collect_state(self) -> None:
        """Gather the optimiser's state, for `state_dict`. All processes must call it."""
        state = self.optimizer.state_dict()
        self._state = state | {"state": {i: _each(_whole, values) for i, values in state["state"].items()}}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state as one process would have it, as it was last collected."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Split a whole state of the optimiser over the processes."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        split = {
            i: _each(lambda value, like=parameters[i]: _split_like(value, like), values)
            for i, values in state["state"].items()
        }
        self.optimizer.load_state_dict(state | {"state": split})

    @staticmethod
    def full_tensor(value: Tensor) -> Tensor:
        """A tensor as every process has it whole."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def _pairs(self) -> list[tuple[Tensor, DTensor]]:
        pairs = zip(self.whole.parameters(), self.twin.parameters(), strict=True)
        return [(whole, part) for whole, part in pairs if part.requires_grad and isinstance(part, DTensor)]


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _split_like(value: Any, like: Tensor) -> Any:
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value  # a count of steps
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _each(function: Callable[[Any], Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function(value) for name, value in values.items()}
