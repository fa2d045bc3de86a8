"""The course's table of names in TRL: every name exists on both sides, with the default that the table gives."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import warnings

import pytest
import torch

from dpo_lab import DPOConfig, PairScores, train_dpo
from dpo_lab.loss import pair_metrics
from tests.conftest import ROOT

trl = pytest.importorskip("trl", reason="trl is not installed (it comes with the extra `bench`)")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"the table is for trl 1.16, found {trl.__version__}", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's neighbours announce their coming changes
    from transformers import TrainingArguments
    from trl.trainer import dpo_trainer

HEADING = "## The names in TRL\n"


def section() -> str:
    return (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8").split(HEADING)[1].split("\n## ")[0].strip()


def rows() -> list[list[str]]:
    """The cells of the table of settings, without back quotes."""
    lines = section().split("| TRL logs |")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [[cell.strip("`") for cell in cells[:4]] + cells[4:] for cells in table]


def default_of(config: type, name: str) -> object:
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    value, make = field.default, field.default_factory
    if value is dataclasses.MISSING:
        assert callable(make)
        value = make()
    return getattr(value, "value", value)


def test_notebook_06_and_the_map_have_the_same_table():
    cells = json.loads((ROOT / "notebooks" / "06_training_loop.ipynb").read_text(encoding="utf-8"))["cells"]
    (text,) = ("".join(c["source"]) for c in cells if HEADING in "".join(c["source"]))
    assert text.split(HEADING)[1].strip() == section()


def test_every_setting_exists_in_trl_with_this_default():
    assert len(rows()) > 30
    for name, default, *_ in rows():
        assert default_of(trl.DPOConfig, name) == ast.literal_eval(default), name


def test_every_setting_exists_here_with_this_default():
    arguments = inspect.signature(train_dpo).parameters
    for _, _, name, default, _ in rows():
        ours = arguments[name].default if name in arguments else default_of(DPOConfig, name)
        assert ours == ast.literal_eval(default), name


def test_no_setting_of_preference_tuning_is_left_out():
    own = {f.name for f in dataclasses.fields(trl.DPOConfig)} - {f.name for f in dataclasses.fields(TrainingArguments)}
    named = set(re.findall(r"`(\w+)`", section()))
    assert own <= named


def test_what_is_logged_has_the_same_names():
    source = inspect.getsource(dpo_trainer)
    theirs = set(re.findall(r'_metrics\[mode\]\["([^"]+)"\]', source)) - {"aux_loss"}
    ours = pair_metrics(PairScores(*torch.zeros(6, 1)), torch.zeros(1), beta=0.1)
    table = section().split("| TRL logs |")[1]
    shared, theirs_alone = (set(re.findall(r"`([\w/]+)`", part)) for part in re.split(r"\n(?=.*not logged)", table))
    assert theirs - theirs_alone <= shared
    assert set(ours) <= shared
    assert not theirs_alone & set(ours)
    assert ours["rewards/accuracies"].item() == 0.5  # a tie,
    assert "(chosen_rewards > rejected_rewards).float()" in source  # which is 0 in TRL
