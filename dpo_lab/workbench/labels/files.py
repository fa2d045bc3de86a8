"""Lines of JSON on a disk: written whole, added one by one, and read back after a kill at any byte."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger("dpo_lab")


def write_whole(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the lines under a temporary name, flush, rename: the file is there complete, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(b"".join(map(_line, rows)))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)


def append_line(path: Path, row: dict[str, Any], size: int) -> int:
    """Add a line to a file that has `size` bytes, wait until it is on the disk, and return the new size.

    Another size means that someone else wrote: that is refused, since choices would be made twice.
    """
    line = _line(row)
    with _told(path), open(path, "r+b", buffering=0) as file:
        found = file.seek(0, os.SEEK_END)
        if found != size:
            raise ValueError(
                f"{path} has {found} bytes and had {size} when it was last read: another window or program wrote to "
                "it; open it again, and close the other one"
            )
        try:
            rest = memoryview(line)
            while rest:  # a raw write may take only a part, as on a disk that fills up
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)  # no half a line where the next one would go on
            raise
    return size + len(line)


class Lines(NamedTuple):
    """What stands in a file of JSON lines."""

    rows: list[dict[str, Any]]
    size: int
    """Bytes of the whole lines, the last one's end included where it has one."""
    torn: int
    """Bytes after them: a line that a kill cut off."""
    is_ended: bool
    """Whether the last whole line has its end."""


def read_lines(path: Path) -> Lines:
    """The rows of a file, which is left as it is: `mend` puts right what a kill cut off.

    A last line that lacks nothing but its end is whole. ValueError names any other damaged line.
    """
    with _told(path, "read"):
        data = path.read_bytes()
    *lines, rest = data.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if (row := _parsed(line)) is None:
            raise ValueError(f"{path}, line {number} is no JSON object; restore the file, or delete that line")
        rows.append(row)
    if (last := _parsed(rest)) is not None:
        return Lines([*rows, last], len(data), 0, False)
    return Lines(rows, len(data) - len(rest), len(rest), True)


def mend(path: Path, lines: Lines) -> int:
    """Take away what a kill left of the last line, or give it its end; returns the size that the file has then."""
    if not lines.torn and lines.is_ended:
        return lines.size
    with _told(path), open(path, "r+b") as file:
        file.truncate(lines.size)
        if not lines.is_ended:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())
    if lines.torn:
        logger.warning("%s ended in a line that was cut off after %d bytes; it is taken away", path, lines.torn)
    return lines.size + (not lines.is_ended)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _flush_folder(folder: Path) -> None:
    """A new name is safe once its folder is on the disk; some systems (Windows) can't open a folder, nor need to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _told(path: Path, verb: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be {verb} ({error.strerror or error}); free space or permissions there, or name another "
            "file; what was chosen before is safe"
        ) from error
