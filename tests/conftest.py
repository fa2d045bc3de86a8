"""What several tests stand on: tiny models and tokenizers made on the spot, and the folder of real inputs."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-benchmarks", action="store_true", help="run tests/benchmarks, which take minutes")
    parser.addoption("--run-browser", action="store_true", help="run tests/browser, which use JupyterLab as people do")
    parser.addoption("--run-slow", action="store_true", help="run what takes minutes as well")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    for folder, option in (("benchmarks", "--run-benchmarks"), ("browser", "--run-browser")):
        if collection_path.is_relative_to(ROOT / "tests" / folder) and not config.getoption(option):
            return True
    return None


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real models and preference data that stands beside the checkout; tests skip where it is absent."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip("the folder of real inputs (../shared/real) is absent")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, decoded once per machine from the installed package; skips without it."""
    from dpo_lab.models import gguf

    file = gguf.package_file()
    if file is None or find_spec("gguf") is None:
        pytest.skip("the real model is not installed; `make test` installs it")
    return gguf.converted(file)


@pytest.fixture(autouse=True)
def log_level():
    """What a command sets for its own process does not outlast the test."""
    logger = logging.getLogger("dpo_lab")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's reference cache."""
    monkeypatch.setenv("DPO_LAB_CACHE", str(tmp_path / "cache"))


def tiny_llama(vocab_size: int = 64, *, seed: int = 0, **settings):
    """A random Llama with grouped-query attention: 2 layers of width 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3, "tie_word_embeddings": False,
        } | settings
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def model():
    return tiny_llama()


def random_pairs(num: int, *, vocab_size: int = 64, seed: int = 0, longest: int = 12, empty_prompts: bool = False):
    """`num` made-up pairs of token ids, of uneven lengths."""
    from dpo_lab.preferences import TokenData

    generator = np.random.default_rng(seed)
    draw = lambda low, high: generator.integers(3, vocab_size, generator.integers(low, high + 1)).astype(np.int32)
    shortest = 0 if empty_prompts else 1
    return TokenData.from_rows([(draw(shortest, longest), (draw(2, longest), draw(2, longest))) for _ in range(num)])


def tooltip_of(control: Any) -> str:
    """What a control shows beside the mouse that rests on it; in ipywidgets 7 only buttons have the trait `tooltip`."""
    return control.tooltip if hasattr(control, "tooltip") else control.description_tooltip
