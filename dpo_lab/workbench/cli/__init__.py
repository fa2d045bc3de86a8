"""The command `dpo-lab`. `options` declares them; each command's module is loaded only when it runs.

options    the commands and their options
train      train, sft: from data to a run folder
models     cache, evaluate, sample, merge
data       inspect, convert: how data are read, and written in the layouts of other tools
suites     evaluate --suite and --against
tables     compare, losses, recipes
doctor     what the log of a run says is wrong with it
sweep      many short runs that search for good knobs
demo, real, lab   what make demo, make real and make lab call
inputs, progress, terminal, interruption   what several of them share
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import tyro

from dpo_lab.workbench.cli.options import COMMANDS, HOME, TOGETHER

_LESS_MEMORY = "lower --tokens-per-pass or --max-length, or take --precision bfloat16 or a smaller model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A mistake of the user is one message on standard error and status 2.

    With DPO_LAB_TRACEBACK set, the error is raised as it came.
    """
    options = parse(arguments)
    index, count = (int(os.environ.get(name, usual)) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1")))
    who = "dpo-lab" if count == 1 else f"dpo-lab, process {index} of {count}"
    logging.basicConfig(format=f"{who}: %(message)s", level=logging.WARNING)
    logging.getLogger("dpo_lab").setLevel(logging.INFO if index == 0 else logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command = next(name for name, kind in COMMANDS.items() if type(options) is kind)
    try:
        if count > 1 and not isinstance(options, TOGETHER):
            raise ValueError(f"dpo-lab {command} is for one process; start it without torchrun or accelerate launch")
        if empty := [name for name, value in vars(options).items() if value == "" and name not in ("system", "data")]:
            raise ValueError(f"--{empty[0].replace('_', '-')} is empty, as with a shell variable that is not set; give "
                             "a value, or leave the option out")  # fmt: skip
        with _no_collection():
            run = getattr(import_module(f"dpo_lab.workbench.cli.{HOME.get(command, command)}"), command)
        return run(options)
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `dpo-lab sample | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more as it leaves
        return 141
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        if os.environ.get("DPO_LAB_TRACEBACK"):
            raise
        complain(f"{who}: {error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "MainFailed":  # the main process reports it
            return 2
        if "memory" not in f"{type(error).__name__} {error}".lower() or os.environ.get("DPO_LAB_TRACEBACK"):
            raise
        first = str(error).strip().partition("\n")[0] or "the machine has none left"
        complain(f"{who}: out of memory ({first}); {_LESS_MEMORY}")
        return 2
    except KeyboardInterrupt:
        print(f"{who}: interrupted", file=sys.stderr)
        return 130


def complain(message: str) -> None:
    """A message on standard error, in which nothing of the data can steer the terminal."""
    from dpo_lab.workbench.cli.terminal import visible

    print(visible(message), file=sys.stderr)


@contextmanager
def _no_collection() -> Iterator[None]:
    """While large modules are imported nothing becomes garbage, and looking for it takes a sixth of the time. What they
    hold is not looked through later either. A process that has them already, such as a notebook's, is left alone."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def parse(arguments: Sequence[str] | None = None) -> object:
    """The options that a command line stands for."""
    return tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[_commands()]],
        prog="dpo-lab",
        description="Learn Direct Preference Optimization by running it. `dpo-lab train` alone trains on the embedded "
        "model and data; `dpo-lab COMMAND --help` lists the options of a command.",
        args=None if arguments is None else list(arguments),
    )


def _commands() -> Any:
    """The union of all commands, as tyro wants it."""
    union: Any = None
    for name, options in COMMANDS.items():
        member = Annotated[options, tyro.conf.subcommand(name, description=(options.__doc__ or "").strip())]
        union = member if union is None else union | member
    return union
