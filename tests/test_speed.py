"""Where time and memory go: counts against torch's own counter and by hand, timed steps against train_dpo's."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dpo_lab import DPOConfig, train_dpo
from dpo_lab.batching import make_batch
from dpo_lab.course.saved_results import gpu_ways
from dpo_lab.course.speed.flops import forward_flops
from dpo_lab.course.speed.from_scratch import SIZES, judged, new_llama, own_pairs, sft_tokens
from dpo_lab.course.speed.memory import MemoryBook, device_memory, peak_device_memory
from dpo_lab.course.speed.phases import PHASES, summary, timed_steps
from dpo_lab.course.speed.rates import matrix_rate, seconds_of
from dpo_lab.course.speed.simulated_gpu import SimulatedGPU
from dpo_lab.engine.compiling import compile_blocks
from dpo_lab.logprobs import score, sequence_logps, token_logps
from dpo_lab.loop import Step
from dpo_lab.preferences import TokenData
from tests.conftest import ROOT, random_pairs, tiny_llama

CONFIG = {"batch_size": 4, "learning_rate": 1e-3, "device": "cpu", "max_length": 64}


def takes_minutes(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--run-slow"):
        pytest.skip("minutes; --run-slow runs it")


# ── operations ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_operations_are_those_that_torch_counts():
    """Two rows without padding: everything agrees but attention, of which torch counts the hidden half too."""
    model = tiny_llama(tie_word_embeddings=True)
    data = TokenData.from_rows([(np.arange(5, 14), (np.arange(4) + 20, np.arange(4) + 30))])
    batch = make_batch(data, [0], "separate")
    assert batch.input_ids.shape == (2, 13)
    token_logps(model, batch)  # the check of the model's paths is not counted
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model.base_model(batch.input_ids).last_hidden_state.flatten(0, 1)[batch.predictors]
        hidden @ model.get_output_embeddings().weight.T
    layers, queries = 2, 32
    hidden_half = layers * 4 * queries * 2 * (13 * 13 - 13 * 14 // 2)
    rotations = 2 * 16 // 2 * 13 * 2  # positions times frequencies, which torch counts as a product
    found = counter.get_total_flops() - hidden_half
    assert 0 <= found - forward_flops(model.config, data, "separate")[0] <= 2 * rotations


def test_a_shared_prompt_is_counted_once():
    model, data = tiny_llama(), random_pairs(5)
    twice, once = forward_flops(model.config, data, "separate"), forward_flops(model.config, data)
    alone = TokenData.from_rows([(data.row(i).prompt, data.row(i).completions[:1]) for i in range(5)])
    other = TokenData.from_rows([(data.row(i).prompt, data.row(i).completions[1:]) for i in range(5)])
    both = forward_flops(model.config, alone) + forward_flops(model.config, other)
    np.testing.assert_array_equal(twice, both)
    assert (once < twice).all()


def test_operations_by_hand():
    """One layer of width 2 with one head, feed-forward of 4, vocabulary of 8; prompt of 2, completions of 1 and 3."""
    config = tiny_llama(8, hidden_size=2, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
                        num_key_value_heads=1).config  # fmt: skip
    data = TokenData.from_rows([([3, 4], ([5], [6, 7, 5]))])
    matrices = 2 * (4 * 2 * 2 + 3 * 2 * 4) * 6  # per weight 2, for 6 tokens
    seen = 3 + (1 + 2 * 1) + (6 + 2 * 3)  # a completion sees its past and the prompt
    assert forward_flops(config, data)[0] == matrices + 4 * 2 * seen + 2 * 2 * 8 * 4


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_device_on_paper_works_while_the_program_goes_on():
    device = SimulatedGPU(launch=1, run=10, first=5)
    for _ in range(3):
        device.launch()
    assert device.clock() == 3
    device.wait()
    assert device.clock() == 1 + 15 + 10 + 10
    assert device.history == [(1, 1, 16), (2, 16, 26), (3, 26, 36)]
    device.wait()
    assert device.clock() == 36
    with pytest.raises(ValueError, match="not be negative, got launch -1"):
        SimulatedGPU(launch=-1)


def test_a_slow_queue_is_never_waited_for_where_writing_is_slower():
    device = SimulatedGPU(launch=4, run=1)
    for _ in range(5):
        device.launch()
    assert device.clock() == 20
    device.wait()
    assert device.clock() == 21


def test_warm_up_calls_are_not_timed():
    calls = []
    assert len(seconds_of(lambda: calls.append(1), "cpu", repeats=3, warm_up=2)) == 3
    assert len(calls) == 5


def test_the_rate_is_operations_over_seconds(monkeypatch):
    from dpo_lab.course.speed import rates

    monkeypatch.setattr(rates, "seconds_of", lambda work, device, repeats, warm_up=1: [0.5] * repeats)
    assert matrix_rate(16, seconds=0.0) == 2 * 16**3 / 0.5
    with pytest.raises(ValueError, match="'int8' is not known; choose one of float32"):
        matrix_rate(16, dtype="int8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rate_is_measured(dtype):
    assert matrix_rate(32, dtype=dtype, seconds=0.01) > 1e6


# ── steps by phase ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("changes", [{}, {"tokens_per_pass": 60}, {"layout": "separate"}, {"precision": "bfloat16"}])
def test_timed_steps_are_those_of_train_dpo(changes):
    data, config = random_pairs(12), DPOConfig(**CONFIG, **changes)
    trained, timed = tiny_llama(), tiny_llama()
    reference = score(timed, data, layout=config.layout, precision=config.precision)
    expected = [e.metrics["loss"] for e in train_dpo(trained, None, data, config) if isinstance(e, Step)]
    found = list(timed_steps(timed, data, reference, config))
    np.testing.assert_allclose([step.loss for step in found], expected, rtol=1e-5)
    for one, other in zip(trained.parameters(), timed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert [step.pairs for step in found] == [4, 4, 4]
    assert all(set(step.seconds) == set(PHASES) for step in found)


def test_a_step_without_borders_takes_one_time():
    model, data = tiny_llama(), random_pairs(8)
    seen = []
    watch = lambda phase, optimizer: seen.append((phase, type(optimizer).__name__))
    steps = list(timed_steps(model, data, score(model, data), DPOConfig(**CONFIG), by_phase=False, watch=watch))
    assert all(set(step.seconds) <= {"batch", "step"} for step in steps)
    assert [phase for phase, _ in seen] == [*PHASES] * 2
    assert {name for _, name in seen} == {"AdamW"}
    told = summary(steps)
    assert told["tokens_per_pair"] * 4 == steps[1].tokens
    assert told["pairs_per_second"] == pytest.approx(4 / steps[1].total)
    with pytest.raises(ValueError, match="2 steps and 5 are for warming up"):
        summary(steps, skip=5)


def test_tokens_are_counted_with_their_padding():
    model, data = tiny_llama(), random_pairs(8)
    reference = score(model, data)
    shared, separate = (
        sum(s.tokens for s in timed_steps(copy.deepcopy(model), data, reference, DPOConfig(**CONFIG, layout=layout)))
        for layout in ("shared", "separate")
    )
    assert shared == data.prompt_lengths.sum() + data.completion_lengths.sum()
    assert separate >= 2 * data.prompt_lengths.sum() + data.completion_lengths.sum()


def test_loss_scaling_is_left_to_train_dpo():
    with pytest.raises(ValueError, match="float16 needs the loss scaling"):
        timed_steps(tiny_llama(), random_pairs(4), np.zeros((4, 2), np.float32), DPOConfig(precision="float16"))


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_book_of_one_product_by_hand():
    """y = x W, then its square: x and y are kept, W is a weight and counted once; after backward nothing is kept."""
    layer = torch.nn.Linear(3, 5, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    x = torch.ones(7, 3)
    with MemoryBook(layer, optimizer) as book:
        loss = layer(x).pow(2).sum()
        held = book.peak()
        book.enter("backward")
        loss.backward()
        book.enter("step")
        optimizer.step()
        optimizer.zero_grad()
    assert held["weights"] == 3 * 5 * 4
    assert held["kept"] == (7 * 3 + 7 * 5) * 4
    curve = book.curve()
    assert curve["kept"][-1] == 0
    assert max(curve["gradients"]) == 60
    assert curve["gradients"][-1] == 0
    assert curve["moments"][-1] == 2 * 60
    assert [phase for phase, _ in curve["phases"]] == ["start", "backward", "step"]
    assert curve["device"] is None


def test_a_view_of_a_kept_tensor_costs_nothing():
    layer = torch.nn.Linear(4, 4, bias=False)
    x = torch.ones(6, 4, requires_grad=True)
    with MemoryBook(layer) as book:
        y = layer(x)
        once = book.peak()["kept"]
        z = y * y.view(6, 4)  # both factors are kept, and are one piece of memory
        assert book.peak()["kept"] == once + y.untyped_storage().nbytes()
        del y, z
    assert book.curve()["kept"][-1] == 0


def test_smaller_passes_hold_less_and_learn_the_same():
    data = random_pairs(8, longest=20)
    peaks, losses = [], []
    for tokens in (16384, 60):
        model = tiny_llama()
        config = DPOConfig(**CONFIG | {"batch_size": 8}, tokens_per_pass=tokens, epochs=2)
        reference = score(model, data)
        with MemoryBook(model) as book:
            steps = list(timed_steps(model, data, reference, config, watch=book.watch))
        curve = book.curve()
        assert curve["kept"][-1] == curve["gradients"][-1] == 0
        assert max(curve["gradients"]) == curve["weights"][0]
        assert curve["moments"][-1] == 2 * curve["weights"][0]
        peaks.append(book.peak())
        losses.append([step.loss for step in steps])
    assert peaks[1]["kept"] < 0.5 * peaks[0]["kept"]
    assert peaks[0]["total"] == sum(value for name, value in peaks[0].items() if name != "total")
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_the_book_changes_no_value():
    data, config = random_pairs(8), DPOConfig(**CONFIG)
    plain, watched = tiny_llama(), tiny_llama()
    reference = score(plain, data)
    expected = [step.loss for step in timed_steps(plain, data, reference, config)]
    with MemoryBook(watched) as book:
        found = [step.loss for step in timed_steps(watched, data, reference, config, watch=book.watch)]
    assert found == expected


def test_a_cpu_has_no_meter_of_its_own():
    assert device_memory("cpu") is None
    assert peak_device_memory("cpu") > 2**20


# ── models from scratch ──────────────────────────────────────────────────────────────────────────────────────────────


def test_sizes_are_what_their_names_say():
    from dpo_lab import load_policy
    from dpo_lab.course.speed.scaling import num_weights
    from dpo_lab.models import num_parameters

    _, tokenizer = load_policy("embedded", device="cpu")
    with torch.device("meta"):
        for name, millions in (("30m", 29), ("135m", 136)):
            found = num_parameters(new_llama(name, tokenizer))
            assert found == num_weights(SIZES[name])
            assert round(found / 1e6) == millions
    one, other = new_llama("tiny", tokenizer, seed=3), new_llama(SIZES["tiny"], tokenizer, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="size '7b' is not known; choose one of tiny, 30m, 135m"):
        new_llama("7b", tokenizer)


def test_the_stages_from_random_weights():
    from dpo_lab import load_policy
    from dpo_lab.worlds import corpus

    model, tokenizer = load_policy("embedded", device="cpu")
    texts = sft_tokens(6, tokenizer)
    assert texts.num_completions == 1
    rows = own_pairs(model, tokenizer, 4)
    assert all(row["reward_chosen"] != row["reward_rejected"] for row in rows)
    found = judged(model, tokenizer, corpus.prompts(4, split="test", seed=1))
    assert {"reward", "success", "well_formed"} <= set(found)


# The tracer looks at `.grad` of what lies inside the graph, and torch warns itself of that.
asks_for_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.mark.slow
@asks_for_grad
def test_layers_and_lengths_share_one_compilation():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    model, data = tiny_llama(num_hidden_layers=5), random_pairs(8)
    plain = [sequence_logps(model, make_batch(data, part)).detach() for part in ([0, 1], [2, 3, 4], [5, 6, 7])]
    assert compile_blocks(model, backend=backend) == 5 + 2 * 5 + 1
    first = sequence_logps(model, make_batch(data, [0, 1]))
    assert len(compiled) == 2  # a norm and a feed-forward part, for all layers
    torch.testing.assert_close(first.detach(), plain[0])
    for part, expected in (([2, 3, 4], plain[1]), ([5, 6, 7], plain[2])):
        torch.testing.assert_close(sequence_logps(model, make_batch(data, part)).detach(), expected)
    assert len(compiled) == 2


@pytest.mark.slow
@asks_for_grad
def test_compiled_blocks_give_the_same_values(request):
    takes_minutes(request)
    model, data = tiny_llama(), random_pairs(4)
    batch = make_batch(data, range(4))
    plain = sequence_logps(model, batch).detach()
    assert compile_blocks(model) == 2 + 2 * 2 + 1  # MLPs, two norms a layer, the last norm
    torch.testing.assert_close(sequence_logps(model, batch).detach(), plain, rtol=1e-4, atol=1e-4)


def test_a_model_without_such_blocks_is_told():
    with pytest.raises(ValueError, match="Linear has no part whose name ends in MLP"):
        compile_blocks(torch.nn.Linear(2, 2))


# ── kept results ─────────────────────────────────────────────────────────────────────────────────────────────────────

KEPT = {
    "made": {"device": "a GPU"},
    "rates": {"bfloat16": [[256, 1e12], [4096, 7e14]], "float32": [[256, 1e12]]},
    "models": {
        "30m": {
            "parameters": 29_000_000,
            "ways": [
                {"way": "slow", "pairs_per_second": 10.0, "share": 0.01, "peak_bytes": 2**30},
                {"way": "fast", "pairs_per_second": 90.0, "share": 0.09, "peak_bytes": 2**29},
            ],
            "training": {
                "sft": {"seconds": 90.0}, "dpo": {"seconds": 20.0},
                "judged": {"after SFT": {"reward": 2.0}, "after DPO": {"reward": 2.5}},
            },
        }
    },
}  # fmt: skip


def test_kept_results_are_read_back(tmp_path):
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(KEPT))
    assert gpu_ways("30m", path) == {"a GPU": {"slow": 10.0, "fast": 90.0}}
    assert gpu_ways("30m", tmp_path / "absent.json") == {}


@pytest.mark.slow
def test_the_measuring_script_runs_to_its_end(tmp_path, request):
    """Every line of data/gpu.py at a tiny size, without `datasets`, as on a machine that lacks it."""
    takes_minutes(request)
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['datasets'] = None; sys.path.insert(0, 'data'); import gpu; "
        f"gpu.main(['--tiny', '--device', 'cpu', '--out', {str(tmp_path / 'gpu.json')!r}, "
        f"'--work', {str(tmp_path / 'work')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    model = found["models"]["tiny"]
    assert len(model["ways"]) + len(found.get("left out", [])) == 6
    assert model["training"]["sft"]["curve"][-1][2] < model["training"]["sft"]["curve"][0][2]
    assert len(model["curve"]["kept"]) == len(model["curve"]["seconds"])
    assert len(gpu_ways("tiny", tmp_path / "gpu.json")["cpu"]) == len(model["ways"])
    assert "| bfloat16, shared rows |" in (tmp_path / "gpu.md").read_text()
