"""Sampling: the distribution is the model's own, and neither the batch nor the clock changes a text."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from dpo_lab.logprobs import score
from dpo_lab.preferences import DEFAULT_CHAT_TEMPLATE, TokenData, encode_prompt, render_prompt
from dpo_lab.sampling import end_tokens, generate, generate_ids, prompt_ids
from tests.conftest import tiny_llama
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

PROMPTS = ["the cat sat", "a dog", "it was a big red tree and then the cat", "no"]


@pytest.fixture(scope="module")
def policy():
    return tiny_llama(), tiny_tokenizer()


def ids_of(rows) -> list[list[list[int]]]:
    return [[completion.ids.tolist() for completion in row] for row in rows]


# ── what is sampled ──────────────────────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def greedy_by_hand(model, prompt: list[int], num: int) -> list[int]:
    """The likeliest token again and again, with a full forward pass each, until the end token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + num:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


def test_greedy_answers_in_a_padded_batch_equal_those_computed_by_hand(policy):
    model, tokenizer = policy
    rows = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row[0].ids.tolist() == greedy_by_hand(model, tokenizer(prompt)["input_ids"], 12)
    alone = [generate_ids(model, tokenizer, [prompt], max_new_tokens=12, temperature=0)[0] for prompt in PROMPTS]
    assert ids_of(alone) == ids_of(rows)
    in_twos = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0, batch_size=2)
    assert ids_of(in_twos) == ids_of(rows)
    scored = score(model, TokenData.from_rows([([1, 9], (row[0].ids,)) for row in rows]))  # another attention
    assert np.isfinite(scored).all()
    assert ids_of(generate_ids(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)) == ids_of(rows)


def exact(model, prompt: list[int], length: int, temperature: float = 1.0) -> dict[tuple[int, ...], float]:
    """The probability of every answer of at most `length` tokens; 2 ends one."""
    logits = lambda ids: model(torch.tensor([ids])).logits[0, -1].double() / temperature
    answers: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        for answer in itertools.product(range(model.config.vocab_size), repeat=length):
            if 2 in answer:
                answer = answer[: answer.index(2) + 1]
            if answer not in answers:
                logp = sum(
                    float(logits([*prompt, *answer[:t]]).log_softmax(-1)[token]) for t, token in enumerate(answer)
                )
                answers[answer] = math.exp(logp)
    return answers


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_answers_come_as_often_as_the_model_says(temperature):
    model, tokenizer, num = tiny_llama(vocab_size=5), tiny_tokenizer(), 4000
    # What a model's own file asks for must not bend the distribution.
    model.generation_config.update(top_k=1, repetition_penalty=3.0, min_p=0.2, no_repeat_ngram_size=1)
    settings = model.generation_config.to_dict()
    probabilities = exact(model, [1, 3, 4], 2, temperature)
    assert sum(probabilities.values()) == pytest.approx(1)
    (answers,) = generate_ids(
        model, tokenizer, [[1, 3, 4]], num_samples=num, batch_size=num, max_new_tokens=2, temperature=temperature
    )
    counts = dict.fromkeys(probabilities, 0)
    for answer in answers:
        counts[tuple(answer.ids.tolist())] += 1
    # Pearson's X² over answers expected at least five times, the rest taken together; mean k, variance 2k.
    often = [answer for answer, p in probabilities.items() if p * num >= 5]
    rest = num - sum(counts[a] for a in often), num * (1 - sum(probabilities[a] for a in often))
    pairs = [(counts[a], num * probabilities[a]) for a in often] + [rest] * (rest[1] > 1)
    chi_square = sum((seen - expected) ** 2 / expected for seen, expected in pairs)
    freedom = len(pairs) - 1
    assert freedom >= 5
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)
    assert model.generation_config.to_dict() == settings


def test_top_p_keeps_the_likeliest_tokens_only():
    model, tokenizer = tiny_llama(vocab_size=5), tiny_tokenizer()
    likeliest = max(exact(model, [1, 3], 1).items(), key=lambda item: item[1])
    (answers,) = generate_ids(model, tokenizer, [[1, 3]], num_samples=200, batch_size=200, max_new_tokens=1,
                              top_p=0.9 * likeliest[1])  # fmt: skip
    assert {tuple(answer.ids.tolist()) for answer in answers} == {likeliest[0]}


# ── the seed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(policy):
    one, two, other = (generate(*policy, PROMPTS, max_new_tokens=10, seed=seed) for seed in (0, 0, 1))
    assert one == two != other
    assert len(set(one)) == len(PROMPTS)


def test_the_random_state_the_mode_and_the_gradients_stay_as_they_were(policy):
    model, tokenizer = copy.deepcopy(policy[0]), policy[1]
    model.train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    generate(model, tokenizer, PROMPTS, max_new_tokens=4)
    assert torch.equal(torch.rand(4), expected)
    assert model.training
    assert torch.is_grad_enabled()
    with pytest.raises(TypeError):  # something goes wrong in the midst of it
        generate(model, tokenizer, PROMPTS, max_new_tokens=4, batch_size=2.5)  # pyright: ignore[reportArgumentType]
    assert model.training
    assert model.generation_config.max_new_tokens is None


def test_dropout_is_off_while_sampling():
    tokenizer = tiny_tokenizer()
    noisy, plain = tiny_llama(attention_dropout=0.9).train(), tiny_llama()
    assert generate(noisy, tokenizer, PROMPTS, temperature=0) == generate(plain, tokenizer, PROMPTS, temperature=0)


# ── shapes and ends ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_text_per_prompt_or_a_list_of_them_in_the_order_given(policy):
    texts = generate(*policy, PROMPTS, max_new_tokens=6)
    assert [type(text) for text in texts] == [str] * 4
    for batch_size in (1, 5, 64):
        many = generate(*policy, PROMPTS, max_new_tokens=6, num_samples=3, batch_size=batch_size)
        assert [len(row) for row in many] == [3] * 4
        assert len(set(many[0])) == 3
    assert generate(*policy, []) == []


def test_samples_belong_to_their_prompt(policy):
    model, tokenizer = policy
    rows = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=8, num_samples=16, temperature=0.3)
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    own, other = (
        score(model, TokenData.from_rows([(encoded[(i + by) % 4], tuple(c.ids for c in row))
                                          for i, row in enumerate(rows)])).mean()
        for by in (0, 1)
    )  # fmt: skip
    assert own > other + 3


def test_an_answer_ends_with_the_end_token_or_is_cut_and_says_which(policy):
    model, tokenizer = policy
    rows = generate_ids(model, tokenizer, PROMPTS, max_new_tokens=6, num_samples=40)
    answers = [completion for row in rows for completion in row]
    for answer in answers:
        assert answer.ids.dtype == np.int32
        assert (2 in answer.ids) == answer.is_finished == (answer.ids[-1] == 2)
        assert answer.is_finished or len(answer.ids) == 6
        assert 1 <= len(answer.ids) <= 6
        assert answer.text == tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
    assert {answer.is_finished for answer in answers} == {True, False}
    assert len({len(answer.ids) for answer in answers if answer.is_finished}) > 2


def test_padding_with_the_end_token_changes_nothing(policy):
    options = {"max_new_tokens": 8, "num_samples": 10}
    one, other = (generate_ids(policy[0], t, PROMPTS, **options)
                  for t in (policy[1], tiny_tokenizer(pad_token="</s>")))  # fmt: skip
    assert ids_of(one) == ids_of(other)


def test_an_answer_ends_where_its_template_closes_the_turn(policy):
    model = policy[0]
    assert end_tokens(model, tiny_tokenizer()) == [2]
    tokenizer = tiny_tokenizer(template=CHAT_TEMPLATE)
    assert end_tokens(model, tokenizer) == [2, 6]  # </s> and <|end|>
    several = copy.deepcopy(model)
    several.generation_config.eos_token_id = [2, 30]
    assert end_tokens(several, tokenizer) == [2, 6, 30]
    answers = [row[0] for row in generate_ids(model, tokenizer, PROMPTS * 20, max_new_tokens=12)]
    assert {int(answer.ids[-1]) for answer in answers if answer.is_finished} == {2, 6}
    assert all(6 not in answer.ids[:-1] for answer in answers)
    assert end_tokens(model, tiny_tokenizer(template="{{ raise_exception('never') }}")) == [2]


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_texts_ids_and_rows_are_the_same_prompt(policy):
    texts = generate(*policy, PROMPTS, max_new_tokens=8, seed=4)
    ids = [policy[1](prompt)["input_ids"] for prompt in PROMPTS]
    assert generate(*policy, ids, max_new_tokens=8, seed=4) == texts
    assert generate(*policy, [np.array(row) for row in ids], max_new_tokens=8, seed=4) == texts
    assert generate(*policy, [{"prompt": prompt} for prompt in PROMPTS], max_new_tokens=8, seed=4) == texts


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE, CHAT_TEMPLATE.replace("{{ bos_token }}", "")],
                         ids=["none", "with start", "without start"])  # fmt: skip
@pytest.mark.parametrize("bos", [True, False])
def test_a_rendered_conversation_begins_as_in_training_never_with_two_starts(template, bos):
    tokenizer = tiny_tokenizer(bos=bos, template=template)
    row = {"prompt": [{"role": "user", "content": "the cat"}]}
    expected = encode_prompt(row, tokenizer)
    assert expected.count(1) == ((bos and template is None) or template == CHAT_TEMPLATE)
    assert prompt_ids(render_prompt(row, tokenizer), tokenizer) == expected == prompt_ids(row, tokenizer)


def test_a_start_is_added_to_plain_text_once():
    tokenizer = tiny_tokenizer(template=CHAT_TEMPLATE)
    assert prompt_ids("the cat", tokenizer) == prompt_ids("<s> the cat", tokenizer) == [1, 7, 9]
    assert prompt_ids("the cat", tiny_tokenizer(bos=False)) == [7, 9]
    assert prompt_ids("", tokenizer) == [1]  # the start alone is something to go on from
    assert DEFAULT_CHAT_TEMPLATE


def test_a_prompt_without_tokens_is_refused(policy):
    for prompts in ([[5], []], ["cat", ""]):
        with pytest.raises(ValueError, match="prompt 1 has no tokens, and a model needs one to start from"):
            generate(policy[0], tiny_tokenizer(bos=False), prompts)


def test_a_prompt_of_another_tokenizer_is_refused(policy):
    with pytest.raises(ValueError, match="prompt 1 holds token ids from 1 to 64, the model has 64 embeddings; use the"):
        generate(*policy, [[5], [1, 64]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0; 128"),
        ({"temperature": -0.1}, "temperature must be finite and not negative, got -0.1; 0 is greedy"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": math.inf}, "got inf"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0.0; 1 keeps every token"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2, "temperature": 0}, "must be 1 at temperature 0, got 2; greedy answers are all the same"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0; 64"),
    ],
)
def test_options_that_cannot_be_are_refused(policy, options, message):
    with pytest.raises(ValueError, match=message):
        generate(*policy, PROMPTS, **options)
