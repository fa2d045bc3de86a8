"""Checkpoints: whole or not there, never code, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.loop import Checkpoint, Step
from dpo_lab.storage.checkpoints import (
    MANIFEST,
    STATE,
    WEIGHTS,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
)
from dpo_lab.storage.checkpoints import save_checkpoint as save
from dpo_lab.training import train_dpo
from tests.conftest import random_pairs, tiny_llama
from tests.faults import forked, full_disk, in_fresh_process, kill_after, moments

IDENTITY = {"settings": {"beta": 0.1}, "data": "abc"}


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(model=None):
    """A model after one step, and its optimiser, which then has a state."""
    model = tiny_llama() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.tensor([[5, 6, 7]])).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def fresh(model=None):
    model = tiny_llama(seed=1) if model is None else model
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_optimiser_and_random_state_come_back_bit_for_bit(tmp_path, tied):
    model, optimizer = trained(tiny_llama(tie_word_embeddings=tied))
    torch.manual_seed(7)
    path = save(tmp_path, 12, model, optimizer, IDENTITY, keep=2)
    expected = torch.rand(3)
    assert path == tmp_path / "step-00000012"
    assert sorted(entry.name for entry in path.iterdir()) == [MANIFEST, STATE, WEIGHTS]

    other, other_optimizer = fresh(tiny_llama(seed=1, tie_word_embeddings=tied))
    assert load_checkpoint(path, other, other_optimizer, IDENTITY) == 12
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(other), weights(model))
    assert (other.lm_head.weight is other.model.embed_tokens.weight) == tied
    states = [o.state_dict()["state"] for o in (optimizer, other_optimizer)]
    for one, two in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


# ── places that cannot be written ────────────────────────────────────────────────────────────────────────────────────

REMEDY = "free space or permissions there, then resume from the last complete checkpoint"


def test_a_full_disk_is_told_wherever_it_strikes_and_old_checkpoints_stay(tmp_path):
    model, optimizer = trained()
    first = save(tmp_path, 1, model, optimizer, IDENTITY, keep=1)
    sizes = [(first / name).stat().st_size for name in (WEIGHTS, STATE)]
    for room in (0, 500, sizes[0] - 1, sizes[0] + 1, (sizes[0] + sizes[1]) // 2, sizes[1] - 1):
        with full_disk(room), pytest.raises(OSError, match=rf"step 2 cannot be written to {tmp_path} .*{REMEDY}"):
            save(tmp_path, 2, model, optimizer, IDENTITY, keep=1)
        assert [entry.name for entry in tmp_path.iterdir()] == [first.name]
    assert latest_checkpoint(tmp_path) == first
    assert save(tmp_path, 2, model, optimizer, IDENTITY, keep=1).is_dir()


def test_a_place_that_is_no_folder_is_told(tmp_path):
    model, optimizer = trained()
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "checkpoints", Path("/proc/nowhere")):
        with pytest.raises(OSError, match=rf"step 3 cannot be written to {folder} .*{REMEDY}"):
            save(folder, 3, model, optimizer, IDENTITY, keep=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_training_stops_with_that_message_and_goes_on_once_there_is_room(tmp_path):
    config = DPOConfig(batch_size=8, epochs=3, checkpoint_every=1, device="cpu")
    whole = tiny_llama()
    list(train_dpo(whole, None, random_pairs(8), config))
    stream = train_dpo(tiny_llama(), None, random_pairs(8), config, checkpoints=tmp_path)
    assert next(event for event in stream if isinstance(event, Checkpoint)).step == 1
    with full_disk(1000), pytest.raises(OSError, match="step 2 cannot be written"):
        list(stream)
    model, latest = tiny_llama(), latest_checkpoint(tmp_path)
    assert latest is not None
    list(train_dpo(model, None, random_pairs(8), config, checkpoints=tmp_path, resume=latest))
    assert torch.equal(weights(model), weights(whole))


# ── what a killed process leaves ─────────────────────────────────────────────────────────────────────────────────────


def test_a_partial_folder_is_no_checkpoint_and_is_cleared_away(tmp_path):
    model, optimizer = trained()
    for step in (1, 2):
        partial = tmp_path / f".step-{step:08d}.partial"
        partial.mkdir()
        (partial / MANIFEST).write_text("{}")
    (tmp_path / "step-00000003").mkdir()  # without a manifest
    assert list_checkpoints(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    path = save(tmp_path, 2, model, optimizer, IDENTITY, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "step-00000003"]
    assert latest_checkpoint(tmp_path) == path


MANIFESTS = [b"", b"[]", b"null", b"\xff", b'{"step": 2, "ident', b'{"step": 2}',
             b'{"step": "two", "identity": {}, "sha256": {}}']  # fmt: skip


@pytest.mark.parametrize("content", MANIFESTS)
def test_a_damaged_manifest_is_told_and_passed_over(tmp_path, caplog, content):
    model, optimizer = trained()
    first, second = (save(tmp_path, step, model, optimizer, IDENTITY, keep=5) for step in (1, 2))
    (second / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{second} is damaged: its manifest.json cannot be read"):
        load_checkpoint(second, model, optimizer, IDENTITY)
    assert latest_checkpoint(tmp_path) == first
    assert f"{second} is damaged" in caplog.text
    assert "passed over" in caplog.text


@pytest.mark.parametrize("name", [WEIGHTS, STATE])
@pytest.mark.parametrize("damage", ["a bit", "half", "missing", "not in the manifest"])
def test_a_damaged_file_is_told_and_passed_over(tmp_path, caplog, name, damage):
    model, optimizer = trained()
    first, second = (save(tmp_path, step, model, optimizer, IDENTITY, keep=5) for step in (1, 2))
    content = bytearray((second / name).read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
        (second / name).write_bytes(content)
    elif damage == "half":
        (second / name).write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        (second / name).unlink()
    else:
        manifest = json.loads((second / MANIFEST).read_text())
        del manifest["sha256"][name]
        (second / MANIFEST).write_text(json.dumps(manifest))
    other, other_optimizer = fresh()
    before = weights(other)
    with pytest.raises(ValueError, match=rf"{second} is damaged: {name} is not what was written"):
        load_checkpoint(second, other, other_optimizer, IDENTITY)
    assert torch.equal(weights(other), before)
    assert latest_checkpoint(tmp_path) == first
    assert f"{second} is damaged ({name}) and is passed over" in caplog.text


def test_a_path_without_a_checkpoint_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ValueError, match=rf"no checkpoint at {path}; give a folder named step-"):
            load_checkpoint(path, *fresh(), IDENTITY)


def test_going_on_from_before_a_damaged_one_keeps_what_is_newly_written(tmp_path):
    model, optimizer = trained()
    for step in (1, 2, 3):
        save(tmp_path, step, model, optimizer, IDENTITY, keep=5)
    (tmp_path / "step-00000003" / WEIGHTS).write_bytes(b"")
    path = save(tmp_path, 2, model, optimizer, IDENTITY, keep=1)  # resumed from step 1
    assert latest_checkpoint(tmp_path) == path
    save(tmp_path, 3, model, optimizer, IDENTITY, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000003"


# ── what must not be read ────────────────────────────────────────────────────────────────────────────────────────────


class Trap:
    """A pickle that runs code when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "your files are mine"))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_never_runs(tmp_path, how):
    model, optimizer = trained()
    path = save(tmp_path, 1, model, optimizer, IDENTITY, keep=1)
    trap = {"optimizer": Trap(tmp_path / "mark"), "random": {}}
    if how == "torch":
        torch.save(trap, path / STATE)
    else:
        (path / STATE).write_bytes(pickle.dumps(trap, protocol=2))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["sha256"][STATE] = hashlib.sha256((path / STATE).read_bytes()).hexdigest()  # it came with its sum
    (path / MANIFEST).write_text(json.dumps(manifest))
    other, other_optimizer = fresh()
    before = weights(other)
    with pytest.raises(ValueError, match=rf"{path} does not fit this model and optimiser, or was not written here"):
        load_checkpoint(path, other, other_optimizer, IDENTITY)
    assert not (tmp_path / "mark").exists()
    assert torch.equal(weights(other), before)


def test_a_checkpoint_of_another_model_or_run_is_refused(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 1, model, optimizer, IDENTITY, keep=1)
    with pytest.raises(ValueError, match="does not fit this model and optimiser"):
        load_checkpoint(path, *fresh(tiny_llama(hidden_size=16)), IDENTITY)
    with pytest.raises(ValueError, match="does not fit this model and optimiser"):
        load_checkpoint(path, *fresh(tiny_llama(num_hidden_layers=1)), IDENTITY)
    with pytest.raises(ValueError, match=r"another run: data was 'abc' and is 'abd'; settings.beta was 0.1 and is 0.2"):
        load_checkpoint(path, *fresh(), {"settings": {"beta": 0.2}, "data": "abd"})


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def train(folder: Path, name: str) -> None:
    """Train from the latest checkpoint that there is; note each step's loss, and the last weights."""
    config = DPOConfig(batch_size=8, epochs=6, learning_rate=3e-3, checkpoint_every=1, dropout=True, device="cpu")
    model = tiny_llama(attention_dropout=0.1)
    latest = latest_checkpoint(folder / name)
    with (folder / f"{name}.losses").open("a", buffering=1) as file:
        for event in train_dpo(model, None, random_pairs(20), config, checkpoints=folder / name, resume=latest):
            if isinstance(event, Step):
                file.write(f"{event.step} {event.metrics['loss'].hex()} {event.metrics['grad_norm'].hex()}\n")
    torch.save(weights(model), folder / f"{name}.pt")


def train_and_kill(place: str, kills: int) -> None:
    """Run in a process of its own: one run in peace, one that is killed at random moments until it is through."""
    folder = Path(place)
    assert not kill_after(forked(lambda: train(folder, "calm")), 30.0)
    num_killed = 0
    for seconds in moments(seed=1, longest=0.5):
        is_killed = kill_after(forked(lambda: train(folder, "troubled")), seconds if num_killed < kills else 30.0)
        num_killed += is_killed
        assert not any("partial" in path.name for path in list_checkpoints(folder / "troubled"))
        if not is_killed:
            break
    assert torch.equal(*(torch.load(folder / f"{name}.pt") for name in ("calm", "troubled")))
    calm, troubled = ((folder / f"{name}.losses").read_text().split("\n") for name in ("calm", "troubled"))
    assert set(calm) == {line for line in troubled if len(line.split()) == 3 or not line}
    print("killed", num_killed, "steps", len(calm) - 1)


def test_a_run_killed_again_and_again_ends_bit_identical_to_an_uninterrupted_one(tmp_path):
    told = in_fresh_process(f"tests.test_checkpoints.train_and_kill({str(tmp_path)!r}, 5)").split()
    assert told[2:] == ["steps", "18"]
    assert 1 <= int(told[1]) <= 5  # a fast machine is done before the last of the kills
