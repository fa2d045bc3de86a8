"""A command in the documentation is a claim: each is read by the parser of the program that it names."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dpo_lab.workbench.cli import parse
from tests.conftest import ROOT

PAGES = ("README.md", "dpo_lab/workbench/README.md", "notebooks/README.md")
PLACES = [*(ROOT / page for page in PAGES), *sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
PROGRAMS = ("dpo-lab ", "accelerate launch ", "torchrun ")


def commands_of(path: Path) -> list[str]:
    """Lines of fenced blocks that begin with one of the programs; a backslash goes on to the next line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in re.sub(r"\\\n\s*", "", block).split("\n")]
    return [line for line in lines if line.startswith(PROGRAMS)]


def read_command(line: str) -> object:
    """The options of `dpo-lab` that a line ends in, after its launcher has read its own part. SystemExit if wrong."""
    program, *words = shlex.split(line, comments=True)
    if program == "dpo-lab":
        return parse(words)
    if program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        read = launch_command_parser().parse_args(words[1:])
    else:
        from torch.distributed.run import get_args_parser

        read = get_args_parser().parse_args(words)
    assert read.module, f"{line}: -m names the package"
    assert read.training_script == "dpo_lab", line
    return parse(read.training_script_args)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.parent.name + "/" + path.stem)
def test_every_documented_command_is_understood(path: Path):
    for line in commands_of(path):
        assert read_command(line) is not None


@pytest.mark.parametrize(
    "line",
    [
        "accelerate launch --multi_gpu --num_processes 4 -m dpo_lab train --beta 0.1",
        "accelerate launch --num_processes 4 --use_fsdp --fsdp_version 2 --fsdp_reshard_after_forward true "
        "-m dpo_lab train --beta 0.1",
        "accelerate launch --multi_gpu --num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 "
        "--main_process_port 29500 -m dpo_lab train --beta 0.1",
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29500 "
        "-m -- dpo_lab train --beta 0.1 --run runs/first  # on both",
        "dpo-lab train --beta 0.1",
    ],
)
def test_the_launchers_hand_over_the_options(line: str):
    assert vars(read_command(line))["beta"] == 0.1


@pytest.mark.parametrize("line", ["dpo-lab train --betta 1", "torchrun --nprocs 2 -m dpo_lab train"])
def test_a_wrong_command_is_noticed(line: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        read_command(line)
    assert capsys.readouterr().err


def test_commands_are_found_in_blocks_and_joined(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("dpo-lab no\n\n```sh\nmake demo\ndpo-lab train \\\n    --beta 1  # hotter\n```\n")
    (line,) = commands_of(page)
    assert line == "dpo-lab train --beta 1  # hotter"
    assert vars(read_command(line))["beta"] == 1.0
