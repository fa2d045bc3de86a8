"""Rows, order and cuts: what stands where, and that nothing is lost or seen twice."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_lab.batching import epoch_batches, make_batch, row_lengths, separate_rows, shared_rows, split_passes
from dpo_lab.preferences import TokenData
from tests.conftest import random_pairs


def one_pair(prompt=(10, 11), chosen=(20, 21, 22), rejected=(30, 31)) -> TokenData:
    ids = [np.array(part, np.int32) for part in (prompt, chosen, rejected)]
    return TokenData.from_rows([(ids[0], (ids[1], ids[2]))])


def test_a_shared_row_worked_by_hand():
    batch = shared_rows(one_pair(), [0])
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 22, 30, 31]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]  # the rejected branch restarts after the prompt
    assert batch.spans == ((0, 2, 5, 7),)
    # 11 predicts both first tokens; then each token predicts its neighbour of the same branch.
    assert batch.predictors.tolist() == [1, 2, 3, 1, 5]
    assert batch.targets.tolist() == [20, 21, 22, 30, 31]
    assert batch.sequences.tolist() == [0, 0, 0, 1, 1]
    assert batch.lengths.tolist() == [[3, 2]]
    assert batch.num_tokens == 7


def test_separate_rows_worked_by_hand():
    batch = separate_rows(one_pair(), [0], pad_id=99)
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 22], [10, 11, 30, 31, 99]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch.predictors.tolist() == [1, 2, 3, 6, 7]
    assert batch.targets.tolist() == [20, 21, 22, 30, 31]


def test_padding_is_masked_by_length_even_where_the_text_holds_the_pad_token():
    data = one_pair(chosen=(20, 99, 22))
    batch = separate_rows(data, [0], pad_id=99)
    assert batch.attention_mask is not None
    assert batch.attention_mask[0].tolist() == [1, 1, 1, 1, 1]
    assert batch.targets.tolist()[:3] == [20, 99, 22]


def test_weights_and_row_lengths_follow_the_rows():
    data = TokenData.from_rows(
        [
            (np.ones(3, np.int32), (np.ones(2, np.int32), np.ones(4, np.int32)), 0.5),
            (np.ones(1, np.int32), (np.ones(1, np.int32),) * 2, 2.0),
        ]
    )
    assert make_batch(data, [1, 0]).weights.tolist() == [2.0, 0.5]
    assert row_lengths(data, "shared").tolist() == [9, 3]
    assert row_lengths(data, "separate").tolist() == [12, 4]


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("num", [1, 7, 8, 9, 1000])
def test_an_epoch_holds_every_index_once(group, num):
    lengths = np.random.default_rng(0).integers(5, 100, num)
    batches = epoch_batches(lengths, 8, seed=1, group_by_length=group)
    assert sorted(np.concatenate(batches).tolist()) == list(range(num))
    assert all(len(batch) == 8 for batch in batches[:-1])
    assert len(batches[-1]) == (num % 8 or 8)


def test_the_order_is_of_the_seed_and_the_epoch():
    lengths = np.random.default_rng(0).integers(5, 100, 500)
    order = lambda **settings: np.concatenate(epoch_batches(lengths, 8, **settings)).tolist()
    assert order(seed=1, epoch=0) == order(seed=1, epoch=0)
    assert order(seed=1, epoch=0) != order(seed=1, epoch=1) != order(seed=2, epoch=1)


def test_grouped_batches_hold_similar_lengths_in_random_order():
    lengths = np.random.default_rng(0).integers(5, 500, 4000)
    spread = lambda group: np.mean(
        [np.ptp(lengths[b]) for b in epoch_batches(lengths, 16, seed=0, group_by_length=group)]
    )
    assert spread(True) < spread(False) / 8
    means = [lengths[b].mean() for b in epoch_batches(lengths, 16, seed=0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2  # no drift from short to long


def test_passes_respect_both_limits_and_keep_the_order():
    lengths = np.array([5, 5, 5, 50, 5, 5])
    cut = lambda **limits: [part.tolist() for part in split_passes(np.arange(6), lengths, **limits)]
    assert cut(tokens_per_pass=1000) == [[0, 1, 2, 3, 4, 5]]
    assert cut(tokens_per_pass=15) == [[0, 1, 2], [3], [4, 5]]  # a long row makes a pass of its own
    assert cut(tokens_per_pass=1000, micro_batch_size=4) == [[0, 1, 2, 3], [4, 5]]
    assert split_passes(np.array([], np.int64), lengths, tokens_per_pass=9) == []


def test_many_pairs_pack_into_one_row_without_padding():
    data = random_pairs(10)
    batch = shared_rows(data, range(10))
    assert batch.num_tokens == row_lengths(data).sum()
    assert batch.input_ids.shape[0] == 1
