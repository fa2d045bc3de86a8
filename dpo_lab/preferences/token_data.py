"""Prompts and their completions as token ids, flat in four numpy arrays that can be mapped from disk.

N prompts, K completions each: K = 2 for pairs (0 chosen, 1 rejected), K = 1 for examples. Row n lies in one piece of
`ids`, prompt first: bounds[n] = (start, end of prompt, end of completion 0, ..., end of completion K-1). A completion's
token that is not scored, such as a tool's answer in it, stands as ~id, below zero.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo_lab.storage.token_files import (
    ARRAYS,
    AT_ONCE,
    GrowingArrays,
    check_manifest,
    new_beside,
    parts,
    put_in_place,
    write_manifest,
    writing_tokens,
)

_PENDING = 4096  # rows that are collected before their arrays are joined


def plain(ids: np.ndarray) -> np.ndarray:
    """The ids as a model and a tokenizer know them, whether they are scored or not."""
    return np.maximum(ids, ~ids)


class TokenRow(NamedTuple):
    prompt: np.ndarray
    """(P,) int32"""
    completions: tuple[np.ndarray, ...]
    """K arrays (C_k,) int32, ~id where a token is not scored"""
    weight: float


@dataclass(frozen=True)
class TokenData:
    """See the module. Slices are views: nothing is copied by looking at a row."""

    ids: np.ndarray
    """(total,) int32: all rows, one behind the other."""
    bounds: np.ndarray
    """(N, K+2) int64: prompt = ids[b[0]:b[1]], completion k = ids[b[k+1]:b[k+2]]."""
    weights: np.ndarray
    """(N,) float32: how much a row counts. Of single answers with a label, the sign says whether it is good."""
    source_rows: np.ndarray
    """(N,) int64: index into the rows that were given."""

    def __post_init__(self) -> None:
        for name, dtype in ARRAYS.items():
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

    def lengths(self) -> np.ndarray:
        """Tokens of the prompt and of each completion, (N, K+1) int32: half the memory of `bounds`, and unlike it
        never mapped."""
        lengths = np.empty((len(self), self.num_completions + 1), np.int32)
        for index, bounds in enumerate(parts(self.bounds)):
            lengths[index * AT_ONCE : index * AT_ONCE + len(bounds)] = np.diff(bounds, axis=1)
        return lengths

    def heads(self) -> TokenData:
        """The same prompts, every completion cut to as many scored tokens as the prompt's shortest has."""

        def cut(row: TokenRow) -> list[np.ndarray]:
            scored = [np.flatnonzero(own >= 0) for own in row.completions]
            least = min(map(len, scored))
            return [own[: places[least - 1] + 1] for own, places in zip(row.completions, scored, strict=True)]

        rows = map(self.row, range(len(self)))
        return TokenData.from_rows((row.prompt, cut(row), row.weight) for row in rows)

    def unscored(self) -> np.ndarray:
        """Tokens of each completion that are not scored, (N, K)."""
        counts = np.zeros((len(self), self.num_completions), np.int32)
        found = [np.flatnonzero(part < 0) + index * AT_ONCE for index, part in enumerate(parts(self.ids))]
        if places := np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64).tolist():
            row = np.searchsorted(self.bounds[:, -1], places, side="right")
            completion = (np.asarray(places)[:, None] >= self.bounds[row, 1:-1]).sum(1) - 1
            np.add.at(counts, (row, completion), 1)
        return counts

    def longest(self) -> int:
        """Tokens of the longest prompt with one of its completions; 0 without rows."""
        longest = 0
        for bounds in parts(self.bounds):
            lengths = np.diff(bounds, axis=1)
            longest = max(longest, int((lengths[:, 0] + lengths[:, 1:].max(1)).max()))
        return longest

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Four .npy files and a manifest with their SHA-256, in a new or an empty folder: all of it, or nothing.

        ValueError where the folder holds anything else; the same data may be saved there twice.
        """
        folder = Path(folder)
        partial = new_beside(folder)
        with writing_tokens(folder):
            for name in ARRAYS:
                np.save(partial / f"{name}.npy", np.ascontiguousarray(getattr(self, name)))
            write_manifest(partial, len(self), self.num_completions)
        put_in_place(partial, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mmap: bool = True, verify: bool = True) -> TokenData:
        """What `save` wrote. `mmap` leaves the arrays on disk; `verify` reads them once to compare the SHA-256."""
        folder = Path(folder)
        check_manifest(folder, verify=verify)
        mode = "r" if mmap else None
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False) for name in ARRAYS})


class Collector:
    """Rows → TokenData, holding arrays only: Python's ints would take seven times the memory.

    With a folder the rows go to files there as they come, and the data that is made is mapped from them.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._arrays = GrowingArrays(None if folder is None else Path(folder))
        self._num_completions: int | None = None
        self._end = 0  # tokens that have left `_ids`
        self._clear()

    def _clear(self) -> None:
        self._ids: list[np.ndarray] = []
        self._lengths: list[tuple[int, ...]] = []
        self._weights: list[float] = []
        self._source_rows: list[int] = []

    def add(self, prompt: Any, completions: Sequence[Any], weight: float, source_row: int) -> None:
        ids = [np.asarray(part, dtype=np.int32) for part in (prompt, *completions)]
        lengths = tuple(map(len, ids))
        if len(lengths) < 2 or (self._num_completions is not None and len(completions) != self._num_completions):
            wanted = "at least 1" if self._num_completions is None else self._num_completions
            raise ValueError(f"row {source_row} has {len(completions)} completions, needs {wanted}, like the first row")
        if 0 in lengths[1:]:
            raise ValueError(f"row {source_row} has an empty completion; each needs at least its end token")
        self._num_completions = len(completions)
        self._ids += ids
        self._lengths.append(lengths)
        self._weights.append(weight)
        self._source_rows.append(source_row)
        if len(self._lengths) == _PENDING:
            self._flush(self._num_completions)

    def _flush(self, num_completions: int) -> None:
        lengths = np.array(self._lengths, dtype=np.int64).reshape(-1, num_completions + 1)
        ends = self._end + np.cumsum(lengths.ravel(), dtype=np.int64).reshape(lengths.shape)
        self._arrays.extend({
            "ids": np.concatenate([*self._ids, np.empty(0, np.int32)]),
            "bounds": np.concatenate([ends[:, :1] - lengths[:, :1], ends], axis=1),
            "weights": np.array(self._weights, dtype=np.float32),
            "source_rows": np.array(self._source_rows, dtype=np.int64),
        })  # fmt: skip
        self._end += int(lengths.sum())
        self._clear()

    def data(self, num_completions: int = 2) -> TokenData:
        """`num_completions` counts only where there is no row to see it from."""
        num_completions = self._num_completions or num_completions
        self._flush(num_completions)
        folder = self._arrays.folder
        if folder is None:
            return TokenData(**self._arrays.arrays())
        self._arrays.close(num_completions)
        return TokenData.load(folder, verify=False)  # the sums are of this very moment

    def abandon(self) -> None:
        """Let go of the files after an error; what they hold does not load."""
        self._arrays.abandon()


def content_hash(data: TokenData) -> str:
    """SHA-256 over token ids, bounds and weights, as hex: two data sets with the same hash train alike."""
    digest = hashlib.sha256()
    for array, kind in ((data.ids, "<i4"), (data.bounds, "<i8"), (data.weights, "<f4")):
        for part in parts(array):
            digest.update(np.ascontiguousarray(part, kind).tobytes())
    return digest.hexdigest()
