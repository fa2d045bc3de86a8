"""A bounded run of the fuzz target; `python -m tests.hard.fuzz_loading` runs it for as long as one likes."""

from __future__ import annotations

from itertools import islice

import pytest

from tests.hard.fuzz_loading import attempts, seeds


def run(folder, num: int, seed: int) -> None:
    crashes = [(path, problem) for _, path, problem in islice(attempts(folder, seed), num) if problem is not None]
    for path, problem in crashes[:1]:
        raise AssertionError(f"{path.relative_to(folder)}: {path.read_bytes()[:300]!r}") from problem


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_spoilt_files_are_read_or_refused_by_name(tmp_path):
    run(tmp_path, 300, seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ten_thousand_spoilt_files(tmp_path):
    run(tmp_path, 10_000, seed=1)


def test_the_files_that_are_spoilt_are_sound(tmp_path):
    from random import Random

    for name, (content, load) in seeds(Random(0)).items():
        if content and not name.startswith("bad"):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            load(path)
