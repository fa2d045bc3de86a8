"""Files that survive a crash: lines of JSON of which at most the last is cut, and files written whole or not at all.

An OSError names the path, the reason and the remedy; damage that no crash explains is refused with the line's number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

RUN_REMEDY = "free space or permissions there and go on with --resume, or choose another folder with --run"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextmanager
def explain_os_error(problem: str, remedy: str) -> Iterator[None]:
    """Give an OSError the problem, such as "PATH cannot be written", the system's reason, and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{problem} ({error.strerror or error}); {remedy}") from error


def writing(path: Path, remedy: str = RUN_REMEDY) -> AbstractContextManager[None]:
    """`explain_os_error` of what is written to a path."""
    return explain_os_error(f"{path} cannot be written", remedy)


# ── whole files ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_whole(path: Path, data: bytes, *, remedy: str | None = RUN_REMEDY) -> None:
    """Write a file so that at every moment either the old or the new one stands there complete. Makes its folder.

    remedy: None leaves an OSError to the caller.
    """
    partial = path.with_name(f".{path.name}.partial")
    with nullcontext() if remedy is None else writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(data)
            flush(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    is_folder = path.is_dir()  # Windows can't open one, and does not need to
    with suppress(OSError) if is_folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ── lines of JSON ────────────────────────────────────────────────────────────────────────────────────────────────────


class Lines(NamedTuple):
    """What stands in a file of JSON lines."""

    rows: list[dict[str, Any]]
    size: int
    """Bytes of the whole lines, the last one's end included where it has one."""
    torn: int
    """Bytes after them: a line that a crash cut off."""
    is_ended: bool
    """Whether the last whole line has its end."""


def read_lines(path: Path) -> Lines:
    """The rows of a file of JSON lines, which is left as it is: `mend` repairs what a crash cut off.

    A missing file has no rows, and a last line that lacks nothing but its end is whole. ValueError names the line of
    any other damage.
    """
    data = b""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file; put the file there that was written")
    with explain_os_error(f"{path} cannot be read", "give yourself permission to read it"), suppress(FileNotFoundError):
        data = path.read_bytes()
    *lines, rest = data.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if (row := _parsed(line)) is None:
            raise ValueError(f"{path}, line {number} is no JSON object; restore the file, or delete that line")
        rows.append(row)
    if b"\0" in rest and not rows:
        raise ValueError(f"{path} holds zeros in place of lines, as after a power cut; restore it, or delete it and "
                         "go on without what it recorded")  # fmt: skip
    if (last := _parsed(rest)) is not None:
        return Lines([*rows, last], len(data), 0, False)
    return Lines(rows, len(data) - len(rest), len(rest), True)


def mend(path: Path, lines: Lines, *, remedy: str = RUN_REMEDY) -> int:
    """Remove what a crash left of the last line, or add its end; returns the size that the file has then."""
    if not lines.torn and lines.is_ended:
        return lines.size
    with writing(path, remedy), open(path, "r+b") as file:
        file.truncate(lines.size)
        if not lines.is_ended:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
    with writing(path, remedy):
        flush(path)
    return lines.size + (not lines.is_ended)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, remedy: str = RUN_REMEDY) -> None:
    """Replace a file of JSON lines as a whole."""
    write_whole(path, b"".join(map(_to_line, rows)), remedy=remedy)


def append_line(
    path: Path, row: Mapping[str, Any], *, expected_size: int | None = None, remedy: str = RUN_REMEDY
) -> int:
    """Add one line to a file of JSON lines, or no part of it; returns the file's size.

    The line is with the operating system when this returns, and with `expected_size` on the disk. A file of another
    size is then refused with a ValueError: someone else wrote to it.
    """
    line, is_checked = _to_line(row), expected_size is not None
    with writing(path, remedy), open(path, "r+b" if is_checked else "ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if is_checked and size != expected_size:
            raise ValueError(
                f"{path} has {size} bytes and had {expected_size} when it was last read: another window or program "
                "wrote to it; open it again, and close the other one"
            )
        try:
            rest = memoryview(line)
            while rest:  # a raw write may take only a part, as on a disk that fills up
                rest = rest[file.write(rest) :]
            if is_checked:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # no half a line where the next one would go on
            raise
    return size + len(line)


def _to_line(row: Mapping[str, Any]) -> bytes:
    return to_json(spelled(row)) + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(value: Any, indent: int | None = None) -> bytes:
    """UTF-8 that a person can read. Half a surrogate pair, as broken bytes may give, becomes JSON's own escape."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "backslashreplace")


def spelled(value: Any) -> Any:
    """The value with NaN and infinities spelled out, which JSON has no numbers for; `number` reads them back."""
    match value:
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case dict():
            return {name: spelled(one) for name, one in value.items()}
        case list() | tuple():
            return [spelled(one) for one in value]
        case _:
            return value


def number(value: Any) -> Any:
    """A number that `spelled` wrote as text, as a float; everything else as it is."""
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"knobs": {"gamma": 1}} as {"knobs.gamma": 1}; an empty dict stays one."""
    values: dict[str, Any] = {}
    for name, value in nested.items():
        is_inner = isinstance(value, dict) and value
        values |= flat(value, f"{prefix}{name}.") if is_inner else {f"{prefix}{name}": value}
    return values
