"""What the first edition wrote still reads: its cache hits, its run folder opens, and its run goes on to the same end.

`tests/first_edition` was written by `dpo-lab train --model base --pairs pairs.jsonl --run run --cache reference.sqlite
--validation 0.25 --samples 2 --max-new-tokens 8 --epochs 3 --batch-size 6 --checkpoint-every 4 --learning-rate 1e-3
--beta 0.5 --evaluate-every 4` before the package was moved into its folders, with a model of 7,000 weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from dpo_lab import ReferenceCache, Run, load_policy, load_preferences
from dpo_lab.logprobs import score
from dpo_lab.preferences import tokenize_pairs
from dpo_lab.workbench.cli import main
from tests.conftest import ROOT

WRITTEN = ROOT / "tests" / "first_edition"
VERSIONS = json.loads((WRITTEN / "run" / "config.json").read_text())["versions"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy, which may be written to."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "first_edition"))


def release(version: str) -> list[str]:
    return version.split(".")[:2]


@pytest.mark.skipif(
    release(VERSIONS["transformers"]) != release(transformers.__version__),
    reason="another release of transformers computes other log-probs, and its cache rightly misses",
)
def test_its_cache_hits_and_is_right(folder):
    model, tokenizer = load_policy(folder / "base", device="cpu")
    data, _ = tokenize_pairs(load_preferences(folder / "pairs.jsonl"), tokenizer)
    with ReferenceCache(folder / "reference.sqlite") as cache:
        found = cache.logps(model, data)
    assert (found.num_found, found.num_computed) == (24, 0)
    np.testing.assert_allclose(found.values, score(model, data), rtol=1e-5, atol=1e-5)


def test_its_run_folder_opens(folder):
    run = Run.load(folder / "run")
    assert run.config["settings"]["beta"] == 0.5
    assert [row["step"] for row in run.metrics if row["kind"] == "step"] == list(range(1, 10))
    assert len(run.samples) == 2
    load_policy(run.model_folder, device="cpu")
    run.write_report()
    assert "</html>" in (run.folder / "report.html").read_text()


def test_its_run_goes_on_to_the_same_end(folder, monkeypatch):
    """From the checkpoint of step 8: step 9, the last evaluation and the trained weights are those of then."""
    monkeypatch.chdir(folder)
    before = {name: value.clone() for name, value in load_policy("run/model", device="cpu")[0].state_dict().items()}
    rows = Run.load("run").metrics
    assert main(["train", "--run", "run", "--resume", "--cache", "reference.sqlite"]) == 0
    for old, new in zip(rows, Run.load("run").metrics, strict=True):
        for name in old.keys() - {"seconds", "kl", "kl_standard_error"}:  # of sampled answers, which are others since
            expected = old[name] if name == "kind" else pytest.approx(old[name], rel=1e-4, abs=1e-5)
            assert new[name] == expected, name
    after = load_policy("run/model", device="cpu")[0].state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)
