"""The reference's log-probabilities, computed once, kept on disk, never wrong.

DPO needs log π_ref(y|x) of every pair, and the reference never changes: so it is scored in one pass before training,
and no second model has to stay in memory. The store is content-addressed. The key of a pair is made of the reference's
weights and configuration, the token ids of prompt and completions after truncation, the precision, and the version of
the scoring code. The loss, β, the learning rate, the order and the output folder are not in it, so they change nothing;
whatever would change a value changes the key, so nothing stale is ever served.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import transformers
from torch import nn

from dpo_lab.batching import Layout
from dpo_lab.logprobs import SCORING_VERSION, score
from dpo_lab.lora import adapted_layers, base_weights, is_off
from dpo_lab.models import inner_model
from dpo_lab.preferences import TokenData
from dpo_lab.preferences.token_files import release
from dpo_lab.processes import ALONE, Processes

logger = logging.getLogger("dpo_lab")

T = TypeVar("T")

CACHE_VARIABLE = "DPO_LAB_CACHE"
BLOCK = 2**14
"""Pairs that are looked for, and then scored, together: their keys are in memory meanwhile."""
_PATIENCE = 60.0  # seconds to wait for another process that writes
# Settings that say where a model came from or how it is stored: they change with saving and loading, its values do not.
_UNHASHED_SETTINGS = {"_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "torch_dtype"}
_COLUMNS = [b"key", b"value", b"checksum"]


class CachedLogps(NamedTuple):
    """What a call of `ReferenceCache.logps` found and did."""

    values: np.ndarray  # (N, K) float32, nats
    num_found: int
    num_computed: int


class ReferenceCache:
    """Summed log-probs of completions under frozen models, in one SQLite file that several processes may share.

    path: the file; by default `reference.sqlite` in the folder that DPO_LAB_CACHE names, or in ~/.cache/dpo-lab.
    Rows are committed after every pass through the model: an interruption, even `kill -9`, loses at most that pass.
    A damaged file is set aside and begun anew, a damaged row is computed again; both are logged.
    Threads may share one object: a notebook opens the cache in one thread and trains in another.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = cache_path(path)
        self._lock = threading.RLock()
        try:
            if self.path.exists() and not self.path.is_file():  # a folder or a device is no damaged file to set aside
                raise OSError("it is no regular file")
            if not _may_be_store(self.path):  # someone's own file is no damaged store either
                raise OSError("it is another kind of file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._store = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise _unwritable(self.path, error) from error

    def logps(
        self,
        model: nn.Module,
        data: TokenData,
        *,
        precision: str = "float32",
        layout: Layout = "shared",
        tokens_per_pass: int = 16384,
        progress: Callable[[int, int], None] | None = None,
        processes: Processes = ALONE,
    ) -> CachedLogps:
        """log π(y|x) of every completion in `data`: found in the store, or computed now and stored.

        progress: called with (pairs done, pairs to compute) after each pass.
        processes: of several, each computes and stores its share of what the main process did not find.

        The data is gone through in blocks: beside the values, no more than a block's keys and tokens are held. What a
        killed process left to do is cut into the passes that it would have cut; values differ by rounding at most.
        """
        name, conditions = fingerprint(model), scoring_conditions(model, precision)
        values = np.zeros((len(data), data.num_completions), np.float32)
        is_missing = np.ones(len(data), bool)
        blocks = [slice(start, min(start + BLOCK, len(data))) for start in range(0, len(data), BLOCK)]

        def look(block: slice) -> list[bytes]:
            keys = row_keys(name, data, conditions, block)
            found = processes.from_main(lambda: self.lookup(keys, data.num_completions))
            values[block], is_missing[block] = found
            return keys

        keys, num_done, num_computed, total = [], 0, 0, 0
        for block in blocks:
            keys = look(block)
            total += len(_first_of(keys, is_missing[block]))
        num_found = len(data) - int(is_missing.sum())

        def tell(num: int) -> None:
            if progress is not None:
                progress(min(num_done + num, total), total)

        for block in blocks:
            if not is_missing[block].any():
                continue
            if len(blocks) > 1:  # by now it may be there, from an earlier block or another process
                keys = row_keys(name, data, conditions, block)
                num_done += len(_first_of(keys, is_missing[block]))
                look(block)
                num_done -= len(_first_of(keys, is_missing[block]))
            num = len(_first_of(keys, is_missing[block]))
            part = data.select(block.start + np.flatnonzero(is_missing[block]))
            values[block][is_missing[block]] = self._compute(
                model, part, list(compress(keys, is_missing[block])), tell, processes, layout=layout,
                tokens_per_pass=tokens_per_pass, precision=precision,
            )  # fmt: skip
            num_done, num_computed = num_done + num, num_computed + num
        return CachedLogps(values, num_found, num_computed)

    def _compute(
        self,
        model: nn.Module,
        data: TokenData,
        keys: list[bytes],
        tell: Callable[[int], None],
        processes: Processes,
        **options: Any,
    ) -> np.ndarray:
        """Values (N, K) of rows that are not stored, which then they are. A pair that stands several times is computed
        once."""
        first_of = _first_of(keys, np.ones(len(keys), bool))
        rows = np.array(sorted(first_of.values()), np.int64)
        num_done = 0

        def keep(indices: np.ndarray, scored: np.ndarray) -> None:
            nonlocal num_done
            for row, value in zip(rows[indices], scored, strict=True):
                if not np.isfinite(value).all():
                    raise FloatingPointError(
                        f"the reference gives log-probs {value.tolist()} for row {int(data.source_rows[row])}; "
                        "its weights are broken, or float16 overflows: try precision bfloat16 or float32"
                    )
            self._write([keys[row] for row in rows[indices]], scored)
            num_done += len(indices)
            tell(min(num_done * processes.count, len(rows)))  # the other processes are about as far

        scored = score(model, data.select(rows), progress=keep, processes=processes, **options)
        if processes.count > 1:
            processes.from_main(lambda: self._add([keys[row] for row in rows], scored))
        place_of = {keys[row]: place for place, row in enumerate(rows)}
        return scored[[place_of[key] for key in keys]]

    def lookup(self, keys: list[bytes], num_completions: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored values (N, K) for the keys, and which are missing (N,). Computes nothing."""
        values = np.zeros((len(keys), num_completions), np.float32)
        found: dict[bytes, bytes] = {}
        num_damaged = 0
        for start in range(0, len(keys), 500):
            for key, value, checksum in self._select(keys[start : start + 500]):
                if _is_intact(key, value, checksum, num_completions):
                    found[key] = value
                else:
                    num_damaged += 1
        if num_damaged:
            logger.warning("%d damaged rows in %s are computed again", num_damaged, self.path)
        is_missing = np.ones(len(keys), bool)
        for i, key in enumerate(keys):
            if key in found:
                values[i] = np.frombuffer(found[key], "<f4")
                is_missing[i] = False
        return values, is_missing

    def _add(self, keys: list[bytes], values: np.ndarray) -> None:
        """Store what is not there yet: what processes on other machines have stored only on theirs."""
        _, is_missing = self.lookup(keys, values.shape[1])
        if is_missing.any():
            self._write([keys[i] for i in np.flatnonzero(is_missing)], values[is_missing])

    def __len__(self) -> int:
        """Pairs stored."""
        return self._do(lambda: self._store.execute("SELECT count(*) FROM logps").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._store.close()

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, keys: list[bytes]) -> list[tuple[Any, Any, Any]]:
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, value, checksum FROM logps WHERE key IN ({marks})"
        return self._do(lambda: self._store.execute(query, keys).fetchall())

    def _write(self, keys: list[bytes], values: np.ndarray) -> None:
        rows = [
            (key, blob := value.astype("<f4").tobytes(), zlib.crc32(key + blob))
            for key, value in zip(keys, values, strict=True)
        ]

        def insert() -> None:
            with self._store:  # one transaction: all of the pass, or nothing
                self._store.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?, ?)", rows)

        self._do(insert)

    def _do(self, action: Callable[[], T]) -> T:
        """Read or write; if the file turns out to be damaged, begin anew and do it again."""
        with self._lock:
            try:
                try:
                    return action()
                except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                    if not _is_damage(error):
                        raise
                    self._store.close()
                    self._set_aside(error)
                    self._store = _connect(self.path)
                    return action()
            except (OSError, sqlite3.OperationalError) as error:
                raise _unwritable(self.path, error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self.path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            return _connect(self.path)

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
    return Path(folder).expanduser() / "reference.sqlite"


def cache_path(path: str | os.PathLike[str] | None = None) -> Path:
    """The store's file, where the file, its folder or nothing is named."""
    file = Path(path).expanduser() if path is not None else default_cache_path()
    with suppress(OSError):
        return file / "reference.sqlite" if file.is_dir() else file
    return file


def kept_tokens(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder beside a store, named after it, where the token ids of data sets are kept (`preferences.prepare`)."""
    file = cache_path(path)
    return file.with_name(f"{file.name}-tokens")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over what a model is: its class, its configuration, the state of its adapters, and every weight's name,
    type, shape and bytes. As hex. A model whose adapters are switched off is its base, and has its base's."""
    inner = inner_model(model)
    is_base = is_off(model)
    what = {
        "class": type(inner).__qualname__,
        "settings": _hashed_settings(inner.config.to_dict()),
        "adapters": [] if is_base else _adapter_states(model),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for name, tensor in sorted((base_weights(model) if is_base else model.state_dict()).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hashed_settings(settings: Any) -> Any:
    """The settings without those of `_UNHASHED_SETTINGS`, in a configuration's parts too."""
    if not isinstance(settings, dict):
        return settings
    return {str(key): _hashed_settings(value) for key, value in settings.items() if key not in _UNHASHED_SETTINGS}


def _adapter_states(model: nn.Module) -> list[Any]:
    """What decides an adapter's part beside its weights: its scale, and whether it is on, off or merged (peft)."""
    return [
        (name, getattr(layer, "scaling", None), layer.active_adapters, layer.merged_adapters, layer.disable_adapters)
        for name, layer in adapted_layers(model)
    ]


def scoring_conditions(model: nn.Module, precision: str) -> str:
    """What besides weights and tokens decides a value: the precision, the kind of device, the scoring code, and the
    release of transformers, whose model code computes the forward pass."""
    parameter = next(model.parameters())
    release = ".".join(transformers.__version__.split(".")[:2])
    return f"{precision} {parameter.dtype} {parameter.device.type} v{SCORING_VERSION} transformers {release}"


def row_keys(model_fingerprint: str, data: TokenData, conditions: str, rows: slice = slice(None)) -> list[bytes]:
    """One 16-byte key per row of `data`, or of a run of its rows."""
    prefix = hashlib.blake2b(f"{model_fingerprint} {conditions}".encode(), digest_size=16)
    keys = []
    bounds, ids = np.asarray(data.bounds[rows]), np.asarray(data.ids)
    relative = np.ascontiguousarray(bounds - bounds[:, :1], "<i8")
    for (start, *_, end), own in zip(bounds.tolist(), relative, strict=True):
        digest = prefix.copy()
        digest.update(own.tobytes())
        digest.update(np.ascontiguousarray(ids[start:end], "<i4").tobytes())
        keys.append(digest.digest())
    release(data.ids)
    release(data.bounds)
    return keys


def _first_of(keys: list[bytes], is_missing: np.ndarray) -> dict[bytes, int]:
    """The missing keys, each with the first row that has it."""
    return {keys[i]: int(i) for i in np.flatnonzero(is_missing)[::-1]}


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is broken; what went wrong around it has a class of its own, but for one message."""
    return type(error) in (sqlite3.DatabaseError, UnicodeDecodeError) or "unsupported file format" in str(error)


def _is_intact(key: Any, value: Any, checksum: Any, num_completions: int) -> bool:
    """Whether a row is what was written. In a damaged file any column may have become anything."""
    is_whole = isinstance(key, bytes) and isinstance(value, bytes) and len(value) == 4 * num_completions
    return is_whole and zlib.crc32(key + value) == checksum


def _may_be_store(path: Path) -> bool:
    """Whether a file is SQLite's, empty, or at least called so: only such a one is ever set aside as damaged."""
    if path.suffix in (".sqlite", ".sqlite3", ".db") or not path.exists():
        return True
    with path.open("rb") as file:
        return file.read(16) in (b"", b"SQLite format 3\0")


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
    store = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)  # `ReferenceCache` locks
    store.text_factory = bytes  # damage may turn a blob into text that is no UTF-8
    try:
        verdict = store.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != b"ok":
            raise sqlite3.DatabaseError(verdict.decode(errors="replace"))
        columns = [row[1] for row in store.execute("PRAGMA table_info(logps)")]
        if columns not in ([], _COLUMNS):
            raise sqlite3.DatabaseError(f"its columns are {columns}")
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
