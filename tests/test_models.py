"""Loading and saving policies: what is refused, with which words, and that a saved policy is the same policy."""

from __future__ import annotations

import copy
import json
import logging
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dpo_lab.config import DPOConfig
from dpo_lab.engine.attention import SHARED_ATTENTION
from dpo_lab.logprobs import score
from dpo_lab.loop import Step
from dpo_lab.models import inside, load_policy, num_parameters, pick_device, save_policy
from dpo_lab.models.inside import disable_dropout, inner_model
from dpo_lab.reference import fingerprint
from dpo_lab.training import train_dpo
from tests.conftest import random_pairs, tiny_llama
from tests.faults import full_disk
from tests.tiny import CHAT_TEMPLATE, saved_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_model(tmp_path / "model")


def change(path: Path, **settings) -> None:
    """Change settings of a JSON file; None takes one out."""
    content = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def refusal(source, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_policy(source, device="cpu", **options)
    return str(caught.value)


# ── what loads ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_loads_ready_for_use(folder, monkeypatch):
    model, tokenizer = load_policy(folder, device="cpu")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert fingerprint(model) == fingerprint(tiny_llama())
    assert tokenizer("the cat")["input_ids"] == [1, 7, 9]
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fingerprint(load_policy("~/model", device="cpu")[0]) == fingerprint(model)
    monkeypatch.chdir(folder.parent)
    assert fingerprint(load_policy("model")[0]) == fingerprint(model)


def test_a_real_model_loads_and_knows_its_language(real):
    model, tokenizer = load_policy(real / "models" / "stories260k", device="cpu")
    ids = torch.tensor([tokenizer("Once upon a time, there was a little")["input_ids"]])
    continued = model.generate(ids, max_new_tokens=3, do_sample=False)[0]
    assert tokenizer.decode(continued, skip_special_tokens=True).startswith("Once upon a time, there was a little girl")
    assert 200_000 < num_parameters(model) < 300_000


def test_weights_in_several_files_load(tmp_path):
    folder = saved_model(tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert fingerprint(load_policy(folder, device="cpu")[0]) == fingerprint(tiny_llama())
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    assert f"the model in {folder} cannot be loaded" in refusal(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_take_the_type_asked_for(folder, dtype):
    model, _ = load_policy(folder, device="cpu", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_loading_is_quiet_and_leaves_the_voice_of_transformers_as_it_was(folder, capfd):
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    model, tokenizer = load_policy(folder, device="cpu")
    save_policy(model, tokenizer, folder.parent / "again")
    assert "".join(capfd.readouterr()) == ""
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_a_missing_pad_token_or_template_is_mended_and_said(tmp_path, caplog):
    folder = saved_model(tmp_path, tokenizer=tiny_tokenizer(pad_token=None))
    with caplog.at_level(logging.INFO, "dpo_lab"):
        _, tokenizer = load_policy(folder, device="cpu")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert f"the tokenizer of {folder} has no pad token: its end token '</s>' pads" in caplog.text
    assert "has no chat template: messages are written in the plain default one" in caplog.text
    caplog.clear()
    saved_model(tmp_path, tokenizer=tiny_tokenizer(template=CHAT_TEMPLATE))
    with caplog.at_level(logging.INFO, "dpo_lab"):
        _, tokenizer = load_policy(folder, device="cpu")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert caplog.text == ""


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_places_that_hold_no_model_are_told_apart(folder, tmp_path):
    assert "no model folder at '/no/such/model'; check the path, or give a Hub id" in refusal("/no/such/model")
    assert "is a file; a model is a folder with" in refusal(folder / "config.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    told = refusal(tmp_path / "other")
    assert "is a folder but no model: config.json is missing (it holds notes.txt)" in told
    assert "give a folder that save_pretrained wrote" in told
    assert "the name of the model is empty" in refusal("")


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model", "runs/model"])
def test_a_hub_id_without_a_network_is_told_within_seconds(name):
    began = time.monotonic()
    told = refusal(name)
    assert time.monotonic() - began < 5
    assert f"{name!r} is no folder here and cannot be fetched from the Hub" in told
    assert "go online once, or download it and give its folder" in told


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no weights; convert them to safetensors" in refusal(folder)
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    told = refusal(folder)
    assert "holds only pickled weights (pytorch_model.bin), which can run code; convert them to safetensors" in told


def test_an_adapter_alone_is_refused_with_the_way_out(tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    told = refusal(tmp_path)
    assert "holds a LoRA adapter without its base model" in told
    assert "merge the two first: dpo-lab merge ADAPTER --output FOLDER" in told


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_cut_weights_are_told(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"the model in {folder} is damaged" in refusal(folder)
    assert "copy it again from where it came" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_broken_json_is_told(folder, name, content):
    (folder / name).write_bytes(content)
    told = refusal(folder)
    assert str(folder) in told
    assert "damaged" in told or "cannot be loaded" in told


def test_a_model_that_is_not_whole_never_starts_with_random_weights(folder):
    cases = [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight"),
        ({"intermediate_size": 60}, "model.layers.0.mlp.down_proj.weight"),
        ({"vocab_size": 60}, "lm_head.weight"),
        ({"attention_bias": True}, "model.layers.0.self_attn.k_proj.bias"),
    ]
    config = (folder / "config.json").read_text()
    for settings, weight in cases:
        (folder / "config.json").write_text(config)
        change(folder / "config.json", **settings)
        told = refusal(folder)
        assert "is not a whole causal language model" in told
        assert weight in told
        assert "would start at random; copy weights and config.json again from one place" in told


def test_weights_without_use_are_said(folder, caplog):
    change(folder / "config.json", num_hidden_layers=1)
    load_policy(folder, device="cpu")
    assert "holds weights that its config.json has no use for: model.layers.1.input_layernorm.weight" in caplog.text


@pytest.mark.parametrize("kind", ["no-such-type", None])
def test_other_kinds_of_model_are_refused(folder, kind):
    change(folder / "config.json", model_type=kind, architectures=None)
    assert f"the model in {folder} cannot be loaded" in refusal(folder)


def test_a_tokenizer_that_is_missing_or_does_not_fit_is_told(folder):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"new{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    told = refusal(folder)
    assert "does not fit its model: it gives ids up to 70, the model has 64 embeddings" in told
    assert "use the tokenizer that the model was trained with" in told
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert f"{folder} holds no tokenizer; save the model's own there" in refusal(folder)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    folder = saved_model(tmp_path, tokenizer=tiny_tokenizer(eos_token=None))
    assert "has no end token, and a completion must end with one; set eos_token in" in refusal(folder)


REMOTE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_a_model_brings_runs_only_when_allowed(folder, monkeypatch):
    mark = folder / "mark"
    (folder / "own.py").write_text(REMOTE.format(mark=str(mark)))
    change(folder / "config.json", model_type="own",
           auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})  # fmt: skip
    told = refusal(folder)
    assert f"{folder} brings Python code of its own; read it, then allow it with trust_remote_code=True" in told
    assert not mark.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
    model, _ = load_policy(folder, device="cpu", trust_remote_code=True)
    assert mark.exists()
    assert type(model).__name__ == "OwnModel"


def test_devices_and_types_that_are_not_there_are_told_before_anything_loads(tmp_path):
    missing = tmp_path / "never looked at"
    with pytest.raises(ValueError, match=r"device 'tpu' cannot be used \(.*\); auto takes what is there"):
        load_policy(missing, device="tpu")
    with pytest.raises(ValueError, match=r"dtype 'float64' is not known; choose one of float32, bfloat16, float16"):
        load_policy(missing, dtype="float64")  # pyright: ignore[reportArgumentType]
    if not torch.cuda.is_available():
        for name in ("cuda", "cuda:3"):
            with pytest.raises(ValueError, match=f"device '{name}' cannot be used"):
                pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


# ── saving ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_policy_is_the_same_policy_in_plain_transformers(tmp_path, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, data = tiny_llama(tie_word_embeddings=tied), random_pairs(8)
    list(train_dpo(model, None, data, DPOConfig(batch_size=8, max_steps=2, learning_rate=1e-2, device="cpu")))
    folder = save_policy(model, tiny_tokenizer(template=CHAT_TEMPLATE), tmp_path / "new" / "model")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.config._attn_implementation != SHARED_ATTENTION
    ids = torch.tensor([[1, 7, 9], [1, 8, 10]])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert (score(plain, data) == score(model, data)).all()
    greedy = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(plain.generate(ids, **greedy), model.generate(ids, **greedy))
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHAT_TEMPLATE
    for file in folder.iterdir():
        assert file.suffix in (".json", ".jinja", ".safetensors")
        assert file.suffix == ".safetensors" or SHARED_ATTENTION not in file.read_text()
    assert fingerprint(load_policy(folder, device="cpu")[0]) == fingerprint(model)


def test_a_saved_policy_keeps_the_dtype_of_its_base_unless_another_is_given(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, tokenizer = load_policy(tmp_path / "base", device="cpu")
    assert model.dtype is torch.float32  # while it trains
    for dtype, wanted in (("base", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        folder = save_policy(copy.deepcopy(model), tokenizer, tmp_path / dtype, dtype=dtype)
        assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype is wanted
    assert model.dtype is torch.float32


def test_a_saved_policy_stops_by_itself_where_its_turns_end(tmp_path):
    model = tiny_llama()
    model.generation_config.eos_token_id = 2
    folder = save_policy(model, tiny_tokenizer(template=CHAT_TEMPLATE), tmp_path)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 6]  # </s> and <|end|>


def test_an_adapter_is_saved_merged_and_stays_as_it_is(tmp_path):
    from transformers import AutoModelForCausalLM

    model, data = adapted(), random_pairs(6)
    before = fingerprint(model)
    folder = save_policy(model, tiny_tokenizer(), tmp_path / "model")
    assert fingerprint(model) == before
    assert not (folder / "adapter_config.json").exists()
    torch.testing.assert_close(
        torch.from_numpy(score(AutoModelForCausalLM.from_pretrained(folder), data)),
        torch.from_numpy(score(model, data)), atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    remedy = "free space or permissions there, or name another folder"
    with pytest.raises(OSError, match=rf"the model cannot be written to {tmp_path}/file/model .*{remedy}"):
        save_policy(tiny_llama(), tiny_tokenizer(), tmp_path / "file" / "model")
    for room in (100, 20_000):
        with full_disk(room), pytest.raises(OSError, match=remedy):
            save_policy(tiny_llama(), tiny_tokenizer(), tmp_path / "model")


def test_a_rate_that_no_recipe_takes_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(inside, "SMALL_MODEL", 1)
    data, quick = random_pairs(4), {"max_steps": 1, "device": "cpu"}
    train_dpo(tiny_llama(), None, data, DPOConfig(learning_rate=1e-5, **quick))
    assert not caplog.text
    train_dpo(tiny_llama(), None, data, DPOConfig(learning_rate=2e-4, **quick))
    assert "learning rate 0.0002 is above 1e-05, the highest that published recipes take for full" in caplog.text
    train_dpo(adapted(), None, data, DPOConfig(learning_rate=2e-4, **quick))
    assert "learning rate 0.0002 is above 0.0001, the highest that published recipes take for an adapter" in caplog.text


def test_rows_beyond_the_positions_of_training_are_remarked_on(caplog):
    model = tiny_llama(max_position_embeddings=16)
    inside.check_length(model, 16, "the data")
    assert not caplog.text
    inside.check_length(model, 17, "the data")
    assert "the data has a row of 17 tokens, and the model was trained on 16 positions" in caplog.text


def test_quantised_weights_are_refused(folder):
    change(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "its weights are quantised, and training needs whole ones; give the original" in refusal(folder)


# ── dropout and adapters ─────────────────────────────────────────────────────────────────────────────────────────────


def adapted(dropout: float = 0.0):
    """A tiny model with a LoRA adapter that already does something."""
    from peft import LoraConfig, get_peft_model

    model = tiny_llama(attention_dropout=dropout)
    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, init_lora_weights=False)
    return get_peft_model(model, settings).eval()


def noise(model) -> float:
    """How far two passes in training mode differ."""
    model.train()
    ids = torch.tensor([[1, 7, 9, 11, 8, 30]])
    torch.manual_seed(0)
    one, other = (model(input_ids=ids).logits.detach() for _ in range(2))
    return float((one - other).abs().max())


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.5,
        max_position_embeddings=64, attention_dropout=0.5, layerdrop=0.5, word_embed_proj_dim=32,
    ))  # fmt: skip


@pytest.mark.parametrize("make", [lambda: tiny_llama(attention_dropout=0.5), lambda: adapted(0.5), gpt2, opt],
                         ids=["attention", "adapter", "gpt2", "opt"])  # fmt: skip
def test_every_kind_of_dropout_is_switched_off(make):
    model = make()
    assert noise(model) > 1e-3
    disable_dropout(model)
    assert noise(model) == 0


def test_switching_dropout_off_touches_nothing_else(folder):
    model, _ = load_policy(folder, device="cpu")
    model.extra = nn.ModuleDict({"pixels": nn.Dropout2d(0.5), "rnn": nn.LSTM(2, 2, num_layers=2, dropout=0.5)})
    before = copy.deepcopy(model.state_dict())
    disable_dropout(model)
    assert model.extra["pixels"].p == model.extra["rnn"].dropout == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dpo_on_an_adapter_changes_the_adapter_alone(tmp_path):
    model, data = adapted(dropout=0.5), random_pairs(8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start = score(model, data)
    config = DPOConfig(batch_size=8, max_steps=2, learning_rate=1e-2, warmup=0, device="cpu")
    events = list(train_dpo(model, None, data, config, checkpoints=tmp_path))
    steps = [event.metrics for event in events if isinstance(event, Step)]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)  # the reference is the policy, adapter included
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    ratio = score(model, data) - start
    assert abs(ratio).max() > 1e-2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name
        assert parameter.requires_grad == ("lora_" in name)
    # and a resumed run has the same second step
    again = adapted(dropout=0.5)
    asked = iter([True])
    list(train_dpo(again, None, data, config, checkpoints=tmp_path / "part", stop=lambda: next(asked)))
    fresh = adapted(dropout=0.5)
    list(train_dpo(fresh, None, data, config, resume=tmp_path / "part" / "step-00000001"))
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), model.parameters(), strict=True))


def test_an_adapter_that_lives_outside_the_layers_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_llama(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"puts made-up tokens before the prompt.*such as LoRA"):
        inner_model(model)
