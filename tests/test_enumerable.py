"""The enumerable transformer: its probabilities against plain loops, and DPO on it against the exact optimum."""

import itertools
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dpo_lab.losses import LOSSES
from dpo_lab.worlds.comparisons import all_comparisons, sample_comparisons
from dpo_lab.worlds.enumerable import (
    END,
    EnumerableWorld,
    ResponseTree,
    enumerable_world,
    enumerate_responses,
    habit_probs,
    response_logps,
    reward_parts,
    train_policy,
)
from dpo_lab.worlds.learning import expected_loss, one_thread
from dpo_lab.worlds.tabular import objective, optimal_logps, total_variation


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tables gain nothing from threads, and on a busy machine wait for them."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def world() -> EnumerableWorld:
    return enumerable_world()


def untrained(vocab_size: int, seed: int = 0, scale: float = 0.3) -> LlamaForCausalLM:
    """A model with large random weights: its distribution is far from uniform."""
    config = LlamaConfig(vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=0)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, scale, generator=generator)
    return model


def test_responses_are_listed_by_hand():
    assert enumerate_responses("ab", 2) == (".", "a.", "b.", "aa", "ab", "ba", "bb")
    assert enumerate_responses("a", 1) == (".", "a")
    assert len(enumerate_responses("abc", 3)) == 1 + 3 + 9 + 27
    assert len(enumerate_responses("abcd", 4)) == 1 + 4 + 16 + 64 + 256


def test_every_text_begins_with_exactly_one_response():
    """Prefix-free and complete, so that probabilities over the list sum to 1 whatever the model."""
    responses = enumerate_responses("ab", 3)
    for text in itertools.product("ab" + END, repeat=3):
        assert sum("".join(text).startswith(response) for response in responses) == 1


@pytest.mark.parametrize(("letters", "max_length"), [("a", 1), ("ab", 1), ("abc", 3), ("ab", 5)])
def test_probabilities_sum_to_one_for_any_model(letters, max_length):
    model = untrained(len(letters) + 1)
    logps = response_logps(model, [letters[0], letters[-1]], ResponseTree(letters, max_length))
    assert logps.std() > 0.1  # not uniform
    torch.testing.assert_close(logps.exp().sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0.0)


def test_a_uniform_model_gives_each_response_its_length_times_log_vocabulary():
    tree = ResponseTree("abc", 3)
    logps = response_logps(untrained(4, scale=0.0), ["a"], tree)
    torch.testing.assert_close(logps[0], -tree.lengths.double() * math.log(4))


def test_log_probabilities_equal_one_sequence_at_a_time():
    tree, model = ResponseTree("ab", 3), untrained(3)
    logps = response_logps(model, ["ab", "ba"], tree)
    for x, prompt in enumerate(("ab", "ba")):
        for y, response in enumerate(tree.responses):
            ids, total = [".ab".index(letter) for letter in "." + prompt], 0.0
            for token in response:
                with torch.no_grad():
                    last = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                total += last[".ab".index(token)].item()
                ids.append(".ab".index(token))
            assert logps[x, y].item() == pytest.approx(total, abs=1e-5)


def test_gradients_equal_those_of_one_sequence_alone():
    tree, model = ResponseTree("ab", 3), untrained(3)
    y = tree.responses.index("ba.")
    response_logps(model, ["a"], tree)[0, y].backward()
    together = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    ids = torch.tensor([[0, 1, 2, 1, 0]])  # ". a | b a ."
    model(input_ids=ids).logits[0, 1:4].log_softmax(-1).gather(-1, ids[0, 2:, None]).sum().backward()
    for ours, alone in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(ours, alone.grad, atol=1e-5, rtol=1e-4)


def test_sampling_with_generate_gives_the_listed_probabilities(world):
    """transformers' own sampler, stopped at L new tokens, draws from exactly this table."""
    n, prompt = 4_000, "b"
    start = world.tree.encode(END + prompt).expand(n, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = world.reference.generate(start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0,
                                         max_new_tokens=world.tree.max_length)  # fmt: skip
    index = {tuple(ids): y for y, ids in enumerate(world.tree.tokens.tolist())}  # both fill up with the end token
    counts = torch.bincount(torch.tensor([index[tuple(ids)] for ids in drawn[:, 2:].tolist()]), minlength=40)
    probs = world.table.reference_logps[world.table.prompts.index(prompt)].exp()
    chi_square = ((counts - n * probs).square() / (n * probs)).sum().item()
    assert chi_square < 39 + 4 * math.sqrt(2 * 39)


def test_the_reference_has_learnt_its_habit_and_is_not_uniform(world):
    habit = habit_probs(world.tree, world.table.prompts)
    torch.testing.assert_close(habit.sum(-1), torch.ones(3, dtype=torch.float64))
    # After "b", "c" follows with 0.7·3/5, then the end with 0.3.
    assert habit[1, world.tree.responses.index("c.")].item() == pytest.approx(0.42 * 0.3)
    assert total_variation(world.table.reference_logps, habit.log()).max() < 0.01
    assert world.table.reference_logps.exp().amax() > 0.25


def test_rewards_follow_the_rules_that_the_docstring_states(world):
    assert reward_parts("b", "bb.") == {"echo": 2.0, "order": 1.0, "brevity": -1.0}
    assert reward_parts("a", "cab") == {"echo": 1.0, "order": 0.0, "brevity": -1.5}
    assert reward_parts("a", ".") == {"echo": 0.0, "order": 0.0, "brevity": 0.0}
    best = {x: world.tree.responses[y] for x, y in zip("abc", world.table.rewards.argmax(-1).tolist(), strict=True)}
    assert best == {"a": "aaa", "b": "bbb", "c": "ccc"}


def test_lengths_count_scored_tokens_and_the_end_is_scored_only_where_it_was_said(world):
    lengths = dict(zip(world.tree.responses, world.table.lengths[0].tolist(), strict=True))
    assert (lengths["."], lengths["ab."], lengths["abc"]) == (1, 3, 3)
    assert world.tree.is_scored.sum(-1).tolist() == world.tree.lengths.tolist()


def test_the_same_seed_builds_the_same_world_and_leaves_the_global_generator_alone(world):
    before = torch.random.get_rng_state()
    again, other = enumerable_world(), enumerable_world(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(again.table.reference_logps, world.table.reference_logps)
    assert not torch.equal(other.table.reference_logps, world.table.reference_logps)


def test_a_new_policy_starts_at_the_reference_and_training_leaves_the_reference_alone(world):
    policy = world.new_policy()
    torch.testing.assert_close(world.logps(policy), world.table.reference_logps, atol=1e-12, rtol=0.0)
    weights = [weight.clone() for weight in world.reference.parameters()]
    loss = LOSSES["dpo"].bind(beta=0.5)
    points = list(train_policy(world, policy, lambda logps: expected_loss(world.table, logps, loss), steps=3))
    assert [point.step for point in points] == [0, 1, 2, 3]
    assert points[0].loss == pytest.approx(math.log(2))
    assert points[3].loss < points[0].loss
    assert all(torch.equal(a, b) for a, b in zip(weights, world.reference.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in world.reference.parameters())


@pytest.mark.parametrize(("beta", "steps"), [(0.5, 800), (1.0, 500)])
def test_dpo_with_exact_preferences_brings_a_transformer_to_the_optimal_policy(world, beta, steps):
    table, policy = world.table, world.new_policy()
    loss, comparisons, star = LOSSES["dpo"].bind(beta=beta), all_comparisons(table), optimal_logps(table, beta)
    assert total_variation(table.reference_logps, star).min() > 0.2
    of_all = lambda logps: expected_loss(table, logps, loss, comparisons)
    *_, end = train_policy(world, policy, of_all, steps=steps)
    assert total_variation(end.logps, star).max() < 0.02
    assert objective(table, end.logps, beta) > objective(table, table.reference_logps, beta)


def test_rlhf_on_the_same_transformer_ends_at_the_same_policy(world):
    table, policy = world.table, world.new_policy()
    *_, end = train_policy(world, policy, lambda logps: -objective(table, logps, 0.5), steps=250)
    assert total_variation(end.logps, optimal_logps(table, 0.5)).max() < 0.02


def test_the_distance_to_the_optimal_policy_shrinks_as_samples_grow(world):
    table, beta = world.table, 1.0
    loss, star = LOSSES["dpo"].bind(beta=beta), optimal_logps(table, beta)
    at_the_end, at_best = [], []
    for n in (100, 1_000, 10_000, 100_000):
        ends, bests = [], []
        for seed in range(2):
            sample = sample_comparisons(table, n, generator=torch.Generator().manual_seed(seed)).merged()
            policy, of_sample = world.new_policy(), lambda logps, on=sample: expected_loss(table, logps, loss, on)
            run = train_policy(world, policy, of_sample, steps=150)
            distances = [table.mean(total_variation(point.logps, star)).item() for point in run]
            ends.append(distances[-1])
            bests.append(min(distances))
        at_the_end.append(sum(ends) / len(ends))
        at_best.append(sum(bests) / len(bests))
    assert all(more < 0.8 * fewer for fewer, more in itertools.pairwise(at_the_end))
    assert all(more < 0.8 * fewer for fewer, more in itertools.pairwise(at_best))
    assert at_the_end[-1] < 0.04
    # A hundred comparisons fitted to the end are worse than none at all: the start is at 0.26.
    assert at_the_end[0] > table.mean(total_variation(table.reference_logps, star)).item()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: enumerate_responses("aa", 2), "letters must be distinct and without '.', got 'aa'"),
        (lambda: enumerate_responses("a.", 2), "letters must be distinct"),
        (lambda: enumerate_responses("ab", 0), "max_length must be at least 1 token, got 0"),
        (lambda: ResponseTree("ab", 2).encode("abx"), r"text must be over '.ab', got 'abx'; leave out \['x'\]"),
        (lambda: response_logps(untrained(3), ["a", "ab"], ResponseTree("ab", 2)), "prompts must be equally long"),
    ],
)
def test_wrong_settings_are_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_training_refuses_bad_settings_at_the_call_and_stops_at_a_loss_that_is_not_finite(world):
    with pytest.raises(ValueError, match=r"learning_rate positive, got 10 and 0"):
        train_policy(world, world.new_policy(), lambda logps: logps.sum(), steps=10, learning_rate=0)
    run = train_policy(world, world.new_policy(), lambda logps: logps.sum() * math.nan, steps=10)
    with pytest.raises(RuntimeError, match="the loss became nan at step 0; a smaller learning_rate"):
        next(run)
