"""What holds for every input that hypothesis can think of: loaders, token data, batching, splitting."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_lab.batching import epoch_batches, make_batch, row_lengths, split_passes
from dpo_lab.preferences import TokenData, read_preferences, split_rows, stream_preferences, tokenize_pairs
from dpo_lab.preferences.token_data import Collector
from dpo_lab.preferences.tokens import shorten
from tests.small_tokenizers import bpe

some = settings(max_examples=40, deadline=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
PAIR = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}).filter(
    lambda row: row["chosen"] != row["rejected"]
)
PAIRS = st.lists(PAIR, min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELD = st.sampled_from(["prompt", "chosen", "rejected", "messages", "conversations", "instruction", "input", "output",
                         "history", "system", "tools", "weight", "label", "completion", "preferred_output",
                         "non_preferred_output", "role", "content", "from", "value", "split", ""])  # fmt: skip
TURNS = st.lists(st.dictionaries(FIELD, st.sampled_from(["user", "assistant", "human", "gpt"]) | JSON, max_size=3),
                 max_size=3)  # fmt: skip
ANY_ROW = st.dictionaries(FIELD, JSON | TURNS, max_size=5)

IDS = st.lists(st.integers(0, 99), max_size=6)
TOKEN_ROWS = st.lists(st.tuples(IDS, st.tuples(IDS.filter(len), IDS.filter(len)), st.floats(0, 4, width=32)),
                      min_size=1, max_size=9)  # fmt: skip
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(np.array)


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


# ── loaders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, rows: list[dict]) -> Path:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"], quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else lines, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.csv", "a.parquet"])
@some
@given(rows=PAIRS)
def test_what_is_written_is_what_is_read_and_streamed(folder, name, rows):
    if name == "a.csv":  # one of its cells must not look like messages
        rows = [{key: value.replace("\x00", "0").replace("[{", "[") for key, value in row.items()} for row in rows]
        rows = [row for row in rows if row["chosen"] != row["rejected"]] or [
            {"prompt": "a", "chosen": "b", "rejected": "c"}
        ]
    path = write(folder / name, rows)
    read, report = read_preferences(path)
    assert read == rows
    stream, streamed = stream_preferences(path)
    assert list(stream) == rows
    assert streamed.rows_kept == report.rows_kept == len(rows)
    assert streamed.layouts == report.layouts


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(ANY_ROW, min_size=1, max_size=4))
def test_any_row_is_kept_or_refused_with_its_index_and_every_row_is_counted(rows):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    kept, report = read_preferences([good, *rows], on_bad_row="skip")
    assert report.rows_read == len(rows) + 1
    assert report.rows_kept == len(kept) == report.rows_read - len(report.bad) - len(report.identical)
    assert all(str(problem).startswith(f"the rows, row index {problem.place.row}: ") for problem in report.bad)
    for row in kept:
        assert {"prompt", "chosen", "rejected"} <= row.keys()
    again, _ = read_preferences(kept)  # what was read is a source itself
    assert [row["chosen"] for row in again] == [row["chosen"] for row in kept]


@some
@given(rows=PAIRS, share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_split_puts_every_row_on_one_side_and_no_prompt_on_both(rows, share, seed):
    rows = [row | {"number": number} for number, row in enumerate(rows)]
    if len({row["prompt"] for row in rows}) < 2:
        with pytest.raises(ValueError, match="cannot be split"):
            split_rows(rows, share, seed)
        return
    train, held = split_rows(rows, share, seed)
    assert sorted(row["number"] for row in [*train, *held]) == list(range(len(rows)))
    assert train
    assert held
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    turned = split_rows(rows[::-1], share, seed)  # the order of the rows plays no part
    assert {row["prompt"] for row in turned[1]} == {row["prompt"] for row in held}


# ── token data ───────────────────────────────────────────────────────────────────────────────────────────────────────


def plain(data: TokenData) -> list:
    rows = [data.row(index) for index in range(len(data))]
    return [(row.prompt.tolist(), tuple(part.tolist() for part in row.completions), row.weight) for row in rows]


@some
@given(rows=TOKEN_ROWS)
def test_what_is_collected_on_disk_is_what_is_collected_in_memory(folder, rows):
    shutil.rmtree(folder / "tokens", ignore_errors=True)  # of the example before
    collector = Collector(folder / "tokens")
    for index, (prompt, completions, weight) in enumerate(rows):
        collector.add(prompt, completions, weight, index)
    on_disk, in_memory = collector.data(), TokenData.from_rows(rows)
    assert isinstance(on_disk.ids, np.memmap)
    assert plain(on_disk) == plain(in_memory) == rows
    assert np.array_equal(on_disk.lengths(), in_memory.lengths())
    lengths = [[len(prompt), *map(len, completions)] for prompt, completions, _ in rows]
    assert in_memory.lengths().tolist() == lengths
    assert in_memory.longest() == max(prompt + max(rest) for prompt, *rest in lengths)
    assert plain(TokenData.load(folder / "tokens")) == rows


@settings(max_examples=20, deadline=None)
@given(rows=PAIRS)
def test_streamed_rows_give_the_tokens_of_rows_at_once(folder, rows):
    tokenizer = bpe()
    at_once, told = tokenize_pairs(rows, tokenizer)
    shutil.rmtree(folder / "streamed", ignore_errors=True)  # of the example before
    streamed, report = tokenize_pairs(iter(rows), tokenizer, folder=folder / "streamed")
    assert plain(streamed) == plain(at_once)
    assert streamed.source_rows.tolist() == at_once.source_rows.tolist()
    assert report == told


@some
@given(
    prompt=st.integers(0, 40), completions=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    max_length=st.integers(2, 50), head=st.integers(0, 5), tail=st.integers(0, 5),
)  # fmt: skip
def test_what_is_shortened_fits_and_keeps_its_head_its_tail_and_a_token_of_each_answer(
    prompt, completions, max_length, head, tail
):
    from dpo_lab.preferences import BadRow

    ids, answers = np.arange(prompt), [np.arange(size) for size in completions]
    try:
        kept, cut = shorten(ids, answers, max_length, head=head, tail=tail)
    except BadRow:
        assert min(head + tail, prompt) >= max_length
        return
    assert all(0 < len(kept) + len(answer) <= max_length for answer in cut)
    assert all(len(answer) > 0 for answer in cut)
    first, last = min(head, prompt), min(tail, max(0, prompt - min(head, prompt)))
    assert kept[:first].tolist() == ids[:first].tolist()
    assert kept[len(kept) - last :].tolist() == ids[prompt - last :].tolist()
    assert all(answer.tolist() == whole[: len(answer)].tolist() for answer, whole in zip(cut, answers, strict=True))
    is_cut = any(len(answer) < len(whole) for answer, whole in zip(cut, answers, strict=True))
    assert not is_cut or len(kept) == first + last, "the prompt gives way first"


# ── batching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def batches_as_a_list(lengths, batch_size, seed, epoch, group):
    """The order as its definition says it, window by window in lists."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    if group:
        windows = [order[start : start + 32 * batch_size] for start in range(0, len(order), 32 * batch_size)]
        order = [index for window in windows for index in sorted(window, key=lambda index: lengths[index])]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if group and len(batches) > 1:
        full = len(batches) - (len(batches[-1]) < batch_size)
        batches = [batches[place] for place in generator.permutation(full)] + batches[full:]
    return batches


@some
@given(lengths=LENGTHS, size=st.integers(1, 5), seed=st.integers(0, 5), epoch=st.integers(0, 3), group=st.booleans())
def test_an_epoch_is_what_its_definition_says(lengths, size, seed, epoch, group):
    batches = epoch_batches(lengths, size, seed=seed, epoch=epoch, group_by_length=group)
    expected = batches_as_a_list(lengths, size, seed, epoch, group)
    assert [batch.tolist() for batch in batches] == expected
    assert len(batches) == len(expected)
    assert batches[-1].tolist() == expected[-1]
    assert [batch.tolist() for batch in batches[1:3]] == expected[1:3]
    assert sorted(np.concatenate(list(batches)).tolist()) == list(range(len(lengths)))
    with pytest.raises(IndexError):
        batches[len(expected)]


@some
@given(lengths=LENGTHS, tokens=st.integers(1, 100), most=st.none() | st.integers(1, 4), data=st.data())
def test_passes_hold_all_in_order_within_the_limit_and_go_on_alike_from_any_of_them(lengths, tokens, most, data):
    order = np.array(data.draw(st.permutations(range(len(lengths)))))
    passes = split_passes(order, lengths, tokens_per_pass=tokens, micro_batch_size=most)
    assert np.concatenate(passes).tolist() == order.tolist()
    for one in passes:
        assert len(one) == 1 or lengths[one].sum() <= tokens
        assert most is None or len(one) <= most
    done = data.draw(st.integers(0, len(passes) - 1))
    left = order[sum(map(len, passes[:done])) :]  # what a kill after `done` passes leaves to do
    again = split_passes(left, lengths, tokens_per_pass=tokens, micro_batch_size=most)
    assert [one.tolist() for one in again] == [one.tolist() for one in passes[done:]]


@some
@given(rows=TOKEN_ROWS, data=st.data())
def test_both_layouts_score_the_same_tokens_after_the_same_tokens(rows, data):
    tokens = TokenData.from_rows(rows)
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    scored = []
    for layout in ("shared", "separate"):
        batch = make_batch(tokens, indices, layout)
        before, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
        scored.append(Counter(zip(batch.sequences.tolist(), positions[batch.predictors].tolist(),
                                  before[batch.predictors].tolist(), batch.targets.tolist(), strict=True)))  # fmt: skip
        assert batch.lengths.sum() == len(batch.targets)
        assert batch.num_tokens >= row_lengths(tokens, layout)[indices].sum()
    assert scored[0] == scored[1]
    expected = sum(len(answer) - (not rows[index][0]) for index in indices for answer in rows[index][1])
    assert scored[0].total() == expected
