"""Locks between processes that the operating system lets go when their holder dies, however it dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(path: Path, *, patience: float = 60.0) -> Iterator[None]:
    """Hold the lock `path`; OSError where another process holds it for longer than `patience` seconds."""
    # One thread may begin what another ends: a panel's generator is closed by whoever drops it.
    lock = FileLock(path, timeout=patience, thread_local=False)
    try:
        lock.acquire()
    except OSError as error:
        raise OSError(
            f"{path} is held by another process, or can't be written ({error}); wait for that process, or give "
            "yourself permission to write there"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether some living process holds the lock. A lock that nobody ever took is not held."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
