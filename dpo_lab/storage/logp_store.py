"""The file behind the reference cache: log-probs under 16-byte keys in SQLite. Knows damage and waiting, no models.

Rows are committed after every write: an interruption, even `kill -9`, loses at most what was not written yet. A damaged
file is set aside and begun anew, a damaged row counts as missing; both are logged. Threads may share one object, and
processes one file.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

logger = logging.getLogger("dpo_lab")

T = TypeVar("T")

CACHE_VARIABLE = "DPO_LAB_CACHE"
_MARK = 0x44504F31  # in the file's head, as SQLite has it for the program that a file belongs to
_COLUMNS = [b"key", b"value", b"checksum"]
_PATIENCE = 60.0  # seconds to wait for another process that writes


class LogpStore:
    """Keys → summed log-probs of K completions each.

    path: the file; by default `reference.sqlite` in the folder that DPO_LAB_CACHE names, or in ~/.cache/dpo-lab.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = cache_path(path)
        self._lock = threading.RLock()
        try:
            if self.path.exists() and not self.path.is_file():  # a folder or a device is no damaged file to set aside
                raise OSError("it is no regular file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._store: sqlite3.Connection | None = None
        self._with_store(lambda store: None)

    def lookup(self, keys: list[bytes], num_completions: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored values (N, K) for the keys, and which are missing (N,). Computes nothing."""
        values = np.zeros((len(keys), num_completions), np.float32)
        is_missing = np.ones(len(keys), bool)
        stored: dict[bytes, bytes] = {}
        num_damaged = 0
        for start in range(0, len(keys), 500):
            for key, value, checksum in self._select(keys[start : start + 500]):
                if _is_intact(key, value, checksum, num_completions):
                    stored[key] = value
                else:
                    num_damaged += 1
        if num_damaged:
            logger.warning("%d damaged rows in %s are computed again", num_damaged, self.path)
        for i, key in enumerate(keys):
            if key in stored:
                values[i], is_missing[i] = np.frombuffer(stored[key], "<f4"), False
        return values, is_missing

    def write(self, keys: list[bytes], values: np.ndarray) -> None:
        """Store values (N, K): all of them, or nothing."""
        blobs = [value.astype("<f4").tobytes() for value in values]
        rows = [(key, blob, zlib.crc32(key + blob)) for key, blob in zip(keys, blobs, strict=True)]

        def insert(store: sqlite3.Connection) -> None:
            with store:  # one transaction
                store.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?, ?)", rows)

        self._with_store(insert)

    def add(self, keys: list[bytes], values: np.ndarray) -> None:
        """Store what is not there yet: what processes on other machines have stored only on theirs."""
        _, is_missing = self.lookup(keys, values.shape[1])
        if is_missing.any():
            self.write([keys[i] for i in np.flatnonzero(is_missing)], values[is_missing])

    def __len__(self) -> int:
        return self._with_store(lambda store: store.execute("SELECT count(*) FROM logps").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()

    def _select(self, keys: list[bytes]) -> list[tuple[Any, Any, Any]]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, value, checksum FROM logps WHERE key IN ({marks})"
        return self._with_store(lambda store: store.execute(query, keys).fetchall())

    def _with_store(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Read or write; if the file turns out to be damaged, begin anew and do it again."""
        with self._lock:
            try:
                try:
                    self._store = self._store or _connect(self.path)
                    return action(self._store)
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    if not _is_damage(error):
                        raise
                    self.close()
                    if not _was_store(self.path):  # someone's own file
                        raise OSError(f"it is another kind of file, {error}") from None
                    from dpo_lab.storage.locks import locked

                    # One process at a time: the file that a slower one finds has been begun anew, and must stay.
                    with locked(self.path.with_name(f"{self.path.name}.lock"), patience=_PATIENCE):
                        return self._anew(action)
            except (OSError, sqlite3.OperationalError) as error:
                raise _unwritable(self.path, error) from error

    def _anew(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Read or write again; if the file is still damaged, in a new one."""
        try:
            self._store = _connect(self.path)
            return action(self._store)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
            self.close()
            self._set_aside(error)
        self._store = _connect(self.path)
        return action(self._store)

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{os.getpid()}")
        for suffix in ("-wal", "-shm", ""):  # the file itself last: a log must never meet another's new file
            with suppress(FileNotFoundError):  # another process that shares the store was quicker
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        logger.warning(
            "%s is damaged (%s): set aside as %s, its log-probs are computed again", self.path, error, aside.name
        )


def default_cache_path() -> Path:
    """`reference.sqlite` in the folder that DPO_LAB_CACHE names, or in ~/.cache/dpo-lab."""
    folder = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "dpo-lab"
    return Path(os.path.expanduser(folder)) / "reference.sqlite"


def cache_path(path: str | os.PathLike[str] | None = None) -> Path:
    """The store's file, where the file, its folder or nothing is named."""
    file = Path(os.path.expanduser(path)) if path is not None else default_cache_path()
    with suppress(OSError):
        return file / "reference.sqlite" if file.is_dir() else file
    return file


def token_cache_folder(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder beside a store, named after it, where `preferences.token_cache` saves the token ids of data sets."""
    file = cache_path(path)
    return file.with_name(f"{file.name}-tokens")


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is broken; what went wrong around it has a class of its own, but for one message."""
    return type(error) in (sqlite3.DatabaseError, UnicodeDecodeError) or "unsupported file format" in str(error)


def _is_intact(key: Any, value: Any, checksum: Any, num_completions: int) -> bool:
    """Whether a row is what was written. In a damaged file any column may have become anything."""
    is_whole = isinstance(key, bytes) and isinstance(value, bytes) and len(value) == 4 * num_completions
    return is_whole and zlib.crc32(key + value) == checksum


def _was_store(path: Path) -> bool:
    """Whether a damaged file was a store, by its marks, or is at least called so: only such a one is ever set aside."""
    head = b""
    with suppress(FileNotFoundError), path.open("rb") as file:  # another process may just have set it aside
        head = file.read(2**16)
    marks = b"CREATE TABLE logps" in head or head[68:72] == _MARK.to_bytes(4, "big")
    return marks or not head or path.name == "reference.sqlite"


def _connect(path: Path) -> sqlite3.Connection:
    """Open the store, made if it is not there. Processes of one run do so at the same moment; SQLite lets only one make
    the log and does not let the others wait for it, so they try again (sqlite.org/wal.html, on SQLITE_BUSY)."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _connect_once(path)
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _connect_once(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path.absolute(), timeout=_PATIENCE, check_same_thread=False)  # `ReferenceCache` locks
    store.text_factory = bytes  # damage may turn a blob into text that is no UTF-8
    try:
        verdict = store.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != b"ok":
            raise sqlite3.DatabaseError(verdict.decode(errors="replace"))
        tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = [row[1] for row in store.execute("PRAGMA table_info(logps)")]
        if tables and (tables != {b"logps"} or columns != _COLUMNS):
            what = f"its tables are {', '.join(sorted(name.decode(errors='replace') for name in tables))}"
            is_ours = store.execute("PRAGMA application_id").fetchone()[0] == _MARK
            raise sqlite3.DatabaseError(what) if is_ours else OSError(f"it is another program's database, {what}")
        if not tables:
            store.execute(f"PRAGMA application_id = {_MARK}")
        store.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        store.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing; a power cut the last pass
        store.execute(
            "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER) WITHOUT ROWID"
        )
    except BaseException:
        store.close()
        raise
    return store


def _unwritable(path: Path, error: Exception) -> OSError:
    if "locked" in str(error):
        return OSError(
            f"the reference cache {path} is held by another process ({error}); wait until that one is done, "
            f"or name another folder with --cache or {CACHE_VARIABLE}"
        )
    return OSError(
        f"the reference cache {path} cannot be written ({error}); free space or permissions there, "
        f"or name another folder with --cache or {CACHE_VARIABLE}"
    )
