"""Files that survive a crash: lines of JSON of which at most the last is cut, and files written whole or not at all.

An OSError names the path, the reason and the remedy; damage that no crash explains is refused with the line's number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a file of JSON lines; it is with the operating system when this returns."""
    data = memoryview(_to_line(row))
    with writing(path), open(path, "ab", buffering=0) as file:
        while data:  # a raw write may take only a part, as on a disk that fills up
            data = data[file.write(data) :]


def read_lines(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a file of JSON lines, and whether a last line cut off by a crash was left out.

    A missing file has no rows. ValueError names the line of any other damage.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}); give yourself permission to read it") from error
    rest = lines.pop()  # what follows the last line's end: nothing, unless a write was cut
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _parsed(line)
        if row is None:
            raise ValueError(f"{path}, line {number} is no JSON object; restore the file, or delete that line")
        rows.append(row)
    last = _parsed(rest)
    return rows + ([last] if last is not None else []), bool(rest) and last is None


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace a file of JSON lines as a whole."""
    write_whole(path, b"".join(_to_line(row) for row in rows))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that at every moment either the old or the new one stands there complete."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def sync(path: Path) -> None:
    """Wait until a file is on the disk, where it exists."""
    if path.exists():
        with writing(path), open(path, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Gives an OSError the path, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror or error}); free space or permissions there and go on with "
            "--resume, or choose another folder with --run"
        ) from error


def _to_line(row: Mapping[str, Any]) -> bytes:
    return to_json(spelled(row)) + b"\n"


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


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
