"""An adapter beside frozen weights: with it off the model is its base, to the bit; with it on nothing is lost."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dpo_lab.config import DPOConfig, LoRAConfig, SFTConfig
from dpo_lab.logprobs import score
from dpo_lab.loop import Event, Step
from dpo_lab.models import load_policy, save_policy
from dpo_lab.models.lora import adapter_off, add_lora, adds_nothing, as_reference, merge_adapter, save_adapter
from dpo_lab.reference import ReferenceCache, fingerprint
from dpo_lab.storage.checkpoints import WEIGHTS
from dpo_lab.training import train_dpo, train_sft
from dpo_lab.workbench.evaluation import kl_from_reference
from dpo_lab.workbench.recipes import Recipe, carry_out, command_line, python_code
from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, without_seconds, write_rows
from tests.conftest import random_pairs, tiny_llama
from tests.tiny import tiny_tokenizer

CONFIG = DPOConfig(batch_size=4, max_steps=3, learning_rate=1e-2, warmup=0, device="cpu")


def learnt(model, data=None, config: DPOConfig = CONFIG, **options) -> list[Event]:
    return list(train_dpo(model, None, random_pairs(12) if data is None else data, config, **options))


def losses(events: list[Event]) -> list[float]:
    return [event.metrics["loss"] for event in events if isinstance(event, Step)]


# ── the base behind the adapter ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_with_the_adapter_off_the_log_probs_are_the_bases_to_the_bit(layout, precision):
    data, how = random_pairs(12), {"layout": layout, "precision": precision}
    base = score(tiny_llama(), data, **how)
    model = add_lora(tiny_llama(), rank=4)
    assert (score(model, data, **how) == base).all()  # B is zero
    learnt(model)
    assert abs(score(model, data, **how) - base).max() > 1e-2
    with adapter_off(model):
        assert (score(model, data, **how) == base).all()


def test_the_adapter_adds_alpha_over_r_times_b_a():
    model = add_lora(tiny_llama(), rank=3, alpha=12, targets=["q_proj"])
    learnt(model)
    layer = model.get_base_model().model.layers[1].self_attn.q_proj
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (3, 32)
    assert up.shape == (32, 3)
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + 12 / 3 * up @ down).T)


def test_a_model_with_layers_of_its_own_kind_takes_an_adapter():
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model, data = add_lora(GPT2LMHeadModel(settings), rank=4), random_pairs(12)
    base = score(model, data)
    learnt(model)
    assert abs(score(model, data) - base).max() > 1e-3
    with adapter_off(model):
        assert (score(model, data) == base).all()


def test_only_the_adapter_is_trained_and_which_weights_are_outlives_a_look_at_the_base():
    model = add_lora(tiny_llama(), rank=4)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    with adapter_off(model):
        pass
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    model.requires_grad_(False)
    with adapter_off(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())


def test_the_seed_of_an_adapter_is_its_own():
    first_of = lambda model: model.get_base_model().model.layers[0].self_attn.q_proj.lora_A["default"].weight
    torch.manual_seed(7)
    expected = torch.rand(1)
    base = tiny_llama()
    torch.manual_seed(7)
    add_lora(base, rank=4, seed=3)
    assert torch.equal(torch.rand(1), expected)  # it draws nothing from anybody else's
    same, other, more = (add_lora(tiny_llama(), rank=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first_of(same), first_of(other))
    assert not torch.equal(first_of(same), first_of(more))


def test_an_adapter_on_the_output_layer_is_scored_and_trained():
    model = add_lora(tiny_llama(), rank=4, targets=["lm_head"])
    assert losses(learnt(model))[0] == pytest.approx(0.693147, abs=1e-6)
    data = random_pairs(12)
    now = score(model, data)
    with adapter_off(model):
        assert abs(score(model, data) - now).max() > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputing_activations_gives_the_adapter_the_same_gradient(checkpointing):
    model = add_lora(tiny_llama(), rank=4)
    events = learnt(model, config=replace(CONFIG, gradient_checkpointing=checkpointing))
    plain = add_lora(tiny_llama(), rank=4)
    assert losses(events) == pytest.approx(losses(learnt(plain)), abs=1e-6)


# ── the reference and its cache ──────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_that_is_off_has_its_bases_fingerprint():
    base = fingerprint(tiny_llama())
    model = add_lora(tiny_llama(), rank=4)
    assert fingerprint(model) != base
    learnt(model)
    with adapter_off(model):
        assert fingerprint(model) == base
    with torch.no_grad():
        model.get_base_model().model.norm.weight[0] += 1
    with adapter_off(model):
        assert fingerprint(model) != base


def test_the_cache_of_the_base_serves_every_fresh_adapter_and_the_other_way_round(tmp_path):
    data, scored = random_pairs(12), []
    tell = lambda done, total: scored.append(total)
    with ReferenceCache(tmp_path) as cache:
        learnt(add_lora(tiny_llama(), rank=4), data, cache=cache, on_reference=tell)
        assert scored
        assert cache.logps(tiny_llama(), data).num_computed == 0
        scored.clear()
        for rank, seed in ((4, 1), (8, 0)):
            learnt(add_lora(tiny_llama(), rank=rank, seed=seed), data, cache=cache, on_reference=tell)
        learnt(tiny_llama(), data, cache=cache, on_reference=tell)
        assert not scored


def test_what_an_adapter_has_learnt_already_belongs_to_the_reference(tmp_path):
    """Lines 15 of the list of what goes wrong: switching off an SFT adapter would not give the SFT model."""
    data, model = random_pairs(12), add_lora(tiny_llama(), rank=4)
    list(train_sft(model, None, data, SFTConfig(batch_size=4, max_steps=3, learning_rate=1e-2, device="cpu")))
    tuned = score(model, data)
    assert not adds_nothing(model)
    with as_reference(model):
        assert (score(model, data) == tuned).all()
    with ReferenceCache(tmp_path) as cache:
        assert losses(learnt(model, data, cache=cache))[0] == pytest.approx(0.693147, abs=1e-6)
        assert cache.logps(tiny_llama(), data).num_computed == len(data)  # the base's values are others


def test_dropout_is_off_for_the_reference_even_where_training_keeps_it():
    data = random_pairs(12)
    model = add_lora(tiny_llama(), rank=4, dropout=0.5)
    base = score(tiny_llama(), data)
    with as_reference(model):
        assert (score(model, data) == base).all()
    noisy = replace(CONFIG, dropout=True)
    kept = losses(learnt(model, data, noisy))
    assert kept[0] == pytest.approx(0.693147, abs=1e-6)  # B is zero, whatever is dropped before it
    without = losses(learnt(add_lora(tiny_llama(), rank=4, dropout=0.5), data))
    assert kept[1:] != without[1:]
    assert without == losses(learnt(add_lora(tiny_llama(), rank=4), data))  # off by default


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_resumed_run_is_the_uninterrupted_one_and_its_checkpoint_holds_the_adapter_alone(tmp_path):
    from safetensors import safe_open

    whole = add_lora(tiny_llama(), rank=4)
    events = learnt(whole)
    learnt(add_lora(tiny_llama(), rank=4), checkpoints=tmp_path, stop=lambda: True)
    checkpoint = tmp_path / "step-00000001"
    with safe_open(checkpoint / WEIGHTS, "pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118  a file is no dictionary
    model = add_lora(tiny_llama(), rank=4, seed=5)  # the checkpoint's adapter takes the place of this one
    resumed = learnt(model, resume=checkpoint)
    assert losses(resumed) == losses(events)[1:]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_refuses_another_base_and_another_adapter(tmp_path):
    config = SFTConfig(batch_size=4, max_steps=3, device="cpu")

    def trained(model, **options):
        return list(train_sft(model, None, random_pairs(12), config, **options))

    trained(add_lora(tiny_llama(), rank=4), checkpoints=tmp_path, stop=lambda: True)
    checkpoint = tmp_path / "step-00000001"
    with pytest.raises(ValueError, match=r"belongs to another run: frozen was .* and is "):
        trained(add_lora(tiny_llama(seed=1), rank=4), resume=checkpoint)
    with pytest.raises(ValueError, match=r"another run: adapters.default.lora_alpha was '8' and is '16'"):
        trained(add_lora(tiny_llama(), rank=4, alpha=16), resume=checkpoint)
    with pytest.raises(ValueError, match=r"adapters.default.r was '4' and is '8'"):
        trained(add_lora(tiny_llama(), rank=8, alpha=8), resume=checkpoint)
    with pytest.raises(ValueError, match="belongs to another run"):
        trained(tiny_llama(), resume=checkpoint)


# ── adapters as folders ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_merged_from_its_folder_is_the_policy(tmp_path):
    data, model = random_pairs(12), add_lora(tiny_llama(), rank=4)
    learnt(model)
    folder = save_adapter(model, tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    merged = merge_adapter(tiny_llama(), folder)
    assert abs(score(merged, data) - score(model, data)).max() < 1e-4
    whole, _ = load_policy(save_policy(model, tiny_tokenizer(), tmp_path / "model"), device="cpu")
    assert fingerprint(merged) == fingerprint(whole)


def test_an_adapter_comes_and_goes_without_a_warning(tmp_path):
    """A notebook shows every warning to its reader, and nothing can be done about one between two libraries."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        merge_adapter(tiny_llama(), save_adapter(add_lora(tiny_llama(), rank=4), tmp_path))
    assert [str(warning.message) for warning in told] == []


def test_an_adapter_of_a_model_of_the_hub_is_merged_without_a_question_to_the_hub(tmp_path, monkeypatch):
    asked, (base, again) = [], (tiny_llama(), tiny_llama())
    base.name_or_path = again.name_or_path = "owner/model"
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *what: asked.append(what))
    merge_adapter(again, save_adapter(add_lora(base, rank=4), tmp_path))
    assert asked == []


def test_an_adapter_saved_with_its_embeddings_is_merged(tmp_path):
    from peft import LoraConfig, get_peft_model

    data = random_pairs(12)
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    learnt(model)
    model.save_pretrained(tmp_path, save_embedding_layers=True)  # as "auto" decides where they are targeted
    assert abs(score(merge_adapter(tiny_llama(), tmp_path), data) - score(model, data)).max() < 1e-4


def test_a_merged_adapter_is_a_reference_like_any_other(tmp_path):
    data, model = random_pairs(12), add_lora(tiny_llama(), rank=4)
    learnt(model)
    merged = merge_adapter(tiny_llama(), save_adapter(model, tmp_path))
    tuned = score(merged, data)
    policy = add_lora(merged, rank=4)
    learnt(policy)
    with adapter_off(policy):
        assert (score(policy, data) == tuned).all()


def refusal(action, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        action(*arguments, **options)
    return str(caught.value)


def test_what_is_no_adapter_of_this_base_is_refused(tmp_path):
    assert "holds no adapter: adapter_config.json is missing; give a folder such as RUN/adapter" in refusal(
        merge_adapter, tiny_llama(), tmp_path
    )
    folder = save_adapter(add_lora(tiny_llama(), rank=4), tmp_path / "adapter")
    for other in (tiny_llama(hidden_size=64), tiny_llama(num_hidden_layers=3), tiny_llama(num_hidden_layers=1)):
        told = refusal(merge_adapter, other, folder)
        assert f"the adapter in {folder} does not fit its base model" in told
        assert "give the model that it was trained on" in told
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "does not fit its base model" in refusal(merge_adapter, tiny_llama(), folder)
    weights.rename(folder / "adapter_model.bin")
    assert "a pickled adapter can run code and is not read" in refusal(merge_adapter, tiny_llama(), folder)
    (folder / "adapter_config.json").write_text("{")
    assert "is damaged" in refusal(merge_adapter, tiny_llama(), folder)


def test_an_adapter_that_cannot_be_is_refused_with_the_remedy():
    model = tiny_llama()
    assert "rank of LoRA must be at least 1, got 0; 8 to 64 are usual" in refusal(add_lora, model, rank=0)
    assert "alpha of LoRA must be positive, got -1" in refusal(add_lora, model, rank=4, alpha=-1)
    assert "dropout of LoRA must lie in [0, 1), got 1" in refusal(add_lora, model, rank=4, dropout=1)
    told = refusal(add_lora, model, rank=4, targets=["q_proj", "query"])
    assert "no linear layer is called query; the model has down_proj, gate_proj, k_proj, lm_head" in told
    adapted = add_lora(model, rank=4)
    assert "has an adapter already" in refusal(add_lora, adapted, rank=4)
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="taking it out again is not exact"), adapter_off(adapted):
        pass


def test_options_that_would_do_nothing_are_refused():
    told = refusal(LoRAConfig(lora_alpha=8.0).check_lora, False)
    assert "lora_alpha is 8.0 without an adapter; give lora as well, a rank such as 16" in told
    assert "dropout is off for the whole run" in refusal(LoRAConfig(lora=8, lora_dropout=0.1).check_lora, False)
    LoRAConfig(lora=8, lora_dropout=0.1).check_lora(True)
    assert "lora_dropout is 0.1" in refusal(Recipe, lora=8, lora_dropout=0.1)


def test_without_peft_the_way_to_get_it_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'dpo-lab\[lora\]'"):
        add_lora(tiny_llama(), rank=4)


# ── from the command line ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", some_rows(16))


def test_the_command_trains_an_adapter_and_merges_it(tmp_path, pairs, capsys):
    base, run = chat_model(tmp_path / "base"), tmp_path / "run"
    asked = ("train", "--model", base, "--pairs", pairs, "--run", run, "--lora", 4, "--learning-rate", 1e-2, *QUICK)
    told = dpo_lab(capsys, *asked)
    assert told.status == 0, told.err
    assert "reference: 16 pairs scored" in told.out
    settings = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4
    assert settings["lora_alpha"] == 8
    assert settings["base_model_name_or_path"] == str(base)
    told = dpo_lab(capsys, "merge", run / "adapter", "--output", tmp_path / "merged")
    assert told.status == 0, told.err
    merged, whole = (load_policy(folder, device="cpu")[0] for folder in (tmp_path / "merged", run / "model"))
    assert fingerprint(merged) == fingerprint(whole)
    assert fingerprint(whole) != fingerprint(load_policy(base, device="cpu")[0])
    told = dpo_lab(capsys, "merge", run / "adapter", "--output", tmp_path / "merged")
    assert told.status == 2
    assert "is not empty; name a new or an empty folder" in told.message
    told = dpo_lab(capsys, "train", "--model", run / "adapter", "--pairs", pairs, "--run", tmp_path / "no")
    assert "dpo-lab merge ADAPTER --output FOLDER" in told.message
    # the base's log-probs are in the cache, whatever is trained on it
    again = dpo_lab(capsys, *asked[:5], "--run", tmp_path / "full", *QUICK)
    assert "all 16 pairs found in the cache, none scored" in again.out


def test_the_command_goes_on_with_an_adapter(tmp_path, pairs, capsys):
    base = chat_model(tmp_path / "base")
    asked = ("train", "--model", base, "--pairs", pairs, "--lora", 4, "--lora-targets", "q_proj", "v_proj",
             "--learning-rate", 1e-2, "--checkpoint-every", 1, "--keep-checkpoints", 9, *QUICK)  # fmt: skip
    for run in ("whole", "part"):
        assert dpo_lab(capsys, *asked, "--run", tmp_path / run).status == 0
    part = Run.load(tmp_path / "part")
    steps = sorted(part.checkpoints.iterdir())
    assert len(steps) > 2
    for step in steps[2:]:
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    told = dpo_lab(capsys, "train", "--run", tmp_path / "part", "--resume")
    assert told.status == 0, told.err
    assert "going on after step 2" in told.out
    whole = Run.load(tmp_path / "whole")
    assert without_seconds(part.metrics) == without_seconds(whole.metrics)
    models = [load_policy(run.model_folder, device="cpu")[0] for run in (part, whole)]
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_a_recipe_with_an_adapter_gives_the_same_run_in_all_three_ways(tmp_path, pairs, capsys, monkeypatch):
    base = chat_model(tmp_path / "base")
    recipe = Recipe(
        model=str(base), pairs=str(pairs), lora=4, lora_targets=("q_proj", "down_proj"), samples=0,
        config=DPOConfig(batch_size=4, learning_rate=1e-2, device="cpu"),
    )  # fmt: skip
    line = command_line(recipe)
    assert "--lora 4 --lora-targets q_proj down_proj" in line
    list(carry_out(recipe, tmp_path / "panel"))
    assert dpo_lab(capsys, *line.split()[1:], "--run", tmp_path / "line").status == 0
    monkeypatch.chdir(tmp_path)
    exec(python_code(recipe, "code"), {})
    runs = [Run.load(tmp_path / name) for name in ("panel", "line", "code")]
    found = {fingerprint(load_policy(run.model_folder, device="cpu")[0]) for run in runs}
    assert len(found) == 1
    for run in runs:
        assert (run.adapter_folder / "adapter_model.safetensors").is_file()


def test_the_kl_from_the_base_needs_no_second_copy_of_it():
    model, tokenizer = add_lora(tiny_llama(), rank=4), tiny_tokenizer()
    learnt(model)
    prompts = [[1, 7, 9], [1, 8, 10], [1, 11, 12]]
    how = {"max_new_tokens": 8, "seed": 3}
    assert kl_from_reference(model, None, tokenizer, prompts, **how) == (
        kl_from_reference(model, tiny_llama(), tokenizer, prompts, **how)
    )
    with pytest.raises(ValueError, match="no adapter to switch off; give the reference that it started from"):
        kl_from_reference(tiny_llama(), None, tokenizer, prompts, **how)
