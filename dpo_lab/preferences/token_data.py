"""Prompts and their completions as token ids, flat in four numpy arrays that can be mapped from disk.

N prompts, K completions each: K = 2 for pairs (0 chosen, 1 rejected), K = 1 for examples. Row n lies in one piece of
`ids`, prompt first: bounds[n] = (start, end of prompt, end of completion 0, ..., end of completion K-1).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_ARRAYS = {"ids": "int32", "bounds": "int64", "weights": "float32", "source_rows": "int64"}
_MANIFEST = "token_data.json"
_VERSION = 1


class TokenRow(NamedTuple):
    prompt: np.ndarray
    """(P,) int32"""
    completions: tuple[np.ndarray, ...]
    """K arrays (C_k,) int32"""
    weight: float


@dataclass(frozen=True)
class TokenData:
    """See the module. Slices are views: nothing is copied by looking at a row."""

    ids: np.ndarray
    """(total,) int32: all rows, one behind the other."""
    bounds: np.ndarray
    """(N, K+2) int64: prompt = ids[b[0]:b[1]], completion k = ids[b[k+1]:b[k+2]]."""
    weights: np.ndarray
    """(N,) float32"""
    source_rows: np.ndarray
    """(N,) int64: index into the rows that were given."""

    def __post_init__(self) -> None:
        for name, dtype in _ARRAYS.items():
            assert getattr(self, name).dtype == dtype, f"{name} must be {dtype}, is {getattr(self, name).dtype}"
        assert self.bounds.ndim == 2
        assert self.bounds.shape[1] >= 3, f"bounds must be (N, K+2), is {self.bounds.shape}"
        assert len(self.bounds) == len(self.weights) == len(self.source_rows)

    def __len__(self) -> int:
        return len(self.bounds)

    @property
    def num_completions(self) -> int:
        """K"""
        return self.bounds.shape[1] - 2

    @property
    def prompt_lengths(self) -> np.ndarray:
        """(N,)"""
        return self.bounds[:, 1] - self.bounds[:, 0]

    @property
    def completion_lengths(self) -> np.ndarray:
        """(N, K)"""
        return np.diff(self.bounds[:, 1:], axis=1)

    def row(self, index: int) -> TokenRow:
        bounds = self.bounds[index].tolist()
        parts = [self.ids[start:end] for start, end in pairwise(bounds)]
        return TokenRow(parts[0], tuple(parts[1:]), float(self.weights[index]))

    def select(self, indices: Sequence[int] | np.ndarray) -> TokenData:
        """These rows in this order (a copy); a boolean mask of N works too."""
        indices = np.asarray(indices)
        indices = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(np.int64)
        bounds = self.bounds[indices]
        lengths = bounds[:, -1] - bounds[:, 0]
        starts = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
        # Position i of row n goes from starts[n] + i to bounds[n, 0] + i.
        places = np.arange(lengths.sum()) + np.repeat(bounds[:, 0] - starts, lengths)
        shifted = bounds - (bounds[:, :1] - starts[:, None])
        return TokenData(self.ids[places], shifted, self.weights[indices], self.source_rows[indices])

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Any]]) -> TokenData:
        """From (prompt, completions) or (prompt, completions, weight); ids as lists or arrays.

        Every row needs the same number of completions, none of them empty. A prompt may be empty.
        """
        collector = Collector()
        for index, row in enumerate(rows):
            collector.add(row[0], row[1], row[2] if len(row) > 2 else 1.0, index)
        return collector.data()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Four .npy files and a manifest with their SHA-256, which is written last: half a save does not load."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)
        files = {}
        for name in _ARRAYS:
            path = folder / f"{name}.npy"
            np.save(path, np.ascontiguousarray(getattr(self, name)))
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        manifest = {"version": _VERSION, "rows": len(self), "completions": self.num_completions, "files": files}
        partial = folder / f"{_MANIFEST}.partial"
        partial.write_text(json.dumps(manifest, indent=1))
        partial.replace(folder / _MANIFEST)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool = True) -> TokenData:
        """What `save` wrote. `mmap` leaves the arrays on disk; `verify` reads them once to compare the SHA-256."""
        folder = Path(folder)
        if not (folder / _MANIFEST).exists():
            raise FileNotFoundError(
                f"{folder} holds no {_MANIFEST}: no token data, or saving broke off; tokenise again"
            )
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["version"] != _VERSION:
            raise ValueError(f"{folder} has version {manifest['version']}, this is {_VERSION}; tokenise again")
        for name, expected in manifest["files"].items():
            path = folder / name
            size = path.stat().st_size if path.exists() else None
            if size != expected["bytes"]:
                raise ValueError(f"{path} should have {expected['bytes']} bytes, has {size or 'none'}; tokenise again")
            if verify and _sha256(path) != expected["sha256"]:
                raise ValueError(f"{path} has changed since it was saved (its SHA-256 differs); tokenise again")
        arrays = {}
        for name in _ARRAYS:
            path = folder / f"{name}.npy"
            arrays[name] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        return cls(**arrays)


class Collector:
    """Rows → TokenData, holding arrays only: Python's ints would take seven times the memory."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._pending: list[np.ndarray] = []
        self._lengths: list[tuple[int, ...]] = []
        self._weights: list[float] = []
        self._source_rows: list[int] = []

    def add(self, prompt: Any, completions: Sequence[Any], weight: float, source_row: int) -> None:
        parts = [np.asarray(part, dtype=np.int32) for part in (prompt, *completions)]
        lengths = tuple(map(len, parts))
        if len(lengths) < 2 or (self._lengths and len(lengths) != len(self._lengths[0])):
            wanted = len(self._lengths[0]) - 1 if self._lengths else "at least 1"
            raise ValueError(f"row {source_row} has {len(completions)} completions, needs {wanted}, like the first row")
        if 0 in lengths[1:]:
            raise ValueError(f"row {source_row} has an empty completion; each needs at least its end token")
        self._pending += parts
        self._lengths.append(lengths)
        self._weights.append(weight)
        self._source_rows.append(source_row)
        if len(self._pending) > 10_000:
            self._pieces.append(np.concatenate(self._pending))
            self._pending = []

    def data(self, num_completions: int = 2) -> TokenData:
        """`num_completions` counts only where there is no row to see it from."""
        lengths = np.array(self._lengths, dtype=np.int64).reshape(
            len(self._lengths), -1 if self._lengths else 1 + num_completions
        )
        ends = np.cumsum(lengths.ravel(), dtype=np.int64).reshape(lengths.shape)
        starts = ends[:, :1] - lengths[:, :1]
        empty = np.empty(0, dtype=np.int32)
        return TokenData(
            np.concatenate([*self._pieces, *self._pending, empty]),
            np.concatenate([starts, ends], axis=1),
            np.array(self._weights, dtype=np.float32),
            np.array(self._source_rows, dtype=np.int64),
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
