"""RLOO and PPO as streams: against loops by hand, however a rollout is cut, and on the way to the known optimum."""

from __future__ import annotations

import ast
import copy
import math

import numpy as np
import pytest
import torch

from dpo_lab.batching import separate_rows
from dpo_lab.course.rlhf import (
    GRPOConfig,
    LearntReward,
    Meter,
    PPOConfig,
    RewardModel,
    RLOOConfig,
    judge_reward,
    sample_best_of_n,
    train_grpo,
    train_ppo,
    train_rloo,
    train_unlikelihood,
)
from dpo_lab.logprobs import token_logps
from dpo_lab.loop import Checkpoint, Evaluation, Finished, Step
from dpo_lab.preferences import TokenData
from dpo_lab.reference import fingerprint
from dpo_lab.sampling import generate_ids
from dpo_lab.worlds.enumerable import EnumerableWorld, enumerable_world
from dpo_lab.worlds.learning import one_thread
from dpo_lab.worlds.letters import LetterReward, letter_tokenizer, prompt_tokens
from dpo_lab.worlds.tabular import (
    best_objective,
    expected_reward,
    kl,
    objective,
    optimal_logps,
    total_variation,
)
from tests.conftest import ROOT, random_pairs, tiny_llama
from tests.tiny import tiny_tokenizer

SETTINGS = {"batch_size": 4, "max_new_tokens": 5, "max_length": 32, "learning_rate": 1e-2, "max_steps": 4, "epochs": 99,
            "device": "cpu", "beta": 0.3}  # fmt: skip
PROMPTS = [[1, 20, 21], [1, 9], [1, 30, 31, 32, 33], [1, 12, 13], [1, 40]]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def likes_low_tokens(prompts, answers) -> list[float]:
    """Some reward of token ids: smaller ones are better, and long answers too."""
    return [float(np.mean(answer.ids < 20) + 0.1 * len(answer.ids)) for answer in answers]


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def steps(events) -> list[Step]:
    return [event for event in events if isinstance(event, Step)]


def rloo(config=None, model=None, **options):
    model = tiny_llama() if model is None else model
    config = config or RLOOConfig(**SETTINGS)
    return model, list(train_rloo(model, tiny_tokenizer(), PROMPTS, likes_low_tokens, config, **options))


def ppo(config=None, model=None, **options):
    model = tiny_llama() if model is None else model
    config = config or PPOConfig(**SETTINGS)
    return model, list(train_ppo(model, tiny_tokenizer(), PROMPTS, likes_low_tokens, config, **options))


def grpo(config=None, model=None, **options):
    model = tiny_llama() if model is None else model
    config = config or GRPOConfig(**SETTINGS, num_samples=4)
    return model, list(train_grpo(model, tiny_tokenizer(), PROMPTS, likes_low_tokens, config, **options))


KINDS = {rloo: RLOOConfig, ppo: PPOConfig, grpo: GRPOConfig}


# ── against loops written by hand ────────────────────────────────────────────────────────────────────────────────────


def sampled(model, config, rollout: int):
    """The prompts and answers of a rollout, as the documentation says that they are drawn."""
    size, chosen = config.batch_size, []
    for slot in range(rollout * size, (rollout + 1) * size):
        round_, place = divmod(slot, len(PROMPTS))
        chosen.append(PROMPTS[np.random.default_rng([config.seed, round_]).permutation(len(PROMPTS))[place]])
    seed = int(np.random.SeedSequence([config.seed, rollout]).generate_state(1)[0])
    answers = generate_ids(model, tiny_tokenizer(), chosen, max_new_tokens=config.max_new_tokens,
                           num_samples=config.num_samples, seed=seed, batch_size=256)  # fmt: skip
    return chosen, answers


def answer_logps(model, prompt, answer) -> torch.Tensor:
    """log π of each token of one answer, alone."""
    return token_logps(model, separate_rows(TokenData.from_rows([(prompt, (answer.ids,))]), [0]))


def test_rloo_equals_a_loop_written_by_hand():
    config = RLOOConfig(**{**SETTINGS, "max_steps": 3}, num_samples=3, optimizer="sgd", adam_beta1=0.0)
    model, events = rloo(config)
    by_hand, reference = tiny_llama(), tiny_llama()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1e-2)
    for step in range(3):
        prompts, answers = sampled(by_hand, config, step)
        loss, rewards, drift = torch.zeros(()), [], []
        for prompt, row in zip(prompts, answers, strict=True):
            logps = [answer_logps(by_hand, prompt, answer).sum() for answer in row]
            gaps = [(own - answer_logps(reference, prompt, a).sum()).item() for own, a in zip(logps, row, strict=True)]
            worth = likes_low_tokens(None, row)
            returns = [r - 0.3 * gap for r, gap in zip(worth, gaps, strict=True)]
            for i, own in enumerate(logps):
                others = [value for j, value in enumerate(returns) if j != i]
                loss = loss - (returns[i] - sum(others) / 2) * own / 12
            rewards, drift = [*rewards, *worth], [*drift, *gaps]
        metrics = steps(events)[step].metrics
        assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert metrics["reward"] == pytest.approx(np.mean(rewards), abs=1e-5)
        assert metrics["kl"] == pytest.approx(np.mean(drift), abs=1e-4)
        assert metrics["objective"] == pytest.approx(np.mean(rewards) - 0.3 * np.mean(drift), abs=1e-4)
        assert metrics["answer_length"] == pytest.approx(np.mean([len(a.ids) for row in answers for a in row]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-5, rtol=1e-4)


def test_ppo_equals_a_loop_written_by_hand():
    """One rollout, two passes over it in one piece each; the critic is a copy of the policy with a head of zeros."""
    config = PPOConfig(**{**SETTINGS, "max_steps": 2}, passes=2, minibatches=1, normalise_advantages=False, clip=0.1,
                       optimizer="sgd", adam_beta1=0.0)  # fmt: skip
    model, events = ppo(config)
    by_hand, reference = tiny_llama(), tiny_llama()
    critic = RewardModel.on(by_hand, seed=None)
    both = [*by_hand.parameters(), *(p for p in critic.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(both, lr=1e-2)
    prompts, answers = sampled(by_hand, config, 0)
    rows = [(prompt, answer) for prompt, row in zip(prompts, answers, strict=True) for answer in row]
    worth, plans = likes_low_tokens(None, [answer for _, answer in rows]), []
    for (prompt, answer), r in zip(rows, worth, strict=True):
        old, base = answer_logps(by_hand, prompt, answer).detach(), answer_logps(reference, prompt, answer).detach()
        rewards = [-0.3 * float(o - b) for o, b in zip(old, base, strict=True)]
        rewards[-1] += r
        # The critic says 0 everywhere, so an advantage is the discounted sum of what is to come.
        advantages = [sum(0.95 ** (s - t) * rewards[s] for s in range(t, len(rewards))) for t in range(len(rewards))]
        plans.append((prompt, answer, old, torch.tensor(advantages)))
    for step in range(2):
        loss, clipped = torch.zeros(()), []
        for prompt, answer, old, advantages in plans:
            ratio = (answer_logps(by_hand, prompt, answer) - old).exp()
            free, bounded = ratio * advantages, ratio.clamp(0.9, 1.1) * advantages
            batch = separate_rows(TokenData.from_rows([(prompt, (answer.ids,))]), [0])
            surprise = (critic.token_values(batch) - advantages) ** 2 / 2
            loss = loss + (-torch.minimum(free, bounded).sum() + 0.1 * surprise.mean()) / len(plans)
            clipped.append((bounded < free).float().mean().item())
        metrics = steps(events)[step].metrics
        assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert metrics["clip_fraction"] == pytest.approx(np.mean(clipped), abs=1e-6)
        assert metrics["reward"] == pytest.approx(np.mean(worth), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both, 1.0)
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-5, rtol=1e-4)


def test_grpo_equals_a_loop_written_by_hand():
    """One rollout, two passes over it in one piece each: at the second one the policy is no longer the one that sampled
    and no longer the reference, so clip and penalty have a say."""
    config = GRPOConfig(**{**SETTINGS, "max_steps": 2, "learning_rate": 0.1}, num_samples=3, passes=2, clip=0.05,
                        optimizer="sgd", adam_beta1=0.0)  # fmt: skip
    model, events = grpo(config)
    by_hand, reference = tiny_llama(), tiny_llama()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    prompts, answers = sampled(by_hand, config, 0)
    plans = []
    for prompt, row in zip(prompts, answers, strict=True):
        worth = np.array(likes_low_tokens(None, row))
        spread = worth.std(ddof=1)
        for answer, r in zip(row, worth, strict=True):
            old, base = (answer_logps(one, prompt, answer).detach() for one in (by_hand, reference))
            plans.append((prompt, answer, old, base, (r - worth.mean()) / spread if spread > 1e-9 else 0.0))
    for step in range(2):
        loss, clipped = torch.zeros(()), []
        for prompt, answer, old, base, advantage in plans:
            logps = answer_logps(by_hand, prompt, answer)
            ratio = (logps - old).exp()
            free, bounded = ratio * advantage, ratio.clamp(0.95, 1.05) * advantage
            penalty = (base - logps).exp() - (base - logps) - 1
            loss = loss + (-torch.minimum(free, bounded) + 0.3 * penalty).mean() / len(plans)
            clipped.append((bounded < free).float().mean().item())
        metrics = steps(events)[step].metrics
        assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert metrics["clip_fraction"] == pytest.approx(np.mean(clipped), abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
    assert steps(events)[1].metrics["clip_fraction"] > 0
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cut", [{"micro_batch_size": 1}, {"tokens_per_pass": 30}, {"layout": "separate"}])
@pytest.mark.parametrize("train", [rloo, ppo, grpo])
def test_however_a_rollout_is_cut_the_steps_are_the_same(train, cut):
    kind = KINDS[train]
    base = {**SETTINGS, "learning_rate": 1e-3, "optimizer": "sgd"}
    whole, events = train(kind(**base))
    parts, cut_events = train(kind(**base, **cut))
    losses = lambda found: [event.metrics["loss"] for event in steps(found)]
    np.testing.assert_allclose(losses(events), losses(cut_events), atol=1e-4)
    torch.testing.assert_close(weights(whole), weights(parts), atol=1e-5, rtol=1e-4)


# ── the stream ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_step_has_no_drift_and_nothing_is_clipped():
    _, events = ppo(held_out=PROMPTS[:2])
    assert isinstance(events[0], Evaluation)
    assert events[0].metrics["eval_kl"] == pytest.approx(0, abs=1e-4)
    first = steps(events)[0].metrics
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["clip_fraction"] == 0
    assert first["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert first["reward"] == pytest.approx(first["objective"], abs=1e-4)
    assert 0 < first["entropy"] < math.log(64)
    assert isinstance(events[-1], Finished)
    assert {"eval_reward", "eval_objective", "value_loss", "policy_loss", "finished"} <= events[-1].metrics.keys()


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    one, two = rloo()[0], rloo()[0]
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(rloo(RLOOConfig(**SETTINGS, seed=1))[0]))


@pytest.mark.parametrize("train", [rloo, ppo, grpo])
def test_looking_changes_nothing(train):
    kind = KINDS[train]
    unseen, _ = train(kind(**SETTINGS, log_every=9))
    length = lambda prompts, answers: [len(answer.ids) for answer in answers]
    seen, events = train(kind(**SETTINGS, evaluate_every=1), held_out=PROMPTS, watch={"length": length})
    assert torch.equal(weights(unseen), weights(seen))
    told = [event.metrics for event in events if isinstance(event, Evaluation)]
    assert len(told) == 5  # before, after each of three steps, and at the end
    assert all(metrics["eval_length"] == metrics["eval_answer_length"] for metrics in told)
    assert steps(events)[0].metrics["length"] == steps(events)[0].metrics["answer_length"]


def test_a_run_in_bfloat16_stays_finite():
    _, events = ppo(PPOConfig(**SETTINGS, precision="bfloat16"))
    assert all(map(math.isfinite, events[-1].metrics.values()))
    assert steps(events)[0].metrics["approx_kl"] == pytest.approx(
        0, abs=1e-3
    )  # sampled and learnt from in one precision


def test_rows_of_the_pocket_world_are_answered_and_judged():
    from dpo_lab import load_policy
    from dpo_lab.worlds import corpus

    model, tokenizer = load_policy("embedded", device="cpu")
    rows = [conversation.row() for conversation in corpus.prompts(4, split="train", seed=0)]
    config = RLOOConfig(batch_size=2, num_samples=2, max_new_tokens=24, max_steps=1, epochs=9, device="cpu")
    *_, end = train_rloo(model, tokenizer, rows, judge_reward, config, held_out=rows[:1])
    assert -2.2 <= end.metrics["reward"] <= 3
    assert -2.2 <= end.metrics["eval_reward"] <= 3
    assert 1 <= end.metrics["answer_length"] <= 24


def test_every_prompt_comes_once_before_any_comes_twice():
    seen: list[tuple[int, ...]] = []

    def watch(prompts, answers) -> list[float]:
        seen.extend(tuple(prompt) for prompt in prompts)
        return [0.0] * len(answers)

    rloo(RLOOConfig(**SETTINGS, num_samples=2), watch={"seen": watch})
    order = seen[::2]  # 4 rollouts of 4 prompts, two answers each
    assert len(order) == 16
    for start in (0, 5, 10):
        assert set(order[start : start + 5]) == {tuple(prompt) for prompt in PROMPTS}


def test_a_constant_reward_without_a_price_moves_nothing():
    model = tiny_llama()
    config = RLOOConfig(**{**SETTINGS, "beta": 0.0})
    for _ in train_rloo(model, tiny_tokenizer(), PROMPTS, lambda prompts, answers: [3.0] * len(answers), config):
        pass
    assert torch.equal(weights(model), weights(tiny_llama()))


@pytest.mark.parametrize("train", [rloo, ppo, grpo])
def test_resumed_at_a_rollouts_border_equals_uninterrupted(train, tmp_path):
    config = KINDS[train](**{**SETTINGS, "max_steps": 8}, checkpoint_every=4)
    whole, events = train(config, checkpoints=tmp_path)
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [4, 8]
    again, later = train(config, resume=tmp_path / "step-00000004")
    assert torch.equal(weights(whole), weights(again))
    losses = lambda found: [event.metrics["loss"] for event in steps(found)]
    assert losses(events)[4:] == losses(later)


def test_ppo_stops_at_the_end_of_a_rollout_only(tmp_path):
    _, events = ppo(stop=lambda: True, checkpoints=tmp_path)  # 2 passes in 2 minibatches: 4 steps per rollout
    assert events[-1].step == 4
    _, events = rloo(stop=lambda: True)
    assert events[-1].step == 1


def test_the_reference_and_a_given_critic_keep_to_their_parts():
    reference, critic = tiny_llama(seed=3), RewardModel.on(tiny_llama(seed=4))
    before, told = fingerprint(reference), weights(critic).clone()
    _, events = ppo(reference=reference, critic=critic)
    assert fingerprint(reference) == before
    assert not torch.equal(weights(critic), told)
    assert steps(events)[0].metrics["kl"] != pytest.approx(0, abs=1e-2)


def test_what_is_counted():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    reward_model = RewardModel.on(tiny_llama(seed=1))
    reward = LearntReward(reward_model, tokenizer)
    config = RLOOConfig(**{**SETTINGS, "max_steps": 2}, layout="separate")
    events = list(train_rloo(model, tokenizer, PROMPTS, reward, config, held_out=PROMPTS))
    last = steps(events)[-1].metrics
    lengths = sum(event.metrics["answer_length"] * 16 for event in steps(events))
    assert last["cost/models"] == 3  # policy, reference, reward model
    assert last["cost/sampled_answers"] == last["cost/judged_answers"] == 2 * 16
    assert last["cost/generated_tokens"] == pytest.approx(lengths)
    assert last["cost/trained_tokens"] >= lengths
    # Per rollout: at most 5 calls to sample, one each of reference, reward model and policy.
    assert 2 * 4 <= last["cost/forward_passes"] <= 2 * 8
    assert not model.base_model._forward_hooks  # nothing is left behind
    config = PPOConfig(**{**SETTINGS, "max_steps": 1})
    *_, end = train_ppo(model, tokenizer, PROMPTS, reward, config)
    assert end.metrics["cost/models"] == 4
    assert end.metrics["cost/judged_answers"] == 4
    config = GRPOConfig(**{**SETTINGS, "max_steps": 3}, num_samples=5)
    *_, end = train_grpo(model, tokenizer, PROMPTS, reward, config)
    assert end.metrics["cost/models"] == 3  # no critic
    assert end.metrics["cost/sampled_answers"] == end.metrics["cost/judged_answers"] == 3 * 20


def test_a_meter_counts_other_trainings_too():
    model, reference = tiny_llama(), tiny_llama()
    data = random_pairs(4)
    batch = separate_rows(data, range(4))
    for each in (model, reference):
        token_logps(each, batch)  # the first call finds out which path a model can take
    with Meter(model, reference, model) as meter:
        token_logps(model, batch)
        with torch.no_grad():
            token_logps(reference, batch)
        with meter.paused():
            token_logps(model, batch)
    token_logps(model, batch)
    counts = meter.counts()
    assert counts["cost/models"] == 2
    assert counts["cost/trained_tokens"] == counts["cost/forward_tokens"] == batch.num_tokens
    assert counts["cost/forward_passes"] == 2


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        (RLOOConfig, {"num_samples": 1}, "num_samples must be at least 2, got 1"),
        (GRPOConfig, {"num_samples": 1}, "num_samples must be at least 2, got 1"),
        (GRPOConfig, {"passes": 0}, "passes must be at least 1, got 0"),
        (RLOOConfig, {"beta": -0.1}, r"beta must be finite and not negative, got -0\.1"),
        (RLOOConfig, {"max_new_tokens": 1024}, "max_new_tokens must be at least 1 and below max_length, got 1024"),
        (RLOOConfig, {"dropout": True}, "dropout must be off"),
        (PPOConfig, {"clip": 0.0}, r"clip must lie in \(0, 1\), got 0\.0"),
        (PPOConfig, {"gae_lambda": 1.5}, r"gae_lambda must lie in \[0, 1\], got 1\.5"),
        (PPOConfig, {"minibatches": 65}, "minibatches must lie between 1 and batch_size, got 65"),
        (PPOConfig, {"passes": 0}, "passes must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_names_value_rule_and_remedy(kind, changed, words):
    with pytest.raises(ValueError, match=words):
        kind(**changed)


def test_mistakes_are_told_at_the_call():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(ValueError, match="there are no prompts"):
        train_rloo(model, tokenizer, [], likes_low_tokens)
    with pytest.raises(ValueError, match="reward must be a function"):
        train_rloo(model, tokenizer, PROMPTS, 3.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="checkpoint_every must be a multiple of the 4 steps"):
        train_ppo(model, tokenizer, PROMPTS, likes_low_tokens, PPOConfig(**SETTINGS, checkpoint_every=3))
    with pytest.raises(ValueError, match="checkpoint_every must be a multiple of the 6 steps"):
        train_grpo(model, tokenizer, PROMPTS, likes_low_tokens,
                   GRPOConfig(**SETTINGS, passes=3, minibatches=2, checkpoint_every=4))  # fmt: skip
    with pytest.raises(ValueError, match="reference is the model that is trained"):
        train_rloo(model, tokenizer, PROMPTS, likes_low_tokens, reference=model)
    shared = RewardModel(model)
    with pytest.raises(ValueError, match="critic is trained and must be a model of its own"):
        train_ppo(model, tokenizer, PROMPTS, likes_low_tokens, critic=shared)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda prompts, answers: [1.0], r"one number per answer, shape \(16,\), got \(1,\)"),
        (lambda prompts, answers: [math.nan] * len(answers), "reward of answer 0 must be finite, got nan"),
        (judge_reward, "the judge needs rows with a task, got list"),
    ],
)
def test_a_reward_that_is_none_is_refused(reward, words):
    with pytest.raises(ValueError, match=words):
        list(train_rloo(tiny_llama(), tiny_tokenizer(), PROMPTS, reward, RLOOConfig(**SETTINGS)))


def test_every_setting_has_its_line_of_documentation():
    tree = ast.parse((ROOT / "dpo_lab" / "course" / "rlhf" / "config.py").read_text())
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(following, ast.Expr), ast.unparse(field)


# ── beside them ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_best_of_n_is_the_best():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    found = sample_best_of_n(model, tokenizer, PROMPTS, 6, likes_low_tokens, max_new_tokens=5)
    assert found.rewards.shape == (5, 6)
    for answer, row, rewards in zip(found.answers, found.candidates, found.rewards, strict=True):
        assert likes_low_tokens(None, [answer])[0] == max(likes_low_tokens(None, row)) == rewards.max()
    lengths = found.rewards_by(lambda prompts, answers: [len(answer.ids) for answer in answers])
    assert lengths[2, 3] == len(found.candidates[2][3].ids)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sample_best_of_n(model, tokenizer, PROMPTS, 0, likes_low_tokens)


def test_unlikelihood_is_sft_at_alpha_0_and_pushes_rejected_answers_down_beyond():
    from dpo_lab.config import DPOConfig

    data, config = random_pairs(8), DPOConfig(batch_size=8, learning_rate=3e-3, epochs=6, device="cpu")
    last = {}
    for alpha in (0.0, 1.0):
        *_, end = train_unlikelihood(tiny_llama(), None, data, config, alpha=alpha)
        last[alpha] = end.metrics
    assert last[0.0]["loss"] == pytest.approx(-last[0.0]["logps/chosen"], rel=1e-5)
    assert last[1.0]["logps/rejected"] < last[0.0]["logps/rejected"] - 5
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got 2"):
        train_unlikelihood(tiny_llama(), None, data, alpha=2)


# ── towards the optimum ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def world() -> EnumerableWorld:
    return enumerable_world()


def in_world(world, train, config, **options):
    policy = world.new_policy()
    prompts = prompt_tokens(world)
    events = list(train(policy, letter_tokenizer("abc"), prompts, LetterReward(world), config, **options))
    with torch.no_grad():
        return world.logps(policy), events


LETTERS = {"max_new_tokens": 3, "max_length": 16, "epochs": 10_000, "device": "cpu", "sampling_batch_size": 1024,
           "beta": 0.5}  # fmt: skip


def test_the_worlds_letters_are_its_tokens(world):
    tokenizer = letter_tokenizer("abc")
    assert tokenizer("ab.c", add_special_tokens=False)["input_ids"] == world.tree.encode("ab.c").tolist()
    assert tokenizer.decode([1, 3, 0], skip_special_tokens=True) == "ac"
    answers = generate_ids(world.reference, tokenizer, prompt_tokens(world), max_new_tokens=3, num_samples=200)
    rewards = LetterReward(world)(prompt_tokens(world)[:1] * 200, answers[0])
    expected = (world.table.reference_logps[0].exp() * world.table.rewards[0]).sum().item()
    spread = rewards.std() / math.sqrt(200)
    assert rewards.mean() == pytest.approx(expected, abs=4 * spread)


def test_what_is_told_of_rewards_and_kl_is_what_is(world):
    """The estimates of a step against the exact values of the policy that sampled."""
    policy = world.new_policy()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    reference = copy.deepcopy(world.reference)
    config = RLOOConfig(**LETTERS, batch_size=60, num_samples=10, max_steps=1)
    with torch.no_grad():
        logps = world.logps(policy)
    events = train_rloo(policy, letter_tokenizer("abc"), prompt_tokens(world), LetterReward(world), config,
                        reference=reference)  # fmt: skip
    metrics = next(event for event in events if isinstance(event, Step)).metrics
    table = world.table
    exact = table.mean((logps.exp() * table.rewards).sum(-1)).item()
    assert metrics["reward"] == pytest.approx(exact, abs=0.15)
    assert metrics["kl"] == pytest.approx(table.mean(kl(logps, table.reference_logps)).item(), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "config"),
    [
        (train_rloo, RLOOConfig(**LETTERS, batch_size=96, num_samples=4, max_steps=400, learning_rate=3e-3,
                                schedule="cosine")),
        (train_ppo, PPOConfig(**LETTERS, batch_size=384, max_steps=1600, learning_rate=3e-3, gae_lambda=1.0,
                              normalise_advantages=False, schedule="cosine")),
    ],
    ids=["rloo", "ppo"],
)  # fmt: skip
def test_training_comes_near_the_optimum(world, train, config, request):
    """From a total variation of 0.55 to below 0.1, and within 2 % of the optimum's objective, reward and all."""
    if not request.config.getoption("--run-slow"):
        pytest.skip("a minute; --run-slow runs it")
    logps, _ = in_world(world, train, config)
    optimum = optimal_logps(world.table, 0.5)
    start = total_variation(world.table.reference_logps, optimum)
    end = total_variation(logps, optimum)
    assert start.min() > 0.5
    assert end.max() < 0.1
    best, reached = best_objective(world.table, 0.5).item(), objective(world.table, logps, 0.5).item()
    assert reached > 0.98 * best
    rewards = [expected_reward(world.table, policy).item() for policy in (logps, optimum)]
    assert rewards[0] == pytest.approx(rewards[1], rel=0.02)
