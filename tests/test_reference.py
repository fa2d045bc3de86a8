"""The reference cache: what it finds again and what it must not, and that no damage ever becomes a wrong number."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_lab.config import DPOConfig
from dpo_lab.logprobs import score
from dpo_lab.loop import Step
from dpo_lab.models.inside import disable_dropout
from dpo_lab.preferences import TokenData, tokenize_pairs
from dpo_lab.reference import ReferenceCache, fingerprint, row_keys, scoring_conditions
from dpo_lab.storage import logp_store
from dpo_lab.storage.logp_store import default_cache_path
from dpo_lab.training import train_dpo
from tests.conftest import random_pairs, tiny_llama
from tests.faults import forked, full_disk, in_fresh_process, kill_after, moments
from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "reference.sqlite"


def computed(path: Path, model, data: TokenData, **options) -> int:
    """How many rows the cache had to compute; what it gave is compared with the live values on the way."""
    with ReferenceCache(path) as cache:
        result = cache.logps(model, data, **options)
    np.testing.assert_allclose(result.values, score(model, data, **options), **CLOSE)
    return result.num_computed


def everything(path: Path, model, data: TokenData) -> tuple[np.ndarray, np.ndarray]:
    """What the store holds for `data`: values, and which rows are missing."""
    with ReferenceCache(path) as cache:
        return cache.lookup(row_keys(fingerprint(model), data, scoring_conditions(model, "float32")), 2)


# ── found again, or not ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_cached_equals_live_under_the_same_precision(model, path, precision, layout):
    options = {"precision": precision, "layout": layout}
    data = random_pairs(20)
    assert computed(path, model, data, **options) == 20
    with ReferenceCache(path) as cache:
        again = cache.logps(model, data, **options)
    assert (again.num_found, again.num_computed) == (20, 0)
    assert np.array_equal(again.values, score(model, data, **options))  # bit for bit


def test_one_bit_of_one_weight_misses(model, path):
    data = random_pairs(4)
    computed(path, model, data)
    with torch.no_grad():
        model.model.norm.weight.view(torch.int32)[7] ^= 1
    assert computed(path, model, data) == 4


@pytest.mark.parametrize(
    "settings", [{"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, {"rms_norm_eps": 1e-2}]
)
def test_a_setting_that_is_in_no_weight_misses(path, settings):
    data = random_pairs(4)
    one, other = tiny_llama(), tiny_llama(**settings)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    computed(path, one, data)
    assert computed(path, other, data) == 4


def test_a_class_that_computes_otherwise_misses(path):
    from transformers import LlamaForCausalLM

    class Colder(LlamaForCausalLM):
        def forward(self, *inputs, **options):
            output = super().forward(*inputs, **options)
            output.logits = output.logits * 2
            return output

    data, model = random_pairs(4), tiny_llama()
    other = Colder(model.config).eval()
    other.load_state_dict(model.state_dict())
    computed(path, model, data)
    assert computed(path, other, data) == 4


def test_truncation_template_and_precision_miss(model, path):
    plain, templated = tiny_tokenizer(), tiny_tokenizer(template=CHAT_TEMPLATE)
    question = [{"role": "user", "content": "the cat sat on the red mat and then it was sad"}]
    rows = [{"prompt": question, "chosen": [{"role": "assistant", "content": "yes it was"}],
             "rejected": [{"role": "assistant", "content": "no"}]}]  # fmt: skip
    data = tokenize_pairs(rows, plain)[0]
    assert computed(path, model, data) == 1
    assert computed(path, model, tokenize_pairs(rows, templated)[0]) == 1
    assert computed(path, model, tokenize_pairs(rows, plain, max_length=12)[0]) == 1
    assert computed(path, model, data, precision="bfloat16") == 1
    assert computed(path, copy.deepcopy(model).bfloat16(), data) == 1
    assert computed(path, model, data) == 0


def test_loss_beta_rate_order_and_output_folder_hit(path, tmp_path):
    data = random_pairs(20)
    common = {"batch_size": 8, "epochs": 1, "device": "cpu"}
    configs = [
        DPOConfig(**common),
        DPOConfig(**common, beta=0.5),
        DPOConfig(**common, loss="ipo"),
        DPOConfig(**common, learning_rate=1e-2, optimizer="sgd"),
        DPOConfig(**common, seed=3, group_by_length=False, micro_batch_size=1),
    ]
    passes = []
    for i, config in enumerate(configs):
        with ReferenceCache(path) as cache:
            told = lambda done, total, i=i: passes.append((i, done, total))
            list(train_dpo(tiny_llama(), None, data, config, cache=cache, checkpoints=tmp_path / str(i),
                           on_reference=told))  # fmt: skip
    assert {i for i, _, _ in passes} == {0}
    assert passes[-1][1:] == (20, 20)
    order = np.random.default_rng(0).permutation(20)
    assert computed(path, tiny_llama(), data.select(order)) == 0


def test_more_pairs_compute_exactly_the_new_ones(model, path):
    data = random_pairs(44)
    assert computed(path, model, data.select(range(40))) == 40
    assert computed(path, model, data) == 4
    assert computed(path, model, data) == 0


def test_a_pair_that_stands_twice_is_computed_once(model, path):
    data = random_pairs(3).select([0, 1, 0, 2, 1, 0])
    with ReferenceCache(path) as cache:
        result = cache.logps(model, data)
        assert len(cache) == result.num_computed == 3
    assert result.num_found == 0
    np.testing.assert_allclose(result.values, score(model, data), **CLOSE)


@pytest.mark.parametrize("num_completions", [1, 3])
def test_any_number_of_answers_is_kept(model, path, num_completions):
    generator = np.random.default_rng(0)
    draw = lambda: generator.integers(3, 64, 5).astype(np.int32)
    data = TokenData.from_rows([(draw(), tuple(draw() for _ in range(num_completions))) for _ in range(6)])
    assert computed(path, model, data) == 6
    assert computed(path, model, data) == 0
    pairs = TokenData.from_rows([(row.prompt, (row.completions[0],) * 2) for row in map(data.row, range(6))])
    assert computed(path, model, pairs) == 6


def test_where_a_prompt_ends_is_part_of_the_key(model, path):
    ids = np.arange(5, 12, dtype=np.int32)
    cut = lambda at: TokenData.from_rows([(ids[:at], (ids[at:6], ids[6:]))])
    assert computed(path, model, cut(2)) == 1
    assert computed(path, model, cut(3)) == 1


def test_nothing_to_score_is_no_error(model, path):
    with ReferenceCache(path) as cache:
        assert cache.logps(model, random_pairs(3).select([])).values.shape == (0, 2)


def test_progress_counts_up_to_what_is_missing(model, path):
    data, told = random_pairs(20), []
    computed(path, model, data.select(range(5)))
    with ReferenceCache(path) as cache:
        cache.logps(model, data, tokens_per_pass=60, progress=lambda *counts: told.append(counts))
    assert len(told) > 3
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (15, 15)
    assert {total for _, total in told} == {15}


# ── the fingerprint ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "tied", "gpt2", "stories260k"])
def test_copies_and_round_trips_keep_the_fingerprint_and_training_changes_it(name, tmp_path, request):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    if name == "stories260k":
        model = AutoModelForCausalLM.from_pretrained(request.getfixturevalue("real") / "models" / name)
    elif name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    else:
        model = tiny_llama(tie_word_embeddings=name == "tied", attention_dropout=0.1)
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    score(model, random_pairs(3))  # gives the model another attention
    disable_dropout(model)
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
    assert fingerprint(model) == before
    model.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == before
    list(train_dpo(model, None, random_pairs(8), DPOConfig(batch_size=8, max_steps=1, device="cpu")))
    assert fingerprint(model) != before


def test_an_adapter_counts_with_its_scale_and_whether_it_is_on_off_or_merged(path):
    from peft import LoraConfig, get_peft_model

    def adapted(alpha: int):
        torch.manual_seed(0)
        settings = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        return get_peft_model(tiny_llama(), settings).eval()

    data, model = random_pairs(4), adapted(4)
    assert computed(path, model, data) == 4
    assert computed(path, adapted(4), data) == 0
    assert computed(path, adapted(8), data) == 4  # the same weights, twice the effect
    with model.disable_adapter():
        assert computed(path, model, data) == 4
    assert computed(path, model, data) == 0
    model.merge_adapter()
    assert computed(path, model, data) == 4


def test_the_reference_stays_the_original_one_after_resuming(path, tmp_path):
    data = random_pairs(8)
    config = DPOConfig(batch_size=8, epochs=3, learning_rate=3e-3, checkpoint_every=1, device="cpu")
    list(train_dpo(tiny_llama(), None, data, config, checkpoints=tmp_path, stop=lambda: True))
    model = tiny_llama()
    with ReferenceCache(path) as cache:
        stream = train_dpo(model, None, data, config, cache=cache, checkpoints=tmp_path,
                           resume=tmp_path / "step-00000001")  # fmt: skip
    resumed = copy.deepcopy(model)  # the checkpoint's weights, before its second step
    step = next(event for event in stream if isinstance(event, Step))
    ratio = score(resumed, data) - score(tiny_llama(), data)
    assert step.step == 2
    assert step.metrics["rewards/margins"] == pytest.approx(0.5 * (ratio[:, 0] - ratio[:, 1]).mean(), abs=1e-6)
    assert abs(step.metrics["rewards/margins"]) > 1e-3


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        "value = X'0000803F0000803F'",  # two plausible numbers
        "value = X'00'",
        "value = NULL",
        "value = 'text'",
        "value = CAST(X'FFFE' AS TEXT)",  # no UTF-8
        "value = 17",
        "checksum = checksum + 1",
        "checksum = NULL",
    ],
)
def test_a_damaged_row_is_computed_again_and_told(model, path, caplog, change):
    data = random_pairs(5)
    computed(path, model, data)
    store = sqlite3.connect(path)
    with store:
        store.execute(f"UPDATE logps SET {change} WHERE key IN (SELECT key FROM logps LIMIT 2)")
    store.close()
    assert computed(path, model, data) == 2
    assert f"2 damaged rows in {path} are computed again" in caplog.text
    assert computed(path, model, data) == 0


def test_whatever_bytes_are_overwritten_no_wrong_value_is_served(model, path, tmp_path):
    data = random_pairs(30)
    computed(path, model, data)
    good, live = path.read_bytes(), score(model, data)
    keys = row_keys(fingerprint(model), data, scoring_conditions(model, "float32"))
    generator = np.random.default_rng(0)
    num_found = []
    for i in range(150):
        bad = bytearray(good)
        start = int(generator.integers(0, len(bad)))
        length = int(generator.choice([1, 4, 64, 4096]))
        bad[start : start + length] = generator.bytes(len(bad[start : start + length]))
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / path.name).write_bytes(bad)
        with ReferenceCache(folder / path.name) as cache:
            values, is_missing = cache.lookup(keys, 2)
            assert np.array_equal(values[~is_missing], live[~is_missing])
            if i % 10 == 0:
                np.testing.assert_allclose(cache.logps(model, data).values, live, **CLOSE)
                assert len(cache) >= 30
        num_found.append(int((~is_missing).sum()))
    assert max(num_found) == 30  # some hit unused bytes,
    assert min(num_found) == 0  # and some the file's head


@pytest.mark.parametrize("damage", ["random bytes", "half of it", "its first page"])
def test_a_damaged_file_is_set_aside_and_computed_again(model, path, caplog, damage):
    data = random_pairs(200)
    computed(path, model, data)
    good = path.read_bytes()
    path.write_bytes({
        "random bytes": np.random.default_rng(0).bytes(len(good)),
        "half of it": good[: len(good) // 2],
        "its first page": good[:1000],
    }[damage])  # fmt: skip
    bad = path.read_bytes()
    assert computed(path, model, data) == 200
    aside = path.with_name(f"reference.sqlite.damaged-{os.getpid()}")
    assert aside.read_bytes() == bad
    assert f"{path} is damaged" in caplog.text
    assert f"set aside as {aside.name}, its log-probs are computed again" in caplog.text
    assert computed(path, model, data) == 0


def test_damage_that_shows_only_after_opening_is_mended_too(model, path, caplog):
    data = random_pairs(200)
    computed(path, model, data)
    with ReferenceCache(path) as cache:
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
        cache._store.execute("PRAGMA shrink_memory")  # forget the pages that were read while they were whole
        np.testing.assert_allclose(cache.logps(model, data).values, score(model, data), **CLOSE)
        assert len(cache) == 200
    assert "set aside" in caplog.text
    assert computed(path, model, data) == 0


def test_an_empty_file_is_a_store_without_rows(model, path):
    path.touch()
    assert computed(path, model, random_pairs(3)) == 3


def test_a_half_written_log_gives_what_was_committed_before_it(model, path, tmp_path):
    data, live = random_pairs(40), score(tiny_llama(), random_pairs(40))
    with ReferenceCache(path) as cache:
        cache.logps(model, data, tokens_per_pass=60)
        log = path.with_name(path.name + "-wal")
        base, tail = path.read_bytes(), log.read_bytes()  # as a killed process leaves them
    assert len(tail) > 4096
    generator, found = np.random.default_rng(0), []
    for i in range(12):
        cut = len(tail) * i // 12
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / path.name).write_bytes(base)
        (folder / log.name).write_bytes(tail[:cut] + (generator.bytes(5000) if i % 2 else b""))
        values, is_missing = everything(folder / path.name, model, data)
        np.testing.assert_allclose(values[~is_missing], live[~is_missing], **CLOSE)
        found.append(int((~is_missing).sum()))
    assert found == sorted(found)
    assert found[-1] > 20


def test_numbers_that_are_none_are_never_stored(model, path):
    data = random_pairs(20)
    is_hit = [bool((data.ids[b[0] : b[-1]] == 63).any()) for b in data.bounds]
    with torch.no_grad():
        model.get_input_embeddings().weight[63] = torch.nan
    with ReferenceCache(path) as cache:
        with pytest.raises(FloatingPointError, match=r"log-probs \[.*nan.*\] for row \d+; its weights are broken, or"):
            cache.logps(model, data, tokens_per_pass=1)
        num_stored = len(cache)
        fine = data.select([i for i, hit in enumerate(is_hit) if not hit])
        assert cache.logps(model, fine).num_found == num_stored < len(fine)
        assert len(cache) == len(fine)


# ── places that cannot be written ────────────────────────────────────────────────────────────────────────────────────

REMEDY = "free space or permissions there, or name another folder with --cache or DPO_LAB_CACHE"


def test_a_folder_holds_the_store_under_its_usual_name(tmp_path, monkeypatch):
    with ReferenceCache(tmp_path) as cache:
        assert cache.path == tmp_path / "reference.sqlite"
    monkeypatch.setenv("DPO_LAB_CACHE", str(tmp_path / "elsewhere"))
    with ReferenceCache() as cache:
        assert cache.path == default_cache_path() == tmp_path / "elsewhere" / "reference.sqlite"
        assert cache.path.is_file()


def test_places_that_cannot_hold_a_file_are_told_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "reference.sqlite").mkdir()
    for place in (tmp_path / "file" / "r.sqlite", tmp_path, Path("/proc/nowhere/r.sqlite"), Path("/dev/null")):
        with pytest.raises(OSError, match=f"the reference cache .* cannot be written .*{REMEDY}"):
            ReferenceCache(place)
    assert (tmp_path / "file").read_text() == "mine"
    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission_is_told(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OSError, match=REMEDY):
        ReferenceCache(tmp_path / "closed" / "r.sqlite")


def test_a_full_disk_is_told_and_keeps_what_was_stored(model, path):
    data = random_pairs(400)
    with ReferenceCache(path) as cache:
        with full_disk(60_000), pytest.raises(OSError, match=REMEDY):
            cache.logps(model, data, tokens_per_pass=100)
        num_stored = len(cache)
        assert 0 < num_stored < 400
        assert cache.logps(model, data).num_found == num_stored  # with room again it goes on
    with full_disk(1000), pytest.raises(OSError, match=REMEDY):
        ReferenceCache(path.with_name("other.sqlite"))


def test_a_store_that_many_open_at_the_same_moment_is_made_once(tmp_path):
    """As processes of one run do. Without a second try one round in sixty failed, so an order that fails is made here:
    another connection writes just when the log is to be begun."""
    path, errors = tmp_path / "reference.sqlite", []
    writer = sqlite3.connect(path, check_same_thread=False)
    writer.execute("CREATE TABLE logps (key BLOB PRIMARY KEY, value BLOB, checksum INTEGER) WITHOUT ROWID")
    writer.execute("BEGIN IMMEDIATE")

    def opens():
        try:
            ReferenceCache(path).close()
        except OSError as error:
            errors.append(error)

    openers = [threading.Thread(target=opens) for _ in range(6)]
    for opener in openers:
        opener.start()
    time.sleep(0.3)
    assert all(opener.is_alive() for opener in openers)
    writer.execute("ROLLBACK")
    writer.close()
    for opener in openers:
        opener.join(timeout=30)
    assert not errors
    with ReferenceCache(path) as cache:
        assert len(cache) == 0


def test_a_store_that_another_process_holds_is_told(path, monkeypatch):
    ReferenceCache(path).close()
    monkeypatch.setattr(logp_store, "_PATIENCE", 0.05)
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(OSError, match=r"is held by another process .*wait until that one is done"):
            ReferenceCache(path)
    finally:
        holder.close()


def test_closing_leaves_one_file_and_no_handle(model, path):
    with ReferenceCache(path) as cache:
        cache.logps(model, random_pairs(3))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    cache.close()  # twice is no error
    with pytest.raises(sqlite3.ProgrammingError):
        len(cache)
    path.write_bytes(b"damaged" * 1000)
    with ReferenceCache(path):  # the handle on the damaged file is closed as well
        pass
    if Path("/proc/self/fd").is_dir():
        assert not [link for link in Path("/proc/self/fd").iterdir() if str(path) in os.path.realpath(link)]


# ── several at once, and sudden ends ─────────────────────────────────────────────────────────────────────────────────


def test_threads_may_share_one_cache(model, path):
    data, results, problems = random_pairs(40), [], []

    def work() -> None:
        try:
            results.append(cache.logps(model, data, tokens_per_pass=60).values)
        except BaseException as problem:
            problems.append(problem)

    score(model, data)  # finds out the model's fast paths, once
    with ReferenceCache(path) as cache:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(cache) == 40
    assert not problems
    for values in results:
        np.testing.assert_allclose(values, score(model, data), **CLOSE)


def fill(path: Path, num: int, told=None) -> None:
    """Fill a store in many small passes, of some milliseconds each."""
    with ReferenceCache(path) as cache:
        cache.logps(tiny_llama(), random_pairs(num), tokens_per_pass=40, progress=told)


def fill_and_kill(folder: str, rounds: int) -> None:
    """Run in a process of its own: kill workers at random moments, and look at the store after each death."""
    data, model, path = random_pairs(120), tiny_llama(), Path(folder) / "reference.sqlite"
    live = score(model, data)
    num_killed = num_found = 0
    for seconds, _ in zip(moments(seed=0, longest=0.12), range(rounds), strict=False):
        reader, writer = os.pipe()

        def tell(done: int, total: int, writer: int = writer) -> None:
            os.write(writer, b"%d " % done)  # said after the pass was committed
            time.sleep(0.002)

        worker = forked(lambda tell=tell: fill(path, 120, tell))
        num_killed += kill_after(worker, seconds)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            committed = [int(done) for done in pipe.read().split()]
        values, is_missing = everything(path, model, data)
        np.testing.assert_allclose(values[~is_missing], live[~is_missing], **CLOSE)
        assert int((~is_missing).sum()) >= num_found + (committed[-1] if committed else 0)
        num_found = int((~is_missing).sum())
        if num_found == 120:
            shutil.rmtree(folder)
            num_found = 0
    fill(path, 120)
    assert not everything(path, model, data)[1].any()
    assert not [entry for entry in path.parent.iterdir() if "damaged" in entry.name]
    print("killed", num_killed)


def test_kill_9_at_any_moment_loses_at_most_the_pass_in_hand(tmp_path):
    told = in_fresh_process(f"tests.test_reference.fill_and_kill({str(tmp_path / 'store')!r}, 30)")
    assert int(told.split()[-1]) > 15


def fill_together(folder: str, rounds: int) -> None:
    """Run in a process of its own: several workers create and fill the same store at the same time."""
    data, model = random_pairs(40), tiny_llama()
    live = score(model, data)
    for i in range(rounds):
        path = Path(folder) / str(i) / "reference.sqlite"
        path.parent.mkdir()
        if i % 2:
            path.write_bytes(b"damaged " * 1000)
        workers = [forked(lambda path=path: fill(path, 40)) for _ in range(3)]
        assert [os.waitpid(worker, 0)[1] for worker in workers] == [0, 0, 0]
        values, is_missing = everything(path, model, data)
        assert i % 2 or not is_missing.any()
        np.testing.assert_allclose(values[~is_missing], live[~is_missing], **CLOSE)
    print("done")


def test_processes_fill_one_store_at_once(tmp_path):
    assert "done" in in_fresh_process(f"tests.test_reference.fill_together({str(tmp_path)!r}, 8)")


def test_the_log_names_its_module(caplog, path):
    path.write_bytes(b"damaged" * 1000)
    with caplog.at_level(logging.WARNING, "dpo_lab"), ReferenceCache(path):
        pass
    assert {record.name for record in caplog.records} == {"dpo_lab"}
