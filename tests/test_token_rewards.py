"""Rewards token by token: they add up to the pair's, equal `token_logps`, and their texts are the answer."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dpo_lab.batching import make_batch
from dpo_lab.logprobs import token_logps
from dpo_lab.preferences import TokenData, load_preferences, tokenize_pairs
from dpo_lab.workbench.evaluation import evaluate, token_rewards
from dpo_lab.workbench.evaluation.per_token import token_texts
from tests.conftest import random_pairs, tiny_llama
from tests.small_tokenizers import bpe
from tests.tiny import tiny_tokenizer

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> $x^2$ & naïve 喵 🐈‍⬛ \\frac{1}{2} "

POLITE = [{"prompt": "the cat ", "chosen": "sat on the mat", "rejected": "sat on the tree"},
          {"prompt": "a dog ", "chosen": "ran", "rejected": "was good and happy"}]  # fmt: skip


def rows_of(pairs):
    return {pair.row: pair for pair in pairs}


def test_they_add_up_to_the_rewards_of_the_evaluation():
    model, reference, tokenizer = tiny_llama(), tiny_llama(seed=1), tiny_tokenizer()
    for beta in (None, 0.1):
        table = evaluate(model, tokenizer, POLITE, reference=reference, beta=beta).table
        pairs = token_rewards(model, tokenizer, POLITE, reference=reference, beta=beta)
        assert [pair.row for pair in pairs] == table["row"].tolist() == [0, 1]
        for i, pair in enumerate(pairs):
            assert pair.chosen.rewards.sum() == pytest.approx(table["reward_chosen"][i], abs=1e-4)
            assert pair.rejected.rewards.sum() == pytest.approx(table["reward_rejected"][i], abs=1e-4)
            assert pair.margin == pytest.approx(table["margin"][i], abs=1e-4)
            assert pair.chosen.logps.sum() == pytest.approx(table["logp_chosen"][i], abs=1e-4)


@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("tokens_per_pass", [20, 16384])
def test_each_log_prob_is_that_of_token_logps(layout, tokens_per_pass):
    model, reference, data = (
        tiny_llama(vocab_size=31),
        tiny_llama(vocab_size=31, seed=1),
        random_pairs(7, vocab_size=31),
    )
    found = token_rewards(model, tiny_tokenizer(), data, reference=reference, beta=0.3, layout=layout,
                          tokens_per_pass=tokens_per_pass)  # fmt: skip
    assert [pair.row for pair in found] == list(range(7))
    for i, pair in enumerate(found):
        batch = make_batch(data, [i])
        of_policy, of_reference = (token_logps(one, batch).detach().numpy() for one in (model, reference))
        logps = np.concatenate([pair.chosen.logps, pair.rejected.logps])
        rewards = np.concatenate([pair.chosen.rewards, pair.rejected.rewards])
        np.testing.assert_allclose(logps, of_policy, atol=1e-5)
        np.testing.assert_allclose(rewards, 0.3 * (of_policy - of_reference), atol=1e-5)
        for answer, completion in zip((pair.chosen, pair.rejected), data.row(i).completions, strict=True):
            assert len(answer.tokens) == len(answer.logps) == len(answer.reference_logps) == len(completion)


def test_a_policy_that_is_its_reference_rewards_nothing():
    model = tiny_llama()
    for pair in token_rewards(model, tiny_tokenizer(), POLITE, reference=model):
        assert not pair.chosen.rewards.any()
        assert pair.margin == 0.0


def test_what_both_answers_begin_with_adds_nothing_to_the_margin():
    first, second = token_rewards(tiny_llama(), tiny_tokenizer(), POLITE, reference=tiny_llama(seed=1), beta=1.0)
    assert (first.num_shared, second.num_shared) == (3, 0)  # sat on the
    np.testing.assert_allclose(first.chosen.rewards[:3], first.rejected.rewards[:3], atol=1e-5)
    assert first.margin == pytest.approx(first.chosen.rewards[3:].sum() - first.rejected.rewards[3:].sum(), abs=1e-5)


def test_an_empty_prompt_leaves_the_first_token_out():
    data = TokenData.from_rows([([], ([7, 9, 11], [7, 9])), ([8], ([7, 9], [10]))])
    first, second = token_rewards(tiny_llama(), tiny_tokenizer(), data, reference=tiny_llama(seed=1))
    assert [len(first.chosen.tokens), len(first.rejected.tokens), first.num_shared] == [2, 1, 1]
    assert [len(second.chosen.tokens), len(second.rejected.tokens), second.num_shared] == [2, 1, 0]
    assert first.prompt_text == ""


def test_mistakes_are_told():
    model = tiny_llama()
    with pytest.raises(ValueError, match="beta must be positive"):
        token_rewards(model, tiny_tokenizer(), POLITE, reference=model, beta=0.0)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        token_rewards(model, tiny_tokenizer(), random_pairs(2).select([]), reference=model)
    with pytest.raises(ValueError, match="2 completions per prompt"):
        token_rewards(model, None, TokenData.from_rows([([5], ([6],))]), reference=model)


def test_a_training_mode_is_left_as_it_was():
    model, reference = tiny_llama().train(), tiny_llama(seed=1)
    token_rewards(model, tiny_tokenizer(), POLITE, reference=reference)
    assert model.training
    assert not reference.training


# ── the texts of the tokens ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_texts_of_the_tokens_are_the_answer():
    tokenizer = bpe()
    ids = tokenizer(HOSTILE, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == HOSTILE == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert texts.count("") > 5  # of the bytes that make up 喵, all but the last are empty
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_texts_do_not_depend_on_where_the_prompt_ends(cut):
    tokenizer = bpe()
    ids = tokenizer("The cat sat on the mat and the dog", add_special_tokens=False)["input_ids"]
    whole = token_texts(tokenizer, ids)
    assert token_texts(tokenizer, ids[cut:], before=ids[:cut]) == whole[cut:]


def test_bytes_that_are_no_text_end_and_keep_their_number():
    tokenizer = bpe()
    half = tokenizer("喵", add_special_tokens=False)["input_ids"][:-1]
    ids = [*half * 4, *tokenizer("the cat", add_special_tokens=False)["input_ids"]]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts).endswith("the cat")
    assert token_texts(tokenizer, []) == []


def test_ten_thousand_characters_are_quick_enough():
    tokenizer = bpe()
    text = (HOSTILE * 200)[:10_000]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# ── the embedded model and a really pretrained one ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["embedded", "stories260k"])
def test_hostile_rows_go_through_model_figure_and_page_as_text(source, request):
    from dpo_lab.models import load_policy
    from dpo_lab.workbench.plots import to_png, token_heatmap, token_html

    folder = "embedded" if source == "embedded" else request.getfixturevalue("real") / "models" / "stories260k"
    model, tokenizer = load_policy(str(folder), device="cpu")
    rows = [{"prompt": HOSTILE, "chosen": (HOSTILE * 200)[:10_000], "rejected": "<b>$no$</b>"}]
    (pair,) = token_rewards(model, tokenizer, rows, reference=model, max_length=256)
    html = token_html(pair)
    assert not re.search(r"<(script|img|b)\b", html)
    assert "&lt;" in html
    to_png(token_heatmap(pair))  # a formula that does not parse would be an error
    for text in (HOSTILE, rows[0]["chosen"]):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("source", ["embedded", "stories260k"])
def test_the_embedded_and_the_polite_data_are_shown_token_by_token(source, request):
    from dpo_lab.models import load_policy

    if source == "embedded":
        model, tokenizer = load_policy("embedded", device="cpu")
        rows = load_preferences("embedded", split="test").select(range(6)).to_list()
    else:
        real = request.getfixturevalue("real")
        model, tokenizer = load_policy(str(real / "models" / "stories260k"), device="cpu")
        rows = load_preferences(real / "preferences" / "instruction-polite.json", limit=6)
    data, _ = tokenize_pairs(rows, tokenizer, max_length=400)
    reference = tiny_llama(len(tokenizer), max_position_embeddings=512)
    table = evaluate(model, tokenizer, data, reference=reference).table
    found = token_rewards(model, tokenizer, data, reference=reference)
    for i, pair in enumerate(found):
        assert pair.margin == pytest.approx(table["margin"][i], rel=1e-5, abs=1e-4)
        for k, answer in enumerate((pair.chosen, pair.rejected)):
            whole = tokenizer.decode([*data.row(i).prompt, *data.row(i).completions[k]], skip_special_tokens=False,
                                     clean_up_tokenization_spaces=False)  # fmt: skip
            assert whole == pair.prompt_text + "".join(answer.tokens)
