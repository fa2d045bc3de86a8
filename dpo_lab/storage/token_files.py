"""Token data on a disk: arrays that grow while they are written, and that are read without being held in memory.

A folder holds one .npy file per array and a manifest with their SHA-256, which is written last: half a folder does
not load. Knows arrays only, not what stands in them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.storage.files import explain_os_error, flush, sha256_of_file, write_whole

ARRAYS = {"ids": "int32", "bounds": "int64", "weights": "float32", "source_rows": "int64"}
MANIFEST = "token_data.json"
VERSION = 1
AT_ONCE = 2**18  # entries of an array that are looked at together: a megabyte or two


def parts(array: np.ndarray, at_once: int = AT_ONCE) -> Iterator[np.ndarray]:
    """The array in pieces of `at_once` rows, in order. Of a mapped array no more than a piece stays in memory."""
    for start in range(0, len(array), at_once):
        yield array[start : start + at_once]
        release(array)


def release(array: np.ndarray) -> None:
    """Let the system drop a mapped array's pages from memory: the file has them when they are read again. Nothing
    happens to an array that is not mapped."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise"):  # not on Windows
        with suppress(ValueError, OSError):
            mapped.madvise(mmap.MADV_DONTNEED)


class GrowingArrays:
    """Arrays that rows are added to, in memory or, with a folder, in files that need no more memory as they grow."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._pieces: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
        self._files: dict[str, _GrowingFile] = {}
        if folder is not None:
            with writing_tokens(folder):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / MANIFEST).unlink(missing_ok=True)  # what stands there is no longer whole

    def extend(self, pieces: dict[str, np.ndarray]) -> None:
        """Add the rows of each named array, of its dtype."""
        for name, piece in pieces.items():
            if self.folder is None:
                self._pieces[name].append(piece)
                continue
            with writing_tokens(self.folder):
                if name not in self._files:
                    self._files[name] = _GrowingFile(self.folder / f"{name}.npy", piece.dtype, piece.shape[1:])
                self._files[name].extend(piece)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was added, in memory. At least one piece of each must have been."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}

    def close(self, completions: int) -> None:
        """End the files and write the manifest: the folder can be loaded from now on."""
        assert self.folder is not None
        with writing_tokens(self.folder):
            for file in self._files.values():
                file.close()
            write_manifest(self.folder, self._files["bounds"].rows, completions)

    def abandon(self) -> None:
        """Close the files; without a manifest they do not load."""
        for file in self._files.values():
            with suppress(OSError):
                file.file.close()


class _GrowingFile:
    """A .npy file whose first axis grows. Numpy leaves room in the header for the length that it will have."""

    def __init__(self, path: Path, dtype: np.dtype, inner: tuple[int, ...]) -> None:
        self.rows, self.dtype, self.inner = 0, dtype, inner
        self.path, self.file = path, path.open("wb")
        self._header()
        self._start = self.file.tell()

    def extend(self, piece: np.ndarray) -> None:
        assert piece.dtype == self.dtype
        assert piece.shape[1:] == self.inner
        self.file.write(np.ascontiguousarray(piece).data.cast("B") if piece.size else b"")
        self.rows += len(piece)

    def close(self) -> None:
        self.file.seek(0)
        self._header()
        assert self.file.tell() == self._start, "the header has another length than it had"
        self.file.close()
        flush(self.path)

    def _header(self) -> None:
        shape = (self.rows, *self.inner)
        about = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, about)


def write_manifest(folder: Path, rows: int, completions: int) -> None:
    """What the folder holds, with the size and the SHA-256 of each file."""
    paths = [folder / f"{name}.npy" for name in ARRAYS]
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)} for path in paths}
    manifest = {"version": VERSION, "rows": rows, "completions": completions, "files": files}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1).encode(), remedy=None)


def check_manifest(folder: Path, *, verify: bool) -> None:
    """Whether the folder holds what its manifest says. FileNotFoundError or ValueError name what is wrong."""
    path = folder / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: no token data, or saving broke off; tokenise again")
    manifest = _read(path)
    if manifest.get("version") != VERSION:
        raise ValueError(f"{folder} has version {manifest.get('version')}, this is {VERSION}; tokenise again")
    for name in ARRAYS:  # never by the manifest's names: they could lead out of the folder
        path = folder / f"{name}.npy"
        expected = manifest["files"].get(path.name, {})
        size = path.stat().st_size if path.exists() else None
        if size != expected.get("bytes"):
            raise ValueError(f"{path} should have {expected.get('bytes')} bytes, has {size or 'none'}; tokenise again")
        if verify and sha256_of_file(path) != expected.get("sha256"):
            raise ValueError(f"{path} has changed since it was saved (its SHA-256 differs); tokenise again")


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
            return manifest
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged: it is no manifest of token data; tokenise again")


def writing_tokens(folder: Path) -> AbstractContextManager[None]:
    """Gives an OSError the folder, the reason and the remedy."""
    remedy = "free space or permissions there, or name another folder"
    return explain_os_error(f"the token ids cannot be written to {folder}", remedy)
