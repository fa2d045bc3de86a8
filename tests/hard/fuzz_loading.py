"""Files of random and of slightly wrong bytes for every loader. What comes out is rows, or one error that names the
file; anything else is a crash.

    python -m tests.hard.fuzz_loading --seconds 60 --seed 3

Files that made a loader crash are kept in the folder that is named at the end.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import logging
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np

from dpo_lab.preferences import TokenData, read_examples, read_preferences, stream_preferences
from dpo_lab.workbench.labels import LabelBook
from dpo_lab.workbench.runs import Run
from dpo_lab.workbench.sweeps.study import read_settings
from tests.hard.bad_rows import bad_lines, good_row

# What parsers stumble over, put in anywhere.
PIECES = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b'"', b"{", b"}", b"[", b"]", b",", b":", b"null",
          b"1e999", b"-0", b"\\u0000", b"\\ud800", b"NaN", b"\xf0\x9f", b"a" * 3000, b"[" * 3000, b"PAR1",
          b"\x1f\x8b")  # fmt: skip
EXPECTED = (ValueError, OSError)  # `BadRow` is a ValueError

Load = Callable[[Path], object]


def seeds(random: Random) -> dict[str, tuple[bytes, Load]]:
    """A good file of each kind, by its name, and what loads it. A name may lie in a folder."""
    rows = [good_row(random) for _ in range(random.randint(1, 6))]
    plain = [{"prompt": f"a {i}", "chosen": "b", "rejected": "c"} for i in range(3)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    table = "prompt,chosen,rejected\n" + "".join(f'a {i},"b, ""{i}""",c\n' for i in range(3))
    both = lambda path: (read(path, read_preferences), read(path, read_examples))
    return {
        "a.jsonl": (lines, both),
        "bad.jsonl": (b"\n".join(bad_lines(5, random.randrange(10**6))), both),
        "stream.jsonl": (lines, lambda path: list(stream_preferences(path, on_bad_row="skip")[0])),
        "a.json": (json.dumps(rows).encode(), both),
        "inside.json": (json.dumps({"data": plain}).encode(), both),
        "a.csv": (table.encode(), both),
        "a.jsonl.gz": (gzip.compress(lines), both),
        "a.json.gz": (gzip.compress(json.dumps(plain).encode()), both),
        "a.parquet": (parquet(plain), both),
        "run/config.json": (json.dumps({"command": "train", "settings": {"beta": 0.1}}).encode(), look_at_run),
        "run/metrics.jsonl": (b'{"kind": "step", "step": 1, "loss": 0.5, "seconds": 1.0}\n', look_at_run),
        "book.jsonl": (book(), LabelBook.open),
        "tokens/token_data.json": (b"", look_at_tokens),
        "tokens/bounds.npy": (b"", look_at_tokens),
        "sweep/sweep.json": (b'{"beta": "0.1,0.5", "trials": 3}', lambda path: read_settings(path.parent).check()),
    }  # fmt: skip


def read(path: Path, reader: Callable[..., object]) -> object:
    """Skipping bad rows; then again, stopping at the first."""
    try:
        return reader(path, on_bad_row="skip")
    except EXPECTED as problem:
        if path.name not in str(problem):
            raise AssertionError(f"the message does not name {path.name}: {problem}") from problem
    return reader(path)


def parquet(rows: list[dict[str, str]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def book() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.jsonl"
        labels = LabelBook.open(path, [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3, who="me")
        labels.choose("left")
        labels.undo()
        return path.read_bytes()


def look_at_run(path: Path) -> object:
    """A run of which one file is what was made up."""
    config = path.parent / "config.json"
    if not config.exists():
        config.write_text('{"command": "train"}')
    run = Run.load(path.parent)
    return run.metrics, run.summary()


def look_at_tokens(path: Path) -> object:
    """Token data of which one file is changed: the others, and the content of this one, are sound."""
    sound = TokenData.from_rows([([1, 2], ([3], [4, 5])), ([6], ([7], [8]))])
    changed = path.read_bytes()
    sound.save(path.parent)
    content = bytearray(path.read_bytes())
    for index, byte in enumerate(changed[: len(content)]):
        content[index * 7 % len(content)] ^= byte
    path.write_bytes(content)
    data = TokenData.load(path.parent)
    assert np.array_equal(data.ids, sound.ids)
    return data


def spoilt(content: bytes, random: Random) -> bytes:
    """The bytes with a few mistakes: changed, cut out, put in, doubled, or all of them made up."""
    data = bytearray(content)
    for _ in range(random.choice((0, 1, 1, 2, 3, 8))):
        at = random.randrange(len(data) + 1)
        end = min(len(data), at + random.choice((1, 1, 2, 8, 64)))
        match random.randrange(6):
            case 0:
                data[at:at] = random.choice(PIECES)
            case 1:
                del data[at:end]
            case 2:
                data[at:end] = random.randbytes(end - at)
            case 3:
                data[at:at] = data[at:end]
            case 4:
                del data[at:]
            case _ if data:
                data[at % len(data)] ^= 1 << random.randrange(8)
    return random.randbytes(random.randrange(200)) if random.random() < 0.05 else bytes(data)


def attempts(folder: Path, seed: int) -> Iterator[tuple[str, Path, Exception | None]]:
    """One spoilt file after the other: its kind, where it lies, and the crash where there was one. Without end."""
    for number in itertools.count():
        random = Random(f"{seed} {number}")
        kinds = seeds(random)
        name = sorted(kinds)[number % len(kinds)]
        content, load = kinds[name]
        path = folder / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(spoilt(content or random.randbytes(random.randrange(1, 40)), random))
        try:
            load(path)
        except EXPECTED as problem:
            told = (path.name, path.parent.name) if "/" in name else (path.name,)
            is_named = any(piece in str(problem) for piece in told) or name.startswith("sweep/")
            yield name, path, None if is_named else AssertionError(f"the message names no file: {problem}")
        except Exception as problem:
            yield name, path, problem
        else:
            yield name, path, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    folder, until = Path(tempfile.mkdtemp(prefix="fuzz-")), time.monotonic() + arguments.seconds
    tried, crashes = Counter[str](), []
    for name, path, problem in attempts(folder, arguments.seed):
        tried[name] += 1
        if problem is not None:
            crashes.append(path)
            print(f"{path}:", *traceback.format_exception(problem)[-3:], sep="\n  ")
        if time.monotonic() > until or len(crashes) == 20:
            break
    print(
        f"{tried.total():,} files, {len(crashes)} crashes; kept in {folder}" if crashes else f"{tried.total():,} files"
    )
    return bool(crashes)


if __name__ == "__main__":
    sys.exit(main())
