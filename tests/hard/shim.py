"""The compiled `shim.c`: a full disk and a jumping clock, for a process that was started with it and for its forks."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")


def built(folder: Path) -> dict[str, str]:
    """The variables of the environment that put the shim under a process. Skips where nothing can compile it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the shim needs Linux and a C compiler")
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def room(folder: Path, num_bytes: int) -> None:
    """Files under `folder` take so many bytes more, in this process and those that it forks; -1 is no limit."""
    _library().fault_room(str(folder).encode(), ctypes.c_long(num_bytes))


def room_left() -> int:
    left = _library().fault_room_left
    left.restype = ctypes.c_long
    return left()


def clock(seconds: int) -> None:
    """The wall clock is off by up to so many seconds at every reading; 0 is right."""
    _library().fault_clock(ctypes.c_long(seconds))


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
