"""The judge's checks against those of IFEval: `data/judge_agreement.py`, on few answers and on the saved ones."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_lab.worlds.instructions import KINDS, Demand

ROOT = Path(__file__).resolve().parents[1]
SAVED = ROOT / "data" / "results" / "judge_agreement.json"


@pytest.fixture(scope="module")
def script():
    for name in ("if_verifiable", "immutabledict", "langdetect", "nltk"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install 'if-verifiable' brings it")
    spec = importlib.util.spec_from_file_location("judge_agreement", ROOT / "data" / "judge_agreement.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def demand(kind, **values):
    return Demand(kind, kind, values)


def test_both_call_the_examples_of_our_kinds_met(script):
    from random import Random

    for kind, (_, library) in script.checkers().items():
        if kind == "uppercase":  # the library also asks for English, and its detector takes capital letters for Somali
            continue
        for seed in range(10):
            values = KINDS[kind].draw(Random(seed))
            assert library(KINDS[kind].example(**values), **values), (kind, values)


def test_disagreements_are_counted_with_their_reason(script):
    cases = [
        (demand("max_words", most=4), "A well-known old loaf.", "met here only", "hyphens and apostrophes"),
        (demand("max_words", most=9), "A loaf.", None, None),
        (demand("bold"), "A *loaf* of bread.", "met for the library only", "0 bold parts".replace("0", "N")),
        (demand("json", keys=["name"]), '{"title": "x"}', "met for the library only", "whatever its keys"),
        (demand("title"), "Bread. <<Bread>>", "met for the library only", "anywhere is enough"),
        (demand("sentences", num=2), "Bread is old. It smells", "met for the library only", "unfinished"),
        (demand("include", needed=["silver"]), "All silvery.", "met for the library only", "inside a longer word"),
        (demand("begin", start="Well,"), "well, bread.", "met here only", "the library minds"),
        (demand("quoted"), "“Bread is old.”", "met here only", "curly quotation marks"),
    ]  # fmt: skip
    found = script.compare([(None, (one,), answer) for one, answer, *_ in cases])
    assert found["answers"] == len(cases)
    for kind, asked in found["kinds"].items():
        row = asked["asked"]
        own = [who for one, _, who, _ in cases if one.kind == kind]
        assert row["answers"] == len(own)
        assert row["met_here_only"] == own.count("met here only")
        assert row["met_for_the_library_only"] == own.count("met for the library only")
    for one, _, who, why in cases:
        if who:
            assert any(text.startswith(who) and why in text for text in found["kinds"][one.kind]["disagreements"]), one


def test_the_script_reads_a_file_of_answers_and_writes_table_and_page(script, tmp_path):
    task = {"demands": [{"kind": "lowercase", "values": {}}, {"kind": "steps", "values": {"num": 2}}]}
    answers = ("bread is good and old.", "Bread is good and old.", "")
    rows = [{"task": task, "answer": answer} for answer in answers]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = [sys.executable, str(ROOT / "data" / "judge_agreement.py")]
    command = [*program, "--answers", str(path), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = json.loads((tmp_path / "judge_agreement.json").read_text())
    assert found["answers"] == 3
    assert found["kinds"]["lowercase"]["asked"]["both_met"] == 1
    assert (tmp_path / "judge_agreement.md").read_text() == script.page(found)


def test_the_saved_table_compares_enough_answers_and_explains_what_differs():
    found = json.loads(SAVED.read_text())
    assert found["answers"] >= 500
    unexplained = total = differing = 0
    for kind in found["kinds"].values():
        for how in ("asked", "drawn"):
            row = kind[how]
            total += row["answers"]
            differing += row["met_here_only"] + row["met_for_the_library_only"]
        unexplained += sum(entry["times"] for why, entry in kind["disagreements"].items() if "no reason known" in why)
    assert differing / total < 0.05
    assert unexplained / differing < 0.05
