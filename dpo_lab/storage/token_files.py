"""Token data on a disk: arrays that grow while they are written, and that are read without being held in memory.

A folder holds one .npy file per array and a manifest with their SHA-256. It is written beside its place and then moved
there, and never changed again: other processes may have its files mapped. Knows arrays only, not what stands in them.
"""

from __future__ import annotations

import glob
import json
import mmap
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.storage.files import explain_os_error, flush, sha256_of_file, write_whole

ARRAYS = {"ids": "int32", "bounds": "int64", "weights": "float32", "source_rows": "int64"}
MANIFEST = "token_data.json"
VERSION = 1
A_DAY = 86_400.0  # seconds after which nobody still writes a folder
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
        self._partial = None if folder is None else new_beside(folder)

    def extend(self, pieces: dict[str, np.ndarray]) -> None:
        """Add the rows of each named array, of its dtype."""
        for name, piece in pieces.items():
            if self.folder is None or self._partial is None:
                self._pieces[name].append(piece)
                continue
            with writing_tokens(self.folder):
                if name not in self._files:
                    self._files[name] = _GrowingFile(self._partial / f"{name}.npy", piece.dtype, piece.shape[1:])
                self._files[name].extend(piece)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was added, in memory. At least one piece of each must have been."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}

    def close(self, completions: int) -> None:
        """End the files, write the manifest and move all of it to its place."""
        assert self.folder is not None
        assert self._partial is not None
        with writing_tokens(self.folder):
            for file in self._files.values():
                file.close()
            write_manifest(self._partial, self._files["bounds"].rows, completions)
        put_in_place(self._partial, self.folder)

    def abandon(self) -> None:
        """Close the files and remove them."""
        for file in self._files.values():
            with suppress(OSError):
                file.file.close()
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)


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


def new_beside(folder: Path) -> Path:
    """A new folder beside `folder`, to write what is then put in its place. What a process that was killed left half
    written goes after a day. ValueError where something stands there that is no token data."""
    folder = folder.resolve()
    if folder == Path.cwd():
        raise ValueError(f"{folder} is the current folder, and token ids are moved to their place; name another")
    with writing_tokens(folder):
        if folder.exists() and not (folder / MANIFEST).exists() and not _is_empty(folder):
            raise ValueError(f"{folder} is there and holds no token data; name a new or an empty folder for token ids")
        for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
            if time.time() - old.stat().st_mtime > A_DAY:
                shutil.rmtree(old, ignore_errors=True)
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
        partial.mkdir(parents=True)
    return partial


def put_in_place(partial: Path, folder: Path) -> None:
    """Move a whole folder of token data to its place. What is there already stays, for others may be reading it:
    ValueError where it is of other data."""
    folder = folder.resolve()
    with writing_tokens(folder):
        with suppress(OSError):
            folder.rmdir()  # an empty one
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / MANIFEST).exists():
                shutil.rmtree(partial, ignore_errors=True)
                raise
            is_same = _read(folder / MANIFEST)["files"] == _read(partial / MANIFEST)["files"]
            shutil.rmtree(partial, ignore_errors=True)
            if not is_same:
                raise _of_other_data(folder) from None
            check_manifest(folder, verify=True)


def _of_other_data(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds the token ids of other data, of another tokenizer or of other settings, and "
                      "other runs may be reading them; name another folder, or delete this one")  # fmt: skip


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


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
            raise ValueError(f"{path} should have {expected.get('bytes')} bytes, has {size or 'none'}; delete {folder} "
                             "and tokenise again")  # fmt: skip
        if verify and sha256_of_file(path) != expected.get("sha256"):
            raise ValueError(f"{path} has changed since it was saved (its SHA-256 differs); delete {folder} and "
                             "tokenise again")  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
        if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict):
            return manifest
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged: it is no manifest of token data; delete it and tokenise again")


def writing_tokens(folder: Path) -> AbstractContextManager[None]:
    """Gives an OSError the folder, the reason and the remedy."""
    remedy = "free space or permissions there, or name another folder"
    return explain_os_error(f"the token ids cannot be written to {folder}", remedy)
