"""Locks between processes that the operating system lets go when their holder dies, however it dies."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger("dpo_lab")


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


@contextmanager
def held_alone(path: Path, what: str) -> Iterator[None]:
    """Hold the lock `path` at once or not at all. OSError names the process that holds it, its machine, and since when.

    what: of the message, such as "the run runs/first". Between machines it is as good as the disk's locks are.
    """
    # Some network disks have no locks: there two runs in one folder are the user's to avoid.
    lock, holder = FileLock(path, timeout=0, thread_local=False), path.with_name(f"{path.name}-holder")
    try:
        lock.acquire()
    except Timeout:
        who = "another process"
        with suppress(OSError):
            who = holder.read_text(encoding="utf-8") or who
        raise OSError(f"{what} is held by {who}: two would mix what they write; wait for it or stop it, and where it "
                      f"is gone for good, delete {path}") from None  # fmt: skip
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        logger.warning("%s lies on a disk without locks (%s): see to it that nobody else writes to it", what, error)
        yield
        return
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since "
                          f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", encoding="utf-8")  # fmt: skip
        yield
    finally:
        holder.unlink(missing_ok=True)
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
