"""Two real processes that train together, for tests: forked from one that has loaded torch, joined by gloo.

`python -m tests.process_workers NAME FOLDER` runs one of `SCENARIOS` in a fresh process, without a launcher. What each
worker saw is written to `FOLDER/RUN-INDEX.json`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

LONGEST = 200.0  # seconds that a scenario may take
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
Work = Callable[[int], Any]


def run_scenario(name: str, folder: Path) -> dict[str, Any]:
    """Run a scenario in a process of its own; returns what its workers wrote, by run and index: told["ddp-0"]."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", "tests.process_workers", name, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def launch(count: int, work: Work, **environment: str) -> list[int]:
    """Fork `count` processes with the environment that a launcher gives them; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for index in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            if count > 1:
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
                os.environ.update(where | {"RANK": str(index), "LOCAL_RANK": str(index)})
            os.environ.update(environment)
            status = work(index) or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return children


def wait_for(children: list[int], seconds: float = LONGEST) -> list[int]:
    """The exit statuses; what is still there after a while is killed, and counts as −9."""
    until, statuses = time.monotonic() + seconds, {}
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[child] for child in children]


def train(
    path: Path,
    kind: str = "dpo",
    *,
    num: int = 20,
    seeds: tuple[int, int] = (0, 0),
    model: dict[str, Any] | None = None,
    spoil: bool = False,
    keep_weights: bool = False,
    stop: Callable[[int], Callable[[], bool]] | None = None,
    watch: Callable[[int, Any], None] | None = None,
    stream: dict[str, Any] | None = None,
    **settings: Any,
) -> Work:
    """A worker that trains a tiny model on `num` pairs and writes what it saw to `path-INDEX.json`.

    seeds: of the data of process 0 and 1. spoil: process 1 breaks its own weights after step 2.
    keep_weights: write them to `path-INDEX.pt`.
    stop, watch: given the process's index; the latter sees every event.
    """

    def work(index: int) -> None:
        import torch

        from dpo_lab.config import DPOConfig, SFTConfig
        from dpo_lab.preferences import TokenData
        from dpo_lab.reference import ReferenceCache, fingerprint
        from dpo_lab.training import train_dpo, train_sft
        from tests.conftest import random_pairs, tiny_llama

        wanted = {"batch_size": 8, "learning_rate": 2e-4, "epochs": 2, "device": "cpu"} | settings
        policy, data, held = tiny_llama(**model or {}), random_pairs(num, seed=seeds[index]), random_pairs(7, seed=9)
        options: dict[str, Any] = {"stop": stop and stop(index), **(stream or {})}
        wrote: list[str] = []
        told: dict[str, Any] = {"events": [], "wrote": wrote}
        began = time.monotonic()
        try:
            with counted_cache(ReferenceCache, wrote) as cache:
                if kind == "dpo":
                    events = train_dpo(policy, None, data, DPOConfig(**wanted), held_out=held, cache=cache, **options)
                else:
                    rows = [[(r.prompt, r.completions[:1]) for r in map(d.row, range(len(d)))] for d in (data, held)]
                    one, other = map(TokenData.from_rows, rows)
                    events = train_sft(policy, None, one, SFTConfig(**wanted), held_out=other, **options)
                for event in events:
                    told["events"].append({"kind": type(event).__name__} | vars(event) | {"seconds": 0})
                    if watch is not None:
                        watch(index, event)
                    if spoil and index == 1 and getattr(event, "step", 0) == 2:
                        policy.lm_head.weight.data.fill_(float("inf"))
        except Exception as error:
            told["error"] = [type(error).__name__, str(error)]
        if keep_weights:
            torch.save(policy.state_dict(), path.with_name(f"{path.name}-{index}.pt"))
        told |= {"weights": fingerprint(policy), "seconds": time.monotonic() - began}
        path.with_name(f"{path.name}-{index}.json").write_text(json.dumps(told))

    return work


def counted_cache(kind: Any, wrote: list[str]) -> Any:
    """A reference cache that notes the keys of the pairs that this process scored."""

    class Counted(kind):
        def write(self, keys: list[bytes], values: Any) -> None:
            wrote.extend(key.hex() for key in keys)
            super().write(keys, values)

    return Counted()


def run(folder: Path, name: str, count: int, environment: dict[str, str] | None = None, **options: Any) -> list[int]:
    """Train in `count` processes with a reference cache of their own; returns the exit statuses."""
    cache = {"DPO_LAB_CACHE": str(folder / f"cache-{options.pop('cache', name)}")}
    return wait_for(launch(count, train(folder / name, **options), **cache | (environment or {})))


def curves(
    folder: Path,
    kinds: tuple[str, ...] = ("dpo",),
    steps: int = 12,
    ways: tuple[str, ...] = ("one", "ddp"),
    **settings: Any,
) -> None:
    """The same training in one process and in two; batches of 8, 8 and 1, so that once a process has no share."""
    for kind in kinds:
        for way in ways:
            count, environment = (1, {}) if way == "one" else (2, FSDP if way == "fsdp" else {})
            options = {"num": 17, "epochs": 100, "max_steps": steps, "micro_batch_size": 3} | settings
            assert run(folder, f"{kind}-{way}", count, environment, kind=kind, **options) == [0] * count


def like_the_page(folder: Path) -> None:
    """51 steps of DPO in two processes, in the order of `dpo.py`, and the weights after them."""
    options = {"num": 17, "epochs": 17, "group_by_length": False, "keep_weights": True}
    assert run(folder, "page", 2, **options) == [0, 0]


def all_curves(folder: Path) -> None:
    """50 steps of SFT and of DPO: one process, DDP, FSDP."""
    curves(folder, ("dpo", "sft"), 50, ("one", "ddp", "fsdp"))


def compiled_curves(folder: Path) -> None:
    """12 steps of DPO with a compiled policy and reference: one process, DDP, FSDP."""
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # torch asks itself for one
    curves(folder, ways=("one", "ddp", "fsdp"), compile=True)


def agreement(folder: Path) -> None:
    """What processes must agree on, found out together."""
    data = {"max_steps": 2, "num": 21}
    assert run(folder, "fill", 2, **data) == [0, 0]
    assert run(folder, "found", 2, cache="fill", **data) == [0, 0]
    assert run(folder, "more", 2, cache="fill", **data | {"num": 30}) == [0, 0]  # 21 are known
    assert run(folder, "mixed", 2, **data, seeds=(0, 1)) == [0, 0]
    stop = lambda index: iter_says(3) if index == 1 else iter_says(10**9)
    assert run(folder, "stopped", 2, stop=stop, epochs=9, stream={"checkpoints": folder / "stopped"}) == [0, 0]
    (folder / "taken").write_text("a file where the folder of checkpoints should be")
    assert run(folder, "unwritable", 2, max_steps=2, stream={"checkpoints": folder / "taken"}) == [0, 0]
    assert run(folder, "diverged", 2, spoil=True, log_every=2) == [0, 0]


def iter_says(after: int) -> Callable[[], bool]:
    """Says True at the call after so many."""
    calls: Iterator[int] = iter(range(1, 10**9))
    return lambda: next(calls) >= after


def survival(folder: Path) -> None:
    """A worker is killed at step 5 of 9; the run goes on in two processes and in one. Another one hangs."""
    options: dict[str, Any] = {"epochs": 3, "checkpoint_every": 2}

    def dies(index: int, event: Any) -> None:
        if index == 1 and getattr(event, "step", 0) == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def hangs(index: int, event: Any) -> None:
        if index == 1 and getattr(event, "step", 0) == 2:
            time.sleep(60)

    for way, environment in (("ddp", {}), ("fsdp", FSDP)):
        whole, broken = folder / f"{way}-whole", folder / f"{way}-broken"
        assert run(folder, f"{way}-whole", 2, environment, **options, stream={"checkpoints": whole}) == [0, 0]
        statuses = run(folder, f"{way}-broken", 2, environment, **options, watch=dies, stream={"checkpoints": broken})
        assert statuses == [0, -9]
        resume = {"resume": broken / "step-00000004"}
        assert run(folder, f"{way}-resumed", 2, environment, **options, stream=resume) == [0, 0]
        assert run(folder, f"{way}-alone", 1, **options, stream=resume) == [0]
    assert run(folder, "one", 1, **options) == [0]
    children = launch(2, train(folder / "hung", watch=hangs, **options), DPO_LAB_PATIENCE="3")
    began = time.monotonic()
    (status,) = wait_for(children[:1], 60)
    os.kill(children[1], signal.SIGKILL)
    assert status == 0
    assert time.monotonic() - began < 40
    wait_for(children[1:])


def command(folder: Path) -> None:
    """`dpo-lab train` in one process and in two; two that get Ctrl-C, and go on; a folder that is taken."""
    from tests.command_line import QUICK, chat_model, some_rows, write_rows

    write_rows(folder / "pairs.jsonl", some_rows(40))
    sources = ("--model", str(chat_model(folder / "model")), "--pairs", str(folder / "pairs.jsonl"))
    begin = ("train", *QUICK, *sources, "--learning-rate", "1e-3", "--run")
    assert wait_for(launch(1, says(folder, "one", *begin, str(folder / "one")))) == [0]
    assert wait_for(launch(2, says(folder, "two", *begin, str(folder / "two")))) == [0, 0]
    assert wait_for(launch(2, says(folder, "taken", *begin, str(folder / "two")))) == [2, 2]
    broken = folder / "broken"
    children = launch(2, says(folder, "broken", *begin, str(broken), "--epochs", "40"))
    metrics = broken / "metrics.jsonl"
    num_lines = lambda: metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    wait_until(lambda: num_lines() > 4)
    for child in [*children, *children]:  # a terminal and a launcher both pass it on
        os.kill(child, signal.SIGINT)
    assert wait_for(children, 60) == [130, 130]
    go_on = ("train", "--run", str(broken), "--resume", "--cache", str(folder / "cache"))
    before = num_lines()
    children = launch(2, says(folder, "resumed", *go_on))
    wait_until(lambda: num_lines() > before + 3)
    os.kill(children[1], signal.SIGKILL)
    assert wait_for(children, 60) == [2, -9]
    assert wait_for(launch(1, says(folder, "finished", *go_on))) == [0]


def says(folder: Path, name: str, *arguments: str) -> Work:
    """A worker that runs the command and keeps what it prints in `folder/name-INDEX.txt`."""

    def work(index: int) -> int:
        from dpo_lab.workbench.cli import main

        file = os.open(folder / f"{name}-{index}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        return main(arguments)

    return work


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Look again and again until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


SCENARIOS = {
    "command": command,
    "curves": curves,
    "like_the_page": like_the_page,
    "all_curves": all_curves,
    "compiled_curves": compiled_curves,
    "agreement": agreement,
    "survival": survival,
}


def main() -> None:
    name, folder = sys.argv[1:]
    import torch

    import dpo_lab.training  # noqa: F401  # loaded once, before any thread starts, so that workers can be forked

    torch.set_num_threads(1)
    os.environ["DPO_LAB_CACHE"] = str(Path(folder) / "cache")
    Path(folder).mkdir(parents=True, exist_ok=True)
    SCENARIOS[name](Path(folder))


if __name__ == "__main__":
    main()
