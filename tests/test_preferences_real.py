"""Real files that nobody here wrote: numbers only, no text (some of it is offensive)."""

import time

import numpy as np
import pytest

from dpo_lab.preferences import (
    encode_prompt,
    end_token_id,
    read_preferences,
    render_prompt,
    split_rows,
    tokenize_pairs,
)
from dpo_lab.preferences.chat import render_whole


@pytest.fixture(scope="module")
def load_tokenizer(real):
    from transformers import AutoTokenizer

    return lambda name: AutoTokenizer.from_pretrained(real / name)


def test_hh_transcripts_are_all_read_and_four_split_early(real):
    rows, report = read_preferences(real / "preferences" / "hh-harmless-base-test.jsonl.gz")
    assert (len(rows), report.rows_read) == (2312, 2312)
    assert [place.line for place in report.split_early] == [1255, 1689, 1953, 2037]
    assert [place.line for place in report.run_on] == [1951]
    assert len(report.silent) == 4
    assert not report.bad
    assert all(row["prompt"].endswith("\n\nAssistant:") for row in rows)
    assert report.layouts == {"transcript": 2312}


def test_hh_is_read_and_tokenised_in_well_under_three_seconds(real, load_tokenizer):
    tokenizer = load_tokenizer("models/stories260k")
    start = time.process_time()
    rows, _ = read_preferences(real / "preferences" / "hh-harmless-base-test.jsonl.gz")
    data, report = tokenize_pairs(rows, tokenizer, max_length=512)
    seconds = time.process_time() - start
    assert len(data) == 2312 - len(report.identical)
    assert seconds < 6, "processor time, twice the target: a busy machine must not fail this"
    lengths = data.prompt_lengths[:, None] + data.completion_lengths
    assert lengths.max() == report.longest <= 512
    assert (data.completion_lengths > 0).all()
    assert (data.prompt_lengths > 0).all()


def test_hh_completions_reassemble_and_end_once(real, load_tokenizer):
    tokenizer = load_tokenizer("models/stories260k")
    rows, _ = read_preferences(real / "preferences" / "hh-harmless-base-test.jsonl.gz", limit=30)
    data, _ = tokenize_pairs(rows, tokenizer, max_length=100_000)
    for index, row in enumerate(rows):
        tokens = data.row(index)
        for name, completion in zip(("chosen", "rejected"), tokens.completions, strict=True):
            whole = [*tokenizer(row["prompt"] + row[name])["input_ids"], tokenizer.eos_token_id]
            assert np.concatenate([tokens.prompt, completion]).tolist() == whole
            assert whole.count(tokenizer.bos_token_id) == whole.count(tokenizer.eos_token_id) == 1


def test_polite_instructions_lose_the_six_rows_without_a_preference(real, load_tokenizer):
    rows, report = read_preferences(real / "preferences" / "instruction-polite.json")
    assert (report.rows_read, len(rows), len(report.identical)) == (1100, 1094, 6)
    train, validation = split_rows(rows)
    assert abs(len(validation) - 109.4) < 2
    assert len(train) + len(validation) == 1094
    data, tokens = tokenize_pairs(rows, load_tokenizer("models/stories260k"), max_length=512)
    assert (len(data), tokens.template, tokens.end_tokens) == (1094, "default", ["</s>"])


def test_sharegpt_conversations_go_through_the_minimind_template(real, load_tokenizer):
    rows, report = read_preferences(real / "preferences" / "sharegpt-dpo-en.json")
    assert len(rows) == 300
    assert len(report.duplicates) == 5
    tokenizer = load_tokenizer("tokenizers/minimind")
    data, tokens = tokenize_pairs(rows, tokenizer, max_length=100_000)
    assert (len(data), tokens.template, tokens.end_tokens) == (300, "tokenizer", ["<|im_end|>"])
    assert tokens.unstable_prompts == 0
    end = end_token_id(tokenizer, is_chat=True)
    for index, row in enumerate(rows[:60]):
        prompt, completions, _ = data.row(index)
        assert tokenizer.decode(prompt) == render_prompt(row, tokenizer)
        assert encode_prompt(row, tokenizer) == prompt.tolist()
        for name, completion in zip(("chosen", "rejected"), completions, strict=True):
            assert tokenizer.decode(np.concatenate([prompt, completion])) + "\n" == render_whole(row, name, tokenizer)
            assert completion[-1] == end
            assert end not in completion[:-1]


def test_shortened_sharegpt_prompts_keep_the_system_turn_and_the_header(real, load_tokenizer):
    rows, _ = read_preferences(real / "preferences" / "sharegpt-dpo-en.json")
    tokenizer = load_tokenizer("tokenizers/minimind")
    data, report = tokenize_pairs(rows, tokenizer, max_length=512)
    assert report.prompts_shortened > 100
    header = tokenizer("<|im_start|>assistant\n<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
    for index, source in enumerate(data.source_rows):
        row, prompt = rows[source], data.row(index).prompt.tolist()
        assert prompt[-len(header) :] == header
        if row["prompt"][0]["role"] == "system":
            system = f"<|im_start|>system\n{row['prompt'][0]['content']}<|im_end|>\n"
            assert tokenizer.decode(prompt).startswith(system)
