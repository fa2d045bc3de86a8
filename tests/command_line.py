"""The command `dpo-lab` as a test calls it, and something small for it to work on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dpo_lab.workbench.cli import main
from tests.conftest import ROOT, tiny_llama
from tests.small_tokenizers import CHATML, bpe
from tests.tiny import saved_model

QUICK = ("--samples", "1", "--max-new-tokens", "4", "--kl-prompts", "2", "--batch-size", "4", "--device", "cpu")


class Told(NamedTuple):
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """What it complained about, on one line: without tyro's box, and without folding."""
        return " ".join(re.sub("[╭╮╰╯│─]", " ", self.err).split())


def dpo_lab(capsys: pytest.CaptureFixture[str], *arguments: object) -> Told:
    """Run a command in this process."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit:  # tyro leaves this way
        status = exit.code
    return Told(status, *capsys.readouterr())  # pyright: ignore[reportArgumentType]


def dpo_lab_process(*arguments: object, before: str = "", timeout: float = 300, **options: Any) -> Told:
    """Run a command in a process of its own, after the lines of Python in `before`."""
    code = f"import sys\nfrom dpo_lab.workbench.cli import main\n{before}\nsys.exit(main())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | options.pop("env", {})
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, **options)
    return Told(done.returncode, done.stdout, done.stderr)


def chat_model(folder: Path, *, seed: int = 0) -> Path:
    """A folder with a tiny random Llama and a tokenizer of 400 tokens with a chat template."""
    return saved_model(folder, tiny_llama(400, seed=seed), bpe(template=CHATML, eos="<|im_end|>"))


def some_rows(num: int = 24) -> list[dict[str, Any]]:
    """Made-up preferences with as many distinct prompts: a short answer is preferred to a long one."""
    return [
        {
            "prompt": f"What does the cat say to dog {i}?",
            "chosen": f"It says {i}.",
            "rejected": f"The cat sat on the mat and the dog {i} sat on the cat.",
        }
        for i in range(num)
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without the one value that no two runs share."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
