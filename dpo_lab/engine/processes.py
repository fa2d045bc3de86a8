"""Several processes that train one model: the share that each takes, and what they send each other.

`accelerate launch` and `torchrun` start the same program several times. Each process reads the same data in the same
order, takes every n-th example of a batch, and joins the others where gradients, metrics or log-probs are added up. A
run with one process takes none of these steps: `ALONE` stands for it.

n processes, counted from 0; process 0 is the main one, which writes. Knows no models and no preferences.
"""

from __future__ import annotations

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

    def shard(self, items: np.ndarray) -> np.ndarray:
        """Every n-th item. Batches are sorted by length, so that the shares are alike."""
        return items[self.index :: self.count]

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.count == 1:
            return flag
        said = torch.tensor([int(flag)])
        with self.explain_lost_peer():
            dist.all_reduce(said, dist.ReduceOp.MAX, group=self.channel)
        return bool(said)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over the processes; where one alone holds a value and the others 0, exactly that value."""
        if self.count == 1:
            return values
        total = torch.from_numpy(np.ascontiguousarray(values).copy())
        with self.explain_lost_peer():
            dist.all_reduce(total, group=self.channel)
        return total.numpy()

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
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
        with self.explain_lost_peer():
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
        with self.explain_lost_peer():
            dist.all_gather_object(everyone, dict(what), group=self.channel)
        for index, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other.get(name) != value:
                    raise ValueError(
                        f"the processes do not train the same: {name} is {value!r} in process 0 and "
                        f"{other.get(name)!r} in process {index}; start all with the same command, model and data"
                    )

    @contextmanager
    def explain_lost_peer(self) -> Iterator[None]:
        """Says in plain words that another process is gone, in whatever way torch noticed it."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not _is_lost(error):
                raise
            reason = next(iter(_REASONS.findall(str(error))), type(error).__name__)
            raise ProcessLost(
                f"lost the other processes ({reason}): one of the {self.count} was killed, ran out of memory, hangs, "
                "or failed for a reason of its own. All end here; go on from the last checkpoint"
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

    device: the requested one. Each process of several takes its own GPU, which is then `Processes.device`.
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

    Precision and accumulation are the loop's own, whatever the launcher was given. Raises ValueError for a way to
    parallelise that is not supported: those are DDP and FSDP version 2.
    """
    if processes.count == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # a notebook may train on another device next
    plugin = None
    if processes.count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise ValueError("FSDP version 1 was requested and 2 is supported; launch with --fsdp_version 2")
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
