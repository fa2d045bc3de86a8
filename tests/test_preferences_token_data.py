"""The flat arrays: views, selection, saving."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_lab.preferences import TokenData

IDS = st.lists(st.integers(0, 99), max_size=5)
ROWS = st.lists(st.tuples(IDS, st.tuples(IDS.filter(len), IDS.filter(len))), min_size=1, max_size=8)


def plain(data: TokenData) -> list:
    rows = [data.row(index) for index in range(len(data))]
    return [(row.prompt.tolist(), tuple(c.tolist() for c in row.completions)) for row in rows]


def small() -> TokenData:
    return TokenData.from_rows([([1, 2], ([3], [4, 5])), ([], ([6], [7]), 0.5), ([8], ([9], [1, 2, 3]))])


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, data=st.data())
def test_rows_and_selections_come_back_as_given(rows, data):
    tokens = TokenData.from_rows(rows)
    assert plain(tokens) == rows
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    chosen = tokens.select(picked)
    assert plain(chosen) == [rows[index] for index in picked]
    assert chosen.source_rows.tolist() == picked


def test_bounds_lie_as_documented():
    data = small()
    assert data.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    assert data.bounds.tolist() == [[0, 2, 3, 5], [5, 5, 6, 7], [7, 8, 9, 12]]
    assert data.num_completions == 2
    assert data.prompt_lengths.tolist() == [2, 0, 1]
    assert data.completion_lengths.tolist() == [[1, 2], [1, 1], [1, 3]]
    assert data.weights.tolist() == [1.0, 0.5, 1.0]
    assert [a.dtype for a in (data.ids, data.bounds, data.weights, data.source_rows)] == [
        np.int32, np.int64, np.float32, np.int64,
    ]  # fmt: skip


def test_a_mask_selects_and_rows_are_views():
    data = small()
    assert plain(data.select(np.array([True, False, True]))) == [plain(data)[0], plain(data)[2]]
    assert np.shares_memory(data.row(0).prompt, data.ids)


def test_an_empty_completion_and_a_missing_one_are_refused():
    with pytest.raises(ValueError, match="row 0 has an empty completion"):
        TokenData.from_rows([([1], ([2], []))])
    with pytest.raises(ValueError, match="row 1 has 1 completions, needs 2"):
        TokenData.from_rows([([1], ([2], [3])), ([1], ([2],))])


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_data_comes_back_and_can_stay_on_disk(tmp_path, mmap):
    small().save(tmp_path / "tokens")
    data = TokenData.load(tmp_path / "tokens", mmap=mmap)
    assert plain(data) == plain(small())
    assert data.weights.tolist() == small().weights.tolist()
    assert isinstance(data.ids, np.memmap) == mmap
    assert plain(data.select([2])) == plain(small())[2:]


def test_changed_cut_and_unfinished_saves_are_refused(tmp_path):
    small().save(tmp_path)
    ids = tmp_path / "ids.npy"
    sound = ids.read_bytes()
    ids.write_bytes(sound[:-1] + b"\x7f")
    with pytest.raises(ValueError, match=r"ids.npy has changed since it was saved .* tokenise again"):
        TokenData.load(tmp_path)
    ids.write_bytes(sound[:-4])
    with pytest.raises(ValueError, match=r"ids.npy should have \d+ bytes, has \d+"):
        TokenData.load(tmp_path, verify=False)
    (tmp_path / "token_data.json").unlink()
    with pytest.raises(FileNotFoundError, match="no token data, or saving broke off"):
        TokenData.load(tmp_path)
