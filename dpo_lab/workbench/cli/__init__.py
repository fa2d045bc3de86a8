"""The command `dpo-lab`. `options` declares them; each command's module is loaded only when it runs.

options    the commands and their options
train      train, sft: from data to a run folder
rounds     sample, judge, pair, learn, go on
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
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from dpo_lab.workbench.cli.interruption import sigterm_as_ctrl_c
from dpo_lab.workbench.cli.options import COMMANDS, HOME, TOGETHER

_LESS_MEMORY = "lower --tokens-per-pass or --max-length, or take --precision bfloat16 or a smaller model"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A mistake of the user is one message on standard error and status 2.

    With DPO_LAB_TRACEBACK set, the error is raised as it came.
    """
    for stream in (sys.stdout, sys.stderr):  # a sign that the terminal can't show is no reason to lose a result
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options = parse(arguments)
    who = "dpo-lab"
    command = next(name for name, kind in COMMANDS.items() if type(options) is kind)
    try:
        index, count = _place_among_processes()
        who = "dpo-lab" if count == 1 else f"dpo-lab, process {index} of {count}"
        logging.basicConfig(format=f"{who}: %(message)s", level=logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_visible)
        logging.getLogger("dpo_lab").setLevel(logging.INFO if index == 0 else logging.ERROR)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        if "matplotlib" not in sys.modules:
            os.environ["MPLBACKEND"] = "agg"  # a command opens no window, and a backend that isn't there ends it
        if count > 1 and not isinstance(options, TOGETHER):
            raise ValueError(f"dpo-lab {command} is for one process; start it without torchrun or accelerate launch")
        _check_words(options)
        with sigterm_as_ctrl_c() if count == 1 else nullcontext():
            with _no_collection():
                run = getattr(import_module(f"dpo_lab.workbench.cli.{HOME.get(command, command)}"), command)
            return run(options)
    except BrokenPipeError:  # the reader of a pipe has seen enough, as in `dpo-lab sample | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more as it leaves
        return 141
    except (ValueError, OSError, ArithmeticError, ImportError) as error:
        if os.environ.get("DPO_LAB_TRACEBACK"):
            raise
        _complain(f"{who}: {error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "MainFailed":  # the main process reports it
            return 2
        if "memory" not in f"{type(error).__name__} {error}".lower() or os.environ.get("DPO_LAB_TRACEBACK"):
            raise
        first = str(error).strip().partition("\n")[0] or "the machine has none left"
        _complain(f"{who}: out of memory ({first}); {_LESS_MEMORY}")
        return 2
    except KeyboardInterrupt:
        print(f"{who}: interrupted", file=sys.stderr)
        return 130


def _visible(record: logging.LogRecord) -> bool:
    """Names from files steer no terminal through the log either."""
    from dpo_lab.workbench.cli.terminal import visible  # rich loads only where it is needed

    record.msg, record.args = visible(record.getMessage()), None
    return True


def _place_among_processes() -> tuple[int, int]:
    """RANK and WORLD_SIZE, which a launcher sets: this process's number, and how many there are."""
    found = {name: os.environ.get(name, usual) for name, usual in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    index, count = (int(value) if value.isascii() and value.isdecimal() else -1 for value in found.values())
    if not 0 <= index < count:
        raise ValueError(f"RANK is {found['RANK']!r} and WORLD_SIZE is {found['WORLD_SIZE']!r} in the environment, and "
                         "must be a process's number, from 0, and how many there are; a launcher sets both: unset them "
                         "where there is none")  # fmt: skip
    return index, count


def _check_words(options: object) -> None:
    """What no option can be: nothing, or bytes that are no text, which would fail where it is written down."""
    for name, value in vars(options).items():
        flag = f"--{name.replace('_', '-')}"
        if value == "" and name not in ("system", "data"):
            raise ValueError(f"{flag} is empty, as with a shell variable that is not set; give a value, or leave the "
                             "option out")  # fmt: skip
        if name == "seed" and isinstance(value, int) and not 0 <= value < 2**32:
            raise ValueError(f"{flag} is {value}, and a seed is a whole number from 0 to 2^32 − 1; 0 is usual")
        for word in value if isinstance(value, tuple) else (value,):
            if isinstance(word, str | Path) and re.search("[\ud800-\udfff]", str(word)):
                raise ValueError(f"{flag} {str(word)!r} is not UTF-8, and what is written about it must be; give "
                                 "another name")  # fmt: skip


def _complain(message: str) -> None:
    from dpo_lab.workbench.cli.terminal import complain  # rich loads only where it is needed

    complain(message)


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
