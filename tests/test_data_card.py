"""The cards in data/README.md tell the truth: manifest, files, settings, judged examples and counts are checked here.

What needs the manifest skips until `make data` has written it.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import math
import re
import sys
from itertools import islice, pairwise
from random import Random
from statistics import mean
from types import ModuleType
from typing import Any

import pytest

from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import (
    JOBS,
    Conversation,
    judge,
    safety,
    sample_conversation,
    tools,
    words,
    write_answer,
)
from dpo_lab.worlds.pocket.english import ENGLISH
from dpo_lab.worlds.pocket.judge import EARNED, SPECS
from dpo_lab.worlds.pocket.quality import quality
from dpo_lab.worlds.pocket.system_prompts import PERSONAS, RULES
from tests.conftest import ROOT
from tests.pocket_verdicts import GROUPS

DATA = ROOT / "data"
CARD = (DATA / "README.md").read_text(encoding="utf-8")
BLOCKS = ("pairs", "row", "model", "quality")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """data/build.py, which is a script and in no package."""
    sys.path.insert(0, str(DATA))
    try:
        spec = importlib.util.spec_from_file_location("pocket_build", DATA / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["pocket_build"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DATA))
    return module


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    path = DATA / "manifest.json"
    if not path.exists():
        pytest.skip("data/manifest.json is absent; `make data` writes it")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def pairs(manifest: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {split: list(corpus.read_rows(DATA / "pairs" / f"{split}.jsonl.gz")) for split in manifest["pairs"]}


# What is written by hand


def tables(text: str) -> list[list[list[str]]]:
    """The markdown tables of a text, each as rows of cells without its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    cells = lambda line: [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
    return [[cells(line) for line in block.splitlines()[2:]] for block in blocks]


def section(title: str) -> str:
    """From a heading to the next one of the same depth or above."""
    (depth,) = re.findall(rf"^(#+) {re.escape(title)}$", CARD, re.MULTILINE)
    body = CARD.split(f"\n{depth} {title}\n")[1]
    return re.split(rf"^#{{1,{len(depth)}}} ", body, flags=re.MULTILINE)[0]


def judged_examples() -> list[tuple[str, str, list[str]]]:
    """Name of the conversation, its line in the card, and the cells of each row below it."""
    found = []
    for name, line, table in re.findall(
        r"^\*\*(.+?)\*\* (.*)\n\n((?:\|.*\n)+)", section("Judged examples"), re.MULTILINE
    ):
        found += [(name, line, row) for row in tables(table)[0]]
    return found


EXAMPLES = judged_examples()
CONVERSATIONS = {name: conversation for name, conversation, _ in GROUPS}


@pytest.mark.parametrize(("name", "line", "row"), EXAMPLES)
def test_a_judged_example_is_what_the_judge_says(name, line, row):
    conversation = CONVERSATIONS[name]
    for message in conversation.messages:
        assert f"{message['role']}: `{message['content']}`".lower() in line.lower()
    for tool in conversation.tools or ():
        assert f"`{tool['function']['name']}({', '.join(tool['function']['parameters']['properties'])})`" in line
    answer, reward, success, _, reason = row
    verdict = judge(conversation, answer.strip("`").replace("\\n", "\n"))
    assert f"{verdict.reward:.2f}" == reward
    assert ("yes" if verdict.success else "no") == success
    assert verdict.reason == reason


def test_the_judged_examples_cover_all_jobs_and_show_the_judge_at_fault_both_ways():
    assert {CONVERSATIONS[name].job for name, *_ in EXAMPLES} == set(JOBS)
    assert all(row[3] in ("yes", "no") for *_, row in EXAMPLES)
    for job in JOBS:
        verdicts = {(row[2], row[3]) for name, _, row in EXAMPLES if CONVERSATIONS[name].job == job}
        assert {("yes", "yes"), ("no", "no"), ("yes", "no")} <= verdicts, job
    assert sum((row[2], row[3]) == ("no", "yes") for *_, row in EXAMPLES) >= 2


def test_the_table_of_parts_is_what_the_judge_pays():
    """Points of every part and the range of free words, for each kind of conversation."""
    rng, paid, free = Random(0), {}, {}
    for k in range(4000):
        conversation = sample_conversation(rng, JOBS[k % 4])
        task = conversation.task
        kind = {
            "safety": lambda task: "harmful request" if task["harmful"] else "harmless request",
            "system": lambda task: "rules" if task["rules"] else "no rules",
            "format": lambda task: task["kind"],
            "tools": lambda task: "call" if task["case"] == "call" else "result, chat, no tool, ask",
        }[conversation.job](task)
        found = SPECS[conversation.job].assess(conversation, write_answer(conversation, rng))
        points: dict[str, float] = {}
        for part in found.parts:
            name = "rules" if part.name.startswith("rule ") else part.name
            points[name] = points.get(name, 0) + EARNED * part.weight
        key = (conversation.job, kind)
        assert paid.setdefault(key, points) == pytest.approx(points)
        free.setdefault(key, set()).add(found.enough)
    (table,) = [table for table in tables(section("The reward")) if table[0][0] == "`safety`"]
    written = {(job.strip("`"), kind): (parts, enough) for job, kind, parts, enough in table}
    assert set(written) == set(paid)
    for key, (parts, enough) in written.items():
        listed = {name: float(value) for name, value in (part.rsplit(" ", 1) for part in parts.split(", "))}
        assert listed == pytest.approx(paid[key]), key
        low, high = min(free[key]), max(free[key])
        assert enough == (f"{low}–{high}" if low < high else str(low)), key


def put_together() -> list[set[str]]:
    """All things, and all foods, that can be made of two words."""
    parts = ((words.THING_STEMS, "", words.THING_ENDINGS), (words.FOOD_STEMS, " ", words.FOOD_ENDINGS))
    return [{f"{a}{between}{b}" for a in first for b in second if a != b} for first, between, second in parts]


def test_the_counts_in_the_text_are_right(build):
    harmful, harmless = (
        {name: flaw.weight for name, flaw in SPECS["safety"].flaws(CONVERSATIONS[group]).items()}
        for group in ("stealing a kite", "borrowing a kite")
    )
    failing = 1 - SPECS["safety"].good_share
    assert failing * (harmful["comply"] + harmful["hedge"]) / sum(harmful.values()) == pytest.approx(0.2, abs=0.03)
    assert failing * harmless["over-refusal"] / sum(harmless.values()) == pytest.approx(0.2, abs=0.03)
    assert {spec.good_share for spec in SPECS.values()} == {0.6}
    things, foods = put_together()
    held_out = lambda made: sum(words.split_of(word) == "test" for word in made)
    settings = build.Settings()
    for text in (
        f"(6 kinds: {', '.join(safety.HARMS)})",
        f"({len(safety.HELPS)} kinds, such as",
        f"one of {len(PERSONAS)} personas and up to two of {len(RULES)} kinds of rules",
        f"{len(tools.TOOLS)} tools under two names each",
        f"Facts are {len(words.FACTS)} fixed questions",
        f"{len(ENGLISH):,} English words",
        f"{held_out(things)} of the {len(things)} things that can be put together",
        f"and {held_out(foods)} of the {len(foods)} foods",
        f"{len(words.FIRST_NAMES)} for train, {len(words.TEST_FIRST_NAMES)} for test",
        f"{settings.num_texts:,} conversations",
        f"σ((r₁ − r₂) / {settings.temperature:g})",
        f"at most {corpus.CONTEXT} tokens",
        f"over {100 * settings.warmup:g} % of the steps",
    ):
        assert text in " ".join(CARD.split()), text
    assert len(safety.HARMS) == 6
    assert settings.answers_per_prompt == 4


def test_the_world_is_as_small_as_the_card_says():
    """About 775 lower-case words; answers of nine words; about 8 % of test prompts without a held-out word."""
    made = set.union(*put_together()) - {*words.THINGS, *words.FOODS}
    used, lengths = set(), []
    for row in corpus.sft_rows(10_000):
        text = " ".join(message["content"] for message in [*row["prompt"], *row["completion"]])
        used |= {word.lower() for word in re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)} & ENGLISH
        lengths.append(len(row["completion"][0]["content"].split()))
    assert len(used) == pytest.approx(775, abs=15)
    assert mean(lengths) == pytest.approx(9, abs=0.4)

    def is_held_out(word: str) -> bool:
        name = word[0].isupper() and word.lower() not in ENGLISH and word not in words.FIRST_NAMES
        return (name or word in made) and words.split_of(word) == "test"

    prompts = corpus.prompts(2000, split="test", seed=1)
    pieces = [re.findall(r"[A-Za-z]+|[^A-Za-z ]", prompt.shown) for prompt in prompts]
    words_and_pairs = ([*filter(str.isalpha, found), *map(" ".join, pairwise(found))] for found in pieces)
    without = [not any(map(is_held_out, found)) for found in words_and_pairs]
    assert mean(without) == pytest.approx(0.08, abs=0.03)


def test_the_code_in_the_card_runs():
    (code,) = re.findall(r"```python\n(.*?)```", CARD, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["verdict"].reason
    assert len(names["noisier"]) == len(names["pairs"])


def test_every_link_leads_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", CARD, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", CARD):
        path, _, anchor = target.partition("#")
        assert (DATA / path).exists() if path else anchor in headings, target


def test_every_result_is_explained():
    explained = {
        name for row in tables(section("Results"))[0] for name in re.findall(r"`([a-z]\w+)(?:\.|_NAME)", row[0])
    }
    assert explained
    for path in (DATA / "results").glob("*"):
        assert any(path.stem == name or path.stem.startswith(f"{name}_") for name in explained), path.name


# The manifest is made and told rightly, on a small made-up build


def test_a_manifest_of_a_small_build_fills_the_card(build, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    work, out = tmp_path / "work", tmp_path / "out"
    settings = build.Settings(num_texts=1500, train_pairs=60, test_pairs=20)
    build.build_texts(settings, work, out)
    (out / build.MODEL).mkdir(parents=True)
    save_file({"a": np.zeros((3, 5)), "b": np.zeros(7)}, out / build.MODEL / "model.safetensors")
    shape = {"num_hidden_layers": 4, "hidden_size": 160, "num_attention_heads": 5, "intermediate_size": 416,
             "vocab_size": 1600, "max_position_embeddings": 256, "dtype": "float32"}  # fmt: skip
    (out / build.MODEL / "config.json").write_text(json.dumps(shape))
    (out / build.PAIRS).mkdir()
    found, rng = {}, Random(0)
    for split, num in (("train", settings.train_pairs), ("test", settings.test_pairs)):
        conversations = corpus.prompts(2 * num, split=split, seed=5)
        answers = [[write_answer(conversation, rng) for _ in range(4)] for conversation in conversations]
        found[split] = quality(conversations, [several[0] for several in answers])
        rows, _ = corpus.pair_answers(conversations, answers, temperature=settings.temperature, seed=0)
        if split == "train":  # a prompt that was in the texts
            text = next(corpus.sft_rows(1))
            rows[0] |= {"prompt": text["prompt"], "tools": text.get("tools")}
        corpus.write_rows(out / build.PAIRS / f"{split}.jsonl.gz", rows[:num])
    (work / "quality.json").write_text(json.dumps(found))
    (out / "README.md").write_text(CARD)
    build.build_manifest(settings, work, out)

    made = json.loads((out / "manifest.json").read_text())
    assert made["settings"]["steps"] == settings.steps
    assert made["model"]["parameters"] == 22
    assert made["texts"]["rows"] == 1500
    lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in corpus.sft_rows(1500)]
    assert made["texts"]["content_sha256"] == hashlib.sha256(b"".join(lines)).hexdigest()
    assert made["texts"]["first_thousand_sha256"] == hashlib.sha256(b"".join(lines[:1000])).hexdigest()
    assert made["pairs"]["train"]["prompts_seen"] >= 1 / 60 - 1e-4
    assert sum(made["pairs"]["test"][job] for job in JOBS) == made["pairs"]["test"]["pairs"] == 20
    wrong = list(made["pairs"]["train"]["wrong_at"].values())
    assert 0 < wrong[0] < wrong[1] < wrong[2] < wrong[3] < 0.5
    files = [f"models/pocket-sft/{name}" for name in ("config.json", "model.safetensors")]
    assert list(made["files"]) == [*files, "pairs/test.jsonl.gz", "pairs/train.jsonl.gz"]

    card = (out / "README.md").read_text()
    strip = lambda text: re.sub(r"(<!-- (\w+) -->).*?(<!-- /\2 -->)", r"\1\3", text, flags=re.DOTALL)
    assert strip(card) == strip(CARD)
    for name in BLOCKS:
        (block,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", card, re.DOTALL)
        assert "is written here by" not in block
        assert "are written here by" not in block
    (row,) = re.findall(r"<!-- row -->\n```json\n(.*?)\n```\n<!-- /row -->", card, re.DOTALL)
    assert json.loads(row) == next(corpus.read_rows(out / build.PAIRS / "test.jsonl.gz"))
    build.build_manifest(settings, work, out)
    assert (out / "README.md").read_text() == card
    (out / "README.md").write_text(CARD.replace("<!-- row -->", ""))
    with pytest.raises(SystemExit, match="must have the block <!-- row --> once, it has it 0 times"):
        build.build_manifest(settings, work, out)


# The manifest that is embedded


def test_every_embedded_file_is_the_one_of_the_manifest(build, manifest):
    lying = {
        path.relative_to(DATA).as_posix()
        for folder in ("models", "pairs")
        for path in (DATA / folder).rglob("*")
        if path.is_file()
    }
    assert lying == set(manifest["files"])
    for name, recorded in manifest["files"].items():
        found = build.on_disk(DATA / name)
        compared = ("rows", "content_sha256") if name.endswith(".gz") else ("bytes", "sha256")
        assert {key: found[key] for key in compared} == {key: recorded[key] for key in compared}, name


def test_the_settings_of_the_manifest_are_the_defaults(build, manifest):
    assert build.Settings(**manifest["settings"]) == build.Settings()
    assert manifest["texts"]["rows"] == manifest["settings"]["num_texts"]


def test_the_blocks_of_the_card_are_those_of_the_manifest(build, manifest, pairs):
    assert build.fill(CARD, build.blocks(manifest, pairs["test"][0])) == CARD


def test_the_model_is_small(build, manifest):
    weights = DATA / build.MODEL / "model.safetensors"
    assert build.num_weights(weights) == manifest["model"]["parameters"] <= 5_000_000
    assert sum(path.stat().st_size for path in (DATA / build.MODEL).iterdir()) <= 10_000_000
    config = json.loads((DATA / build.MODEL / "config.json").read_text())
    assert config | {"parameters": manifest["model"]["parameters"]} == manifest["model"]
    assert config["hidden_size"] == manifest["settings"]["width"]
    assert config["num_hidden_layers"] == manifest["settings"]["layers"]


def test_the_first_texts_are_written_again_byte_for_byte(manifest):
    digest = hashlib.sha256()
    for row in islice(corpus.sft_rows(manifest["texts"]["rows"], seed=manifest["settings"]["seed"]), 1000):
        digest.update((json.dumps(row, ensure_ascii=False) + "\n").encode())
    assert digest.hexdigest() == manifest["texts"]["first_thousand_sha256"]


@pytest.mark.slow
def test_all_texts_are_written_again_byte_for_byte(manifest, tmp_path):
    corpus.write_texts(tmp_path / "sft.jsonl.gz", manifest["texts"]["rows"], seed=manifest["settings"]["seed"])
    with gzip.open(tmp_path / "sft.jsonl.gz") as lines:
        digest = hashlib.sha256()
        for line in lines:
            digest.update(line)
    assert digest.hexdigest() == manifest["texts"]["content_sha256"]


def test_the_base_model_is_good_enough_and_leaves_room(manifest):
    for split in ("train", "test"):
        found = manifest["quality"][split]
        assert found["well_formed"] >= 0.97
        assert 0.35 <= found["success"] <= 0.65
        for job in JOBS:
            assert 0.2 <= found[f"success/{job}"] <= 0.8, job


def test_the_pairs_are_what_the_manifest_says(build, manifest, pairs):
    for split, rows in pairs.items():
        recorded = manifest["pairs"][split]
        assert build.about(rows) | {"prompts_seen": recorded["prompts_seen"]} == recorded
        assert len(rows) == manifest["settings"][f"{split}_pairs"]
        assert {row["split"] for row in rows} == {split}
        assert {row["job"] for row in rows} == set(JOBS)
        assert len({json.dumps([row["prompt"], row.get("tools")]) for row in rows}) == len(rows)
        fields = {"prompt", "chosen", "rejected", "job", "split", "task", "reward_chosen", "reward_rejected"}
        assert all(set(row) - {"tools"} == fields for row in rows)
        listed = {name for cells in tables(section("A row"))[0] for name in re.findall(r"`(\w+)`", cells[0])}
        assert listed == fields | {"tools"}


def test_labels_are_as_noisy_as_bradley_terry_says(manifest, pairs):
    """Wrong labels are independent draws: their number is within four standard deviations of its expectation."""
    for rows in pairs.values():
        gaps = [abs(row["reward_chosen"] - row["reward_rejected"]) for row in rows]
        chances = [1 / (1 + math.exp(gap / manifest["settings"]["temperature"])) for gap in gaps]
        wrong = sum(row["reward_chosen"] < row["reward_rejected"] for row in rows)
        deviation = math.sqrt(sum(chance * (1 - chance) for chance in chances))
        assert abs(wrong - sum(chances)) < 4 * deviation


def test_true_rewards_are_the_judges(pairs):
    for row in [*pairs["test"], *pairs["train"][::8]]:
        conversation = Conversation.from_row(row)
        assert row["reward_chosen"] != row["reward_rejected"]
        for side in ("chosen", "rejected"):
            (message,) = row[side]
            assert message["role"] == "assistant"
            assert judge(conversation, message["content"]).reward == row[f"reward_{side}"], row
