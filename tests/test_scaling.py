"""Counts before a run: weights against transformers and peft, cuts against the processes themselves; their pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.course.plots.scaling import (
    amount,
    describe_scaling,
    plot_batch_cut,
    plot_device_memory,
    plot_growth,
    plot_same_curves,
)
from dpo_lab.course.speed.scaling import (
    SHAPES,
    Shape,
    cut_batch,
    device_memory,
    live_references,
    num_adapter_weights,
    num_weights,
    ways_to_train,
)
from dpo_lab.engine.engine import Engine
from dpo_lab.engine.processes import Processes
from dpo_lab.models import num_parameters
from dpo_lab.models.lora import add_lora
from dpo_lab.workbench.plots import to_png


def empty_model(shape: Shape):
    """A model of this shape without any numbers in it."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    settings = (Qwen2Config if shape.has_biases else LlamaConfig)(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.is_tied,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings)


SMALL = {
    "shared keys": Shape(100, 32, 48, 2, 4, 2),
    "untied": Shape(64, 24, 40, 3, 3, 3, is_tied=False),
    "biases": Shape(90, 32, 56, 2, 4, 1, has_biases=True),
    "embedded": SHAPES["pocket-sft"],
}


@pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL.keys())
def test_weights_are_counted_as_the_libraries_count_them(shape):
    model = empty_model(shape)
    assert num_weights(shape) == num_parameters(model)
    adapted = add_lora(model, rank=4)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert num_adapter_weights(shape, 4) == trained


def test_published_numbers_of_weights():
    counts = {name: num_weights(shape) for name, shape in SHAPES.items()}
    assert counts == {
        "pocket-sft": 1_465_760, "SmolLM2-135M": 134_515_008, "Qwen2.5-0.5B": 494_032_768,
        "Llama-2-7B": 6_738_415_616, "Llama-2-70B": 68_976_648_192,
    }  # fmt: skip


def test_a_trained_weight_takes_16_bytes_and_a_frozen_one_4():
    assert device_memory(1000) == {"weights": 4000, "gradients": 4000, "Adam's moments": 8000}
    assert sum(device_memory(1000, num_trained=10).values()) == 4 * 1000 + 12 * 10
    assert sum(device_memory(1000, num_processes=8).values()) == 16_000
    assert sum(device_memory(1000, num_processes=8, is_split=True).values()) == 2_000


def test_what_a_step_really_keeps_is_what_is_counted():
    from tests.conftest import tiny_llama

    model = add_lora(tiny_llama(), rank=4)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    counted = device_memory(num_parameters(model), num_trained=sum(p.numel() for p in trained))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert [size(model.parameters()), size(grads), size(moments)] == list(counted.values())


def test_the_four_ways_stand_in_order_of_what_they_hold():
    ways = ways_to_train(SHAPES["Llama-2-7B"], num_processes=8, rank=16)
    totals = {way: sum(parts.values()) for way, parts in ways.items()}
    assert list(totals) == ["all weights, DDP", "all weights, FSDP", "LoRA 16, DDP", "LoRA 16, FSDP"]
    assert totals["all weights, DDP"] == 16 * 6_738_415_616
    assert totals["all weights, FSDP"] == totals["all weights, DDP"] / 8
    assert totals["LoRA 16, FSDP"] < totals["all weights, FSDP"] < totals["LoRA 16, DDP"] < totals["all weights, DDP"]


def test_a_live_reference_is_held_as_the_policy_is_and_an_adapter_needs_none():
    ways = ways_to_train(SHAPES["Llama-2-7B"], num_processes=8, rank=16)
    whole = 4 * 6_738_415_616
    assert list(live_references(ways).values()) == [whole, whole / 8, 0.0, 0.0]


@pytest.mark.parametrize(("batch", "num", "most"), [(64, 4, 8), (17, 2, 3), (9, 2, 2), (3, 8, 4), (1, 1, 1)])
def test_a_batch_is_cut_as_the_processes_cut_it(batch, num, most):
    def passes_of(index: int) -> list[int]:
        engine = Engine(torch.device("cpu"), Processes(index, num))
        engine.config, engine.is_halved = DPOConfig(micro_batch_size=most, tokens_per_pass=10**6), False
        engine.shards = object()  # what split weights change: gradients are added up at every pass
        return [len(part) if weight else 0 for (part,), weight in engine.passes(np.arange(batch), np.ones(batch, int))]

    expected = [passes_of(index) for index in range(num)]
    assert cut_batch(batch, num, most) == expected
    assert sum(map(sum, expected)) == batch


def test_counts_that_cannot_be_are_refused():
    for act, told in (
        (lambda: device_memory(10, num_trained=11), "num_trained must lie between 1 and num_weights, 10, got 11"),
        (lambda: device_memory(10, num_processes=0), "num_processes must be at least 1, got 0"),
        (lambda: cut_batch(8, 2, 0), "pairs_per_pass must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=told):
            act()


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def texts(ax) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def test_each_bar_tells_its_total():
    ways = ways_to_train(SHAPES["Qwen2.5-0.5B"], num_processes=4, rank=16)
    ax = plot_device_memory(ways, live_references=live_references(ways), device=8e9)
    assert [text.split(" + ")[0] for text in texts(ax)] == [amount(sum(parts.values())) for parts in ways.values()]
    assert texts(ax)[:2] == ["7.9 GB + 1.98 GB", "1.98 GB + 494 MB"]
    assert [np.asarray(line.get_xdata())[0] for line in ax.get_lines()] == [8.0]
    legend = ax.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {
        "a device of 8 GB", "weights", "gradients", "Adam's moments", "a live reference, spared",
    }  # fmt: skip
    picture = ax.get_figure(root=True)
    assert picture is not None
    assert to_png(picture)


def test_a_cut_has_a_cell_for_each_pass_and_tells_what_it_hides():
    ax = plot_batch_cut(cut_batch(17, 2, 3))
    assert texts(ax) == ["3", "3", "3", "3", "3", "2"]
    assert "2 processes, 3 passes each" in ax.get_title(loc="left")
    large = plot_batch_cut(cut_batch(128, 1, 1))
    assert len(large.texts) == 16
    assert "the first 1 × 16 shown" in large.get_xlabel()


def test_the_words_tell_what_fits():
    ways = {"a": {"weights": 5e9, "gradients": 0.0, "Adam's moments": 0.0},
            "b": {"weights": 2e9, "gradients": 1e9, "Adam's moments": 0.0}}  # fmt: skip
    words = describe_scaling(ways, [[2, 1], [2, 0]], device=4e9)
    assert "a 5 GB; b 3 GB" in words
    assert "Below 4 GB: b." in words
    assert "A step of 5 pairs goes through 2 processes in 2 passes each, 1 pass of them for nothing." in words


@pytest.mark.parametrize(
    ("size", "said"), [(12, "12 bytes"), (4e3, "4 kB"), (1.5e6, "1.5 MB"), (107.8e9, "108 GB"), (3.2e12, "3.2 TB")]
)
def test_bytes_are_told_with_their_unit(size, said):
    assert amount(size) == said


def test_curves_that_are_one_and_what_grows_are_drawn():
    steps = [1, 2, 3]
    ax = plot_same_curves({"one": (steps, [3.0, 2.0, 1.0]), "two": (steps, [3.0, 2.0, 1.0])})
    assert [np.asarray(line.get_ydata()).tolist() for line in ax.get_lines()] == [[3.0, 2.0, 1.0]] * 2
    grown = plot_growth({"log-probs": 40.0}, [1e3, 1e6])
    assert np.asarray(grown.get_lines()[0].get_ydata()).tolist() == [4e4, 4e7]


def test_the_widget_draws_what_its_plain_function_draws():
    pytest.importorskip("ipywidgets")
    from dpo_lab.course.sliders import describe_scaling_of, draw_scaling, scaling_widget

    figure = scaling_widget()
    before = figure.image.value
    figure.controls["num_processes"].value = 8
    assert figure.image.value != before
    assert figure.image.value == to_png(draw_scaling(num_processes=8))
    assert describe_scaling_of(num_processes=8) in figure.words.value.replace("&#x27;", "'")
    with pytest.raises(ValueError, match=r"model must be one of pocket-sft, .* got 'GPT-9'"):
        draw_scaling("GPT-9")
