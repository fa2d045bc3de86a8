"""`dpo-lab evaluate --suite` and `--against`: what they print, what they write, and what they refuse."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tests.command_line import chat_model, dpo_lab, some_rows, write_rows

SHORT = ("--limit", 8, "--max-new-tokens", 6, "--device", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return chat_model(folder / "model"), chat_model(folder / "other", seed=1)


@pytest.fixture
def tell(capsys, monkeypatch, tmp_path):
    """Call `dpo-lab evaluate` in an empty folder, at 120 columns and on one thread."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *arguments: dpo_lab(capsys, "evaluate", *arguments)
    torch.set_num_threads(threads)


def row_of(out: str, name: str) -> list[str]:
    return next(line.removeprefix(name).split() for line in out.splitlines() if line.startswith(f"{name} "))


def test_suites_are_printed_and_written_with_every_answer(tell, models, tmp_path):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat. " * 40)
    pairs = write_rows(tmp_path / "pairs.jsonl", some_rows(6))
    told = tell(
        "--suite", "instructions,perplexity,repetition", "--model", models[0], "--reference", models[1], "--text",
        "mine.txt", "--pairs", pairs, "--out", "out/found.json", *SHORT,
    )  # fmt: skip
    assert (told.status, told.err) == (0, "")
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert {"instructions", "perplexity", "repetition", "answers", "conditions", "model"} <= found.keys()
    assert found["conditions"]["num_tasks"] == len(found["answers"]) == 8
    assert set(found["perplexity"]) == {"mine.txt", "chosen of pairs.jsonl"}
    for name, value in (
        ("demands met", found["instructions"]["demands_met"]),
        ("kl", found["instructions"]["kl"]),
        ("cut at limit", found["repetition"]["cut_at_limit"]),
        ("mine.txt: ratio to reference", found["perplexity"]["mine.txt"]["ratio_to_reference"]),
    ):
        assert row_of(told.out, name) == [*(f"{value[one]:.3f}" for one in ("value", "low", "high")), str(value["n"])]
    assert "all of it, with every answer: out/found.json" in told.out


def test_a_suite_needs_no_reference_and_the_seed_decides(tell, models):
    run = lambda *more: tell("--suite", "repetition", "--model", models[0], *SHORT, *more)
    once = run()
    assert once.status == 0
    assert "reference" not in once.out
    assert run().out == once.out
    assert run("--seed", 1).out != once.out


def test_a_model_against_itself_ties_and_against_another_by_the_worlds_judge(tell, models, tmp_path):
    told = tell("--against", models[0], "--model", models[0], *SHORT)
    assert told.status == 0
    assert "0 wins, 0 losses, 8 ties, 0 disagreements" in told.out
    assert row_of(told.out, "win rate")[0] == "0.500"
    told = tell("--against", models[1], "--model", models[0], "--suite", "repetition", "--out", "o.json", *SHORT)
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["against"]["answers"] == [one["answer"] for one in found["answers"]], "sampled once"
    assert sum(found["against"]["counts"].values()) == len(found["against"]["others"]) == 8


def test_a_judge_of_ones_own_on_prompts_of_ones_own(tell, models, tmp_path):
    (tmp_path / "my_judge.py").write_text(
        "def longer(prompt, first, second):\n"
        "    assert prompt.startswith('What does the cat say')\n"
        "    return 0.5 if len(first) == len(second) else len(first) > len(second)\n"
        "def first(prompt, *answers):\n    return 1\n"
    )
    pairs = write_rows(tmp_path / "pairs.jsonl", some_rows(6))
    common = ("--against", models[1], "--model", models[0], "--pairs", pairs, *SHORT, "--out", "o.json")
    path = list(sys.path)
    assert tell(*common, "--judge", "my_judge:longer").status == 0
    assert sys.path == path
    found = json.loads((tmp_path / "o.json").read_text())["against"]
    sides = zip(found["answers"], found["others"], strict=True)
    assert found["outcomes"] == [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in sides]
    told = tell(*common[:-1], "other.json", "--judge", "my_judge:first")
    assert "0 wins, 0 losses, 0 ties, 6 disagreements" in told.out
    assert row_of(told.out, "first preferred")[0] == "1.000"


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (("--suite", "perplexty"), "suite 'perplexty' is not known; choose among instructions, perplexity, repetition"),
        (("--suite", "repetition", "--limit", 0), "limit must be at least 1 task, got 0; 200 are usual"),
        (("--suite", "repetition", "--table", "t.csv"), "--table t.csv is of pairs; name a .json file with --out"),
        (("--out", "o.json"), "--out o.json is for --suite and --against; give one of them too"),
        (("--suite", "repetition", "--out", "o.csv"), "o.csv must end in .json"),
        (("--suite", "perplexity", "--text", "none.txt"), "--text none.txt cannot be read (No such file"),
        (("--suite", "perplexity", "--text", "bytes.txt"), "--text bytes.txt is not UTF-8"),
        (("--suite", "repetition", "--pairs", "p.jsonl"), "--pairs p.jsonl is of no use here"),
        (("--against", "x", "--judge", "mine"), "judge 'mine' is not known; take instructions, or name a function"),
        (("--against", "x", "--judge", "no_module:f"), "No module named 'no_module'; name a module that Python finds"),
        (("--against", "x", "--judge", "json:no"), "json has no function 'no'; name one of (prompt, first, second)"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(tell, tmp_path, arguments, say):
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    told = tell("--model", "no/model", *arguments)
    assert told.status == 2
    assert say in told.message
    assert "no/model" not in told.message
