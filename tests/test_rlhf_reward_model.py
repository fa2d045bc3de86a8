"""The reward model: what it reads, what its loss is, that batching changes nothing, that it learns."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch

from dpo_lab.batching import separate_rows, shared_rows
from dpo_lab.course.rlhf import (
    LearntReward,
    RewardConfig,
    RewardModel,
    bayes_accuracy,
    bradley_terry_loss,
    evaluate_rewards,
    score_rewards,
    train_reward_model,
)
from dpo_lab.course.rlhf import reward_model as module
from dpo_lab.course.rlhf.reward_model import last_tokens
from dpo_lab.loop import Evaluation, Finished, Step
from dpo_lab.preferences import TokenData
from dpo_lab.sampling import Completion
from dpo_lab.worlds.comparisons import sample_comparisons
from dpo_lab.worlds.corpus import prefers
from dpo_lab.worlds.enumerable import enumerable_world
from dpo_lab.worlds.letters import prompt_tokens
from tests.conftest import random_pairs, tiny_llama
from tests.tiny import tiny_tokenizer

SETTINGS = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 1, "device": "cpu"}


def with_head(seed: int = 0) -> RewardModel:
    """A reward model whose head is not zero."""
    model = RewardModel.on(tiny_llama(seed=seed)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=generator)
        model.head.bias.fill_(0.7)
    return model


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_loss_by_hand():
    """−log σ(2 − 1) = log(1 + e^−1) = 0.3133; equal rewards cost log 2; the wrong way round costs one more."""
    rewards = torch.tensor([[2.0, 1.0], [5.0, 5.0], [1.0, 2.0]])
    expected = torch.tensor([0.3132617, math.log(2), 1.3132617])
    torch.testing.assert_close(bradley_terry_loss(rewards), expected)
    torch.testing.assert_close(bradley_terry_loss(rewards + torch.tensor([[3.0], [-8.0], [100.0]])), expected)


def test_a_head_of_zeros_is_worth_nothing_and_begins_at_log_2():
    data = random_pairs(8)
    model = RewardModel.on(tiny_llama(), seed=None)
    assert not score_rewards(model, data).any()
    events = list(train_reward_model(model, None, data, RewardConfig(**SETTINGS), held_out=data))
    first = next(event for event in events if isinstance(event, Step))
    assert first.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first.metrics["rewards/accuracies"] == 0.5
    assert first.metrics["grad_norm"] > 0
    assert isinstance(events[0], Evaluation)
    assert events[0].metrics["eval_calibration_error"] == pytest.approx(0, abs=0.51)
    assert isinstance(events[-1], Finished)


def test_a_new_heads_size_is_that_of_the_paper_and_comes_from_its_seed():
    backbone = tiny_llama()
    heads = torch.cat([RewardModel(backbone, seed=seed).head.weight.detach() for seed in range(60)])
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.05)
    again = RewardModel.on(backbone, seed=7).head.weight
    assert torch.equal(heads[7:8], again)
    assert not torch.equal(heads[6:7], again)


def test_it_reads_the_last_token_of_each_answer_in_every_layout():
    data = random_pairs(5, empty_prompts=True)
    by_hand, cursor = [], 0
    for row in map(data.row, range(5)):
        cursor += len(row.prompt)
        for completion in row.completions:
            cursor += len(completion)
            by_hand.append(cursor - 1)
    assert last_tokens(shared_rows(data, range(5))).tolist() == by_hand
    for side, pad_to in (("right", 0), ("left", 0), ("right", 40), ("left", 40)):
        batch = separate_rows(data, range(5), padding_side=side, pad_to=pad_to)
        ids = batch.input_ids.flatten()[last_tokens(batch)]
        assert ids.tolist() == [int(c[-1]) for row in map(data.row, range(5)) for c in row.completions]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_the_gradient_enters_through_the_last_tokens_only(monkeypatch, layout):
    data = random_pairs(4)
    batch = (shared_rows if layout == "shared" else separate_rows)(data, range(4))
    rows, width = batch.input_ids.shape
    hidden = torch.randn(rows, width, 32, requires_grad=True)
    monkeypatch.setattr(module, "hidden_states", lambda model, batch: hidden)
    bradley_terry_loss(with_head()(batch)).sum().backward()
    assert hidden.grad is not None
    touched = hidden.grad.flatten(0, 1).norm(dim=-1).nonzero()[:, 0].tolist()
    assert touched == sorted(last_tokens(batch).tolist())


def test_the_critic_reads_one_place_earlier():
    """The value before the second token is read where the first token stands."""
    data = TokenData.from_rows([([5, 6, 7], ([8, 9, 10],))])
    batch, model = separate_rows(data, [0]), with_head()
    values = model.token_values(batch)
    assert values.shape == (3,)
    shorter = TokenData.from_rows([([5, 6, 7], ([8, 9],))])
    torch.testing.assert_close(values[2], model(separate_rows(shorter, [0]))[0, 0])
    other_end = TokenData.from_rows([([5, 6, 7], ([8, 9, 33],))])
    torch.testing.assert_close(values, model.token_values(separate_rows(other_end, [0])))


def test_a_reward_is_the_same_alone_batched_padded_and_shared():
    data, model = random_pairs(6), with_head()
    with torch.no_grad():
        alone = torch.cat([model(separate_rows(data, [i])) for i in range(6)])
        assert alone.std() > 0.05
        for side in ("left", "right"):
            padded = model(separate_rows(data, range(6), padding_side=side, pad_to=37, pad_id=2))
            torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(shared_rows(data, range(6))), alone, atol=1e-5, rtol=1e-5)
    for layout in ("shared", "separate"):
        found = score_rewards(model, data, layout=layout, tokens_per_pass=30)
        np.testing.assert_allclose(found, alone.numpy(), atol=1e-5)


@pytest.mark.parametrize("cut", [{"micro_batch_size": 1}, {"tokens_per_pass": 40}, {"layout": "separate"}])
def test_batch_8_is_1_times_8(cut):
    data = random_pairs(12)  # the last batch holds 4
    whole, parts = with_head(), with_head()
    one = list(train_reward_model(whole, None, data, RewardConfig(**SETTINGS, optimizer="sgd")))
    two = list(train_reward_model(parts, None, data, RewardConfig(**SETTINGS, optimizer="sgd", **cut)))
    losses = lambda events: [event.metrics["loss"] for event in events if isinstance(event, Step)]
    np.testing.assert_allclose(losses(one), losses(two), atol=1e-5)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-5, rtol=1e-4)


def test_the_heads_bias_is_out_of_reach_of_comparisons():
    model, data = with_head(), random_pairs(4)
    bradley_terry_loss(model(shared_rows(data, range(4)))).sum().backward()
    assert model.head.bias.grad is not None
    assert model.head.bias.grad.abs().item() < 1e-6
    assert model.head.weight.grad is not None
    assert model.head.weight.grad.norm() > 1e-3
    assert output_gradient(model) is None


def output_gradient(model: RewardModel):
    return model.backbone.get_output_embeddings().weight.grad  # pyright: ignore[reportCallIssue]


def pairs_with_a_rule(num: int, seed: int = 0) -> TokenData:
    """Chosen answers end in token 10, rejected ones in token 11."""
    generator = np.random.default_rng(seed)
    draw = lambda: generator.integers(20, 60, generator.integers(1, 6)).tolist()
    return TokenData.from_rows([(draw(), ([*draw(), 10], [*draw(), 11])) for _ in range(num)])


def test_it_learns_a_rule_and_leaves_the_policy_alone():
    policy = tiny_llama()
    before = weights(policy)
    model = RewardModel.on(policy)
    config = RewardConfig(**{**SETTINGS, "epochs": 8})
    *_, last = train_reward_model(model, None, pairs_with_a_rule(48), config, held_out=pairs_with_a_rule(40, seed=1))
    assert last.metrics["eval_rewards/accuracies"] == 1.0
    assert last.metrics["eval_loss"] < 0.3
    assert torch.equal(weights(policy), before)


def test_it_is_resumed_bit_for_bit(tmp_path):
    config = RewardConfig(**SETTINGS, checkpoint_every=1, keep_checkpoints=9)
    data = random_pairs(24)
    whole = RewardModel.on(tiny_llama())
    list(train_reward_model(whole, None, data, config, checkpoints=tmp_path))
    again = RewardModel.on(tiny_llama())
    list(train_reward_model(again, None, data, config, resume=tmp_path / "step-00000001"))
    assert torch.equal(weights(whole), weights(again))


def test_saved_and_loaded_it_says_the_same(tmp_path):
    model, tokenizer, data = with_head(), tiny_tokenizer(), random_pairs(4)
    model.save(tmp_path / "reward", tokenizer)
    loaded, _ = RewardModel.load(tmp_path / "reward", device="cpu")
    np.testing.assert_array_equal(score_rewards(loaded, data), score_rewards(model, data))
    (tmp_path / "reward" / "reward_head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no reward model: reward_head\.safetensors is missing"):
        RewardModel.load(tmp_path / "reward")


def test_as_a_function_it_reads_the_sampled_tokens():
    model, tokenizer, data = with_head(), tiny_tokenizer(), random_pairs(3)
    rows = [data.row(i) for i in range(3)]
    prompts = [row.prompt.tolist() for row in rows]
    answers = [Completion("not read", row.completions[0], True, np.zeros(0)) for row in rows]
    found = LearntReward(model, tokenizer)(prompts, answers)
    np.testing.assert_allclose(found, score_rewards(model, data)[:, 0], atol=1e-5)


@pytest.mark.slow
def test_in_a_known_world_it_comes_near_the_bayes_rate(request):
    """Fresh comparisons: half the way from a coin to the best possible loss at least, and nearly its accuracy."""
    if not request.config.getoption("--run-slow"):
        pytest.skip("half a minute; --run-slow runs it")
    world = enumerable_world()
    ids = [world.tree.encode(text).numpy() for text in world.tree.responses]

    def pairs(num: int, seed: int) -> tuple[TokenData, torch.Tensor]:
        drawn = sample_comparisons(world.table, num, generator=torch.Generator().manual_seed(seed))
        x, won, lost, _ = drawn
        prompts, columns = prompt_tokens(world), zip(x.tolist(), won.tolist(), lost.tolist(), strict=True)
        rows = [(prompts[i], (ids[first], ids[second])) for i, first, second in columns]
        return TokenData.from_rows(rows), world.table.rewards[x, won] - world.table.rewards[x, lost]

    (data, _), (held, margins) = pairs(8192, 0), pairs(2048, 1)
    config = RewardConfig(batch_size=64, learning_rate=3e-3, epochs=3, schedule="cosine", device="cpu")
    *_, end = train_reward_model(RewardModel.on(world.reference), None, data, config, held_out=held)
    best_loss = torch.nn.functional.softplus(-margins).mean().item()
    best_accuracy = torch.where(margins == 0, 0.5, (margins > 0).double()).mean().item()
    assert end.metrics["eval_loss"] - best_loss < (math.log(2) - best_loss) / 2
    assert end.metrics["eval_rewards/accuracies"] > best_accuracy - 0.05
    assert end.metrics["eval_calibration_error"] < 0.06


def test_mistakes_are_told_at_the_call():
    data = random_pairs(4)
    with pytest.raises(ValueError, match=r"model must be a RewardModel, got LlamaForCausalLM; RewardModel\.on"):
        train_reward_model(tiny_llama(), None, data)  # pyright: ignore[reportArgumentType]
    single = TokenData.from_rows([([3], ([4, 5],))])
    with pytest.raises(ValueError, match="must hold 2 completions per prompt"):
        train_reward_model(RewardModel.on(tiny_llama()), None, single)


def test_an_evaluation_counts_ties_as_half():
    data = random_pairs(6)
    found = evaluate_rewards(RewardModel.on(tiny_llama(), seed=None), data)
    assert found.metrics["rewards/accuracies"] == 0.5
    assert not found.margins.any()


def test_the_bayes_rate_is_what_a_judge_with_the_true_reward_gets():
    rng, gaps = Random(0), [0.1, 0.5, 1.0, 2.0]
    drawn = [prefers(gap, 0.0, 0.3, rng) for gap in gaps for _ in range(5000)]
    assert bayes_accuracy(gaps, 0.3) == pytest.approx(np.mean(drawn), abs=0.01)
    assert bayes_accuracy([-1.0, 1.0], 1.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert bayes_accuracy([0.0, 3.0], 0) == 0.75
