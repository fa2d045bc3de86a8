"""Locks between processes that the operating system lets go when their holder dies, however it dies.

A lock is a transaction on an SQLite file: it works wherever Python does, and needs no clock to tell the dead from the
slow.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Hold the lock `path`; OSError where another process holds it for longer than `patience` seconds."""
    # One thread may begin what another ends: a panel's generator is closed by whoever drops it.
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    with closing(connection):
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{path} is held by another process, or can't be written ({error}); wait for that process, or give "
                "yourself permission to write there"
            ) from error
        yield


def is_held(path: Path) -> bool:
    """Whether some living process holds the lock. A lock that nobody ever took is not held."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return True
            raise
    return False
