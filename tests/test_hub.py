"""Models and preference sets of the Hub: folders with their layouts, the same by name, and what a refusal says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.logprobs import scoring_path
from dpo_lab.loop import Step
from dpo_lab.models import load_policy, save_policy
from dpo_lab.preferences import encode_prompt, read_preferences, tokenize_pairs
from dpo_lab.sampling import generate
from dpo_lab.training import train_dpo
from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.recipes import RECIPES, Recipe, carry_out, command_line
from tests.command_line import dpo_lab
from tests.conftest import ROOT
from tests.hub_layouts import HH, QWEN, SMOLLM2, ULTRAFEEDBACK, hh_rlhf, qwen, smollm2, ultrafeedback
from tests.hub_server import small_hub

MODELS = pytest.mark.parametrize("make", [smollm2, qwen])


# ── folders as the Hub has them ──────────────────────────────────────────────────────────────────────────────────────


@MODELS
def test_a_model_as_published_loads_with_its_end_and_its_template(make, tmp_path):
    folder = make(tmp_path / "model")
    model, tokenizer = load_policy(folder, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # it is published in bfloat16
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == {"smollm2": "<|im_end|>", "qwen": "<|endoftext|>"}[make.__name__]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    path = scoring_path(model)
    assert path.chunked
    assert path.shared
    row = {"prompt": [{"role": "user", "content": "What is the answer?"}]}
    text = tokenizer.decode(encode_prompt(row, tokenizer, 100))
    assert text == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                    "<|im_start|>user\nWhat is the answer?<|im_end|>\n<|im_start|>assistant\n")  # fmt: skip


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    folder = qwen(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    model, _ = load_policy(folder, device="cpu")
    assert set(index["weight_map"]) == {name for name, _ in model.named_parameters()}
    (folder / sorted(shards)[0]).unlink()
    with pytest.raises(ValueError, match=f"the model in {folder} cannot be loaded"):
        load_policy(folder, device="cpu")


@MODELS
def test_a_model_as_published_learns_from_pairs_as_published(make, tmp_path):
    model, tokenizer = load_policy(make(tmp_path / "model"), device="cpu")
    rows, report = read_preferences(ultrafeedback(tmp_path / "data"))
    assert report.rows_kept == 12
    tokens, _ = tokenize_pairs(rows, tokenizer, max_length=128)
    end = tokenizer.eos_token_id
    assert {int(tokens.ids[end_of - 1]) for bounds in tokens.bounds for end_of in bounds[2:]} == {end}
    config = DPOConfig(batch_size=6, epochs=6, learning_rate=3e-3, beta=0.1, device="cpu")
    losses = [e.metrics["loss"] for e in train_dpo(model, tokenizer, tokens, config) if isinstance(e, Step)]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < 0.6
    again, _ = load_policy(save_policy(model, tokenizer, tmp_path / "saved"), device="cpu")
    prompts = [encode_prompt(row, tokenizer, 100) for row in rows[:2]]
    options = {"max_new_tokens": 6, "temperature": 0.0}
    assert generate(again, tokenizer, prompts, **options) == generate(model, tokenizer, prompts, **options)


def test_ultrafeedback_is_read_as_conversations_with_their_scores(tmp_path):
    folder = ultrafeedback(tmp_path / "ultrafeedback_binarized")
    rows, report = read_preferences(folder)
    assert report.layouts == {"implicit": 12}
    assert rows[3]["prompt"] == [{"content": "What is the train answer 3?", "role": "user"}]
    assert rows[3]["chosen"] == [{"content": "The answer is 3.", "role": "assistant"}]
    assert (rows[3]["score_chosen"], rows[3]["score_rejected"]) == (8.0, 3.5)
    assert len(read_preferences(folder, split="test")[0]) == 4


def test_hh_rlhf_is_read_whole_or_by_folder_without_its_red_team_transcripts(tmp_path):
    folder = hh_rlhf(tmp_path / "hh-rlhf")
    rows, report = read_preferences(folder)
    assert report.layouts == {"transcript": 4 * 8}
    assert "other splits, not read: red_team_attempts, test" in report.summary()
    assert rows[0]["prompt"].endswith("Human: and the cat?\n\nAssistant:")
    assert rows[0]["chosen"] == " The cat is on the mat."
    part, _ = read_preferences(folder / "harmless-base", split="test")
    assert len(part) == 4
    assert all("harmless-base test" in row["prompt"] for row in part)


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_a_command_that_says_all_of_it(name):
    recipe = RECIPES[name].recipe
    options = parse(command_line(recipe).split()[1:])
    for field, value in recipe.settings.items():
        assert getattr(options, field) == value, field


def test_the_command_lists_the_recipes(capsys):
    told = dpo_lab(capsys, "recipes")
    assert told.status == 0
    for name, named in RECIPES.items():
        assert name in told.out
        assert command_line(named.recipe) in told.out
    assert "--model Qwen/Qwen2.5-0.5B-Instruct --pairs trl-lib/ultrafeedback_binarized" in told.out


@pytest.mark.parametrize("name", ["owner/name:..", "owner/name:../other", "owner/name:.git", "../owner/name:part"])
def test_the_part_of_a_data_set_cannot_lead_out_of_it(name):
    with pytest.raises(FileNotFoundError, match="does not exist; give a file or folder"):
        read_preferences(name)


def test_a_named_recipe_runs_on_folders_of_the_same_layout(tmp_path):
    named = RECIPES["qwen2.5-ultrafeedback-lora"].recipe
    settings = vars(named.config) | {"device": "cpu", "precision": "float32", "max_steps": 2}
    recipe = Recipe(**{
        **{name: value for name, value in vars(named).items() if name != "config"},
        "model": str(qwen(tmp_path / "model")), "pairs": str(ultrafeedback(tmp_path / "pairs", 36)),
        "samples": 1, "max_new_tokens": 4, "validation": 0.2, "config": DPOConfig(**settings),
    })  # fmt: skip
    events = list(carry_out(recipe, tmp_path / "run"))
    steps = [event for event in events if isinstance(event, Step)]
    assert len(steps) == 2
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert load_policy(tmp_path / "run" / "model", device="cpu")[0].config.model_type == "qwen2"


# ── by name ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def in_process(home: Path, code: str, **environment: str) -> str:
    """What some lines print in a process of their own, whose Hub cache is `home`."""
    lines = f"from dpo_lab.models.loading import load_policy\nfrom dpo_lab.preferences import read_preferences\n{code}"
    environment = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", **environment}
    keep = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", lines], capture_output=True, text=True, timeout=300, check=False,
        env=keep | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TRIED = """
def tried(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except (ValueError, OSError) as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
    else:
        print("no error")
"""


@pytest.mark.slow
def test_all_four_are_found_by_name_and_again_without_a_network(tmp_path):
    """The whole way: download through huggingface_hub and datasets from a Hub in miniature, then from their caches."""
    repositories = {
        SMOLLM2: smollm2(tmp_path / "a"), QWEN: qwen(tmp_path / "b"),
        ULTRAFEEDBACK: ultrafeedback(tmp_path / "c"), HH: hh_rlhf(tmp_path / "d"),
    }  # fmt: skip
    code = f"""
for name in ({SMOLLM2!r}, {QWEN!r}):
    model, tokenizer = load_policy(name, device="cpu")
    print(model.config.model_type, tokenizer.eos_token, tokenizer.chat_template is not None)
for name, split in (({ULTRAFEEDBACK!r}, None), ({ULTRAFEEDBACK!r}, "test"), ({HH!r}, None),
                    ("{HH}:harmless-base", None)):
    rows, report = read_preferences(name, split=split)
    print(len(rows), dict(report.layouts))
"""
    expected = ["llama <|im_end|> True", "qwen2 <|im_end|> True", "12 {'implicit': 12}", "4 {'implicit': 4}",
                "32 {'transcript': 32}", "8 {'transcript': 8}"]  # fmt: skip
    with small_hub(repositories) as address:
        assert in_process(tmp_path / "home", code, HF_ENDPOINT=address).splitlines() == expected
    assert in_process(tmp_path / "home", code, HF_HUB_OFFLINE="1").splitlines() == expected


@pytest.mark.slow
def test_smollm2_is_the_hub_s_where_the_hub_answers_and_stays_it_without_a_network(tmp_path):
    code = """
from dpo_lab.models import origin_of
print(origin_of(load_policy("smollm2", device="cpu")[0]))
"""
    with small_hub({SMOLLM2: smollm2(tmp_path / "a")}) as address:
        assert in_process(tmp_path / "home", code, HF_ENDPOINT=address) == f"{SMOLLM2}\n"
    assert in_process(tmp_path / "home", code, HF_HUB_OFFLINE="1") == f"{SMOLLM2}\n"


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_with_what_to_do(tmp_path):
    code = f"""{TRIED}
tried(load_policy, "owner/closed", device="cpu")
tried(load_policy, "owner/missing", device="cpu")
tried(read_preferences, "owner/closed")
tried(read_preferences, "owner/missing")
tried(read_preferences, "{HH}:no-such-part")
tried(read_preferences, "{HH}", split="validation")
"""
    with small_hub({HH: hh_rlhf(tmp_path / "hh")}, gated=("owner/closed",)) as address:
        told = in_process(tmp_path / "home", code, HF_ENDPOINT=address).splitlines()
    remedy = "log in with `hf auth login`"
    assert told[0].startswith("ValueError owner/closed is gated or private; accept its terms on the Hub")
    assert remedy in told[0]
    assert told[1].startswith("ValueError the Hub has no model 'owner/missing'; check the spelling")
    assert told[2].startswith("PermissionError owner/closed is gated: accept its terms on huggingface.co/datasets")
    assert remedy in told[2]
    assert told[3].startswith("FileNotFoundError owner/missing is neither a file here nor a data set on the Hub")
    assert told[4].startswith(
        "FileNotFoundError Anthropic/hh-rlhf has neither a configuration nor a folder called 'no-such-part'"
    )
    assert told[5].startswith("ValueError split 'validation' is not in Anthropic/hh-rlhf")


@pytest.mark.slow
def test_without_a_network_the_way_on_is_told(tmp_path):
    code = f"""{TRIED}
tried(load_policy, {SMOLLM2!r}, device="cpu")
tried(read_preferences, {ULTRAFEEDBACK!r})
"""
    model, data = in_process(tmp_path, code, HF_HUB_OFFLINE="1").splitlines()
    assert f"the tokenizer {SMOLLM2!r} is no folder here and cannot be fetched from the Hub" in model
    assert "go online once, or download it and give its folder" in model
    assert data.startswith(f"ConnectionError {ULTRAFEEDBACK} is not a file here and the Hub cannot be reached")
    assert "check the path, go online, or use 'embedded' data" in data
