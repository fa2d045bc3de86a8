"""Several processes that train one model: what share each takes, what they tell each other, weights split over them.

`accelerate launch` and `torchrun` start the same program several times. Each process reads the same data in the same
order, takes every n-th example of a batch, and joins the others where gradients, metrics or log-probs are added up. A
run with one process takes none of these steps: `ALONE` stands for it.

n processes, counted from 0; process 0 is the main one, which writes. Knows no models and no preferences.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

PATIENCE_VARIABLE = "DPO_LAB_PATIENCE"
"""Seconds that a process waits for the others before it takes them for lost."""
PATIENCE = 1800.0  # the main process writes and samples alone for a while
SUPPORTED = (DistributedType.NO, DistributedType.FSDP, *(t for t in DistributedType if t.value.startswith("MULTI_")))


class ProcessLost(ConnectionError):
    """Another process was killed, cut off or hangs; what is left of the run ends here."""


class MainFailed(RuntimeError):
    """The main process could not do what the others wait for; it says why itself."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    channel: Any = None  # for messages through the CPU's memory; gradients take the device's own way

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def share(self, items: np.ndarray) -> np.ndarray:
        """Every n-th item. Batches are sorted by length, so that the shares are alike."""
        return items[self.index :: self.count]

    def passes(
        self, cut: Callable[[np.ndarray], list[np.ndarray]], indices: np.ndarray
    ) -> list[tuple[np.ndarray, float]]:
        """This process's share of a batch, cut into passes, and what each counts: 1, or 0 for one that fills up.

        All processes make the same number of passes, since those that share weights or gradients meet in each. One
        that has fewer, or no share at all of a short last batch, repeats the batch's first example for nothing.
        """
        shares = [cut(indices[start :: self.count]) for start in range(self.count)]
        own = [(part, 1.0) for part in shares[self.index]]
        return own + [(indices[:1], 0.0)] * (max(map(len, shares)) - len(own))

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.count == 1:
            return flag
        said = torch.tensor([int(flag)])
        with self.listening():
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.channel)
        return bool(said)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over the processes; where one alone holds a value and the others 0, exactly that value."""
        if self.count == 1:
            return values
        total = torch.from_numpy(np.ascontiguousarray(values).copy())
        with self.listening():
            dist.all_reduce(total, group=self.channel)
        return total.numpy()

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes, given to all. Where it fails, all fail: the others with MainFailed."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:
                failure, outcome[1] = error, str(error)
        with self.listening():
            dist.broadcast_object_list(outcome, src=0, group=self.channel)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise MainFailed(outcome[1])
        return outcome[0]

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Raises ValueError on every process where one was started with something else."""
        if self.count == 1:
            return
        everyone: list[Any] = [None] * self.count
        with self.listening():
            dist.all_gather_object(everyone, dict(what), group=self.channel)
        for index, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise ValueError(
                        f"the processes do not train the same: {name} is {value!r} in process 0 and "
                        f"{other.get(name)!r} in process {index}; start all with the same command, model and data"
                    )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Says in plain words that another process is gone, in whatever way torch noticed it."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost(error):
                raise
            reason = next(iter(_REASONS.findall(str(error))), type(error).__name__)
            raise ProcessLost(
                f"lost the other processes ({reason}): one of the {self.count} was killed, ran out of memory, hangs, "
                "or failed as its own message tells. All end here; go on from the last checkpoint"
            ) from error


ALONE = Processes()

_REASONS = re.compile(r"(?i)connection \w+(?: by peer)?|timed out|timeout|broken pipe|remote process exited")
_JOINED: list[Processes] = []


def _is_lost(error: RuntimeError) -> bool:
    text = str(error)
    is_network = isinstance(error, dist.DistError) or "gloo" in text.lower() or "nccl" in text.lower()
    return is_network and _REASONS.search(text) is not None


def num_launched() -> int:
    """How many processes the launcher started together; 1 without a launcher. Reads the environment only."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> Processes:
    """Meet the other processes that were launched; alone, this changes nothing. Called again, it says the same.

    device: what is asked for. Each process of several takes its own GPU, which is then `Processes.device`.
    """
    if num_launched() == 1:
        return Processes(device=device)
    if not _JOINED:
        # Every process needs the whole model once, to score its share of the reference.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        patience = timedelta(seconds=float(os.environ.get(PATIENCE_VARIABLE, PATIENCE)))
        state = PartialState(cpu=device.type == "cpu", timeout=patience)
        channel = dist.new_group(backend="gloo", timeout=patience)
        _JOINED.append(Processes(state.process_index, state.num_processes, state.device or device, channel))
    return _JOINED[0]


def leave() -> None:
    """Part from the others at the end of a run that went well."""
    if _JOINED:
        _JOINED.clear()
        dist.destroy_process_group()


def make_accelerator(processes: Processes, *, scale_loss: bool) -> Accelerator:
    """accelerate's view of the processes. scale_loss: as float16 needs it.

    Precision and accumulation are the loop's own, whatever the launcher was told. Raises ValueError for a way to
    parallelise that is not supported: those are DDP and FSDP version 2.
    """
    if processes.count == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # a notebook may train on another device next
    plugin = None
    if processes.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError("FSDP version 1 is asked for and 2 is supported; launch with --fsdp_version 2")
        os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")  # gather one layer at a time
        plugin = FullyShardedDataParallelPlugin()
    accelerator = Accelerator(
        cpu=processes.device.type == "cpu",
        mixed_precision="fp16" if scale_loss else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if plugin is not None and accelerator.device.type == "cpu":  # accelerate shards on GPUs only; torch on CPUs too
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    if accelerator.distributed_type not in SUPPORTED:
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported; launch with --multi_gpu (DDP) or --use_fsdp"
        )
    return accelerator


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

    def _pairs(self) -> list[tuple[Tensor, DTensor]]:
        pairs = zip(self.whole.parameters(), self.twin.parameters(), strict=True)
        return [(whole, part) for whole, part in pairs if part.requires_grad and isinstance(part, DTensor)]


def plain(value: Tensor) -> Tensor:
    """A tensor as every process has it whole."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _split_like(value: Any, like: Tensor) -> Any:
    if not (isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape):
        return value  # a count of steps
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _each(function: Callable[[Any], Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: function(value) for name, value in values.items()}
