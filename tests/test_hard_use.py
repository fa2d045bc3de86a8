"""What attacks on the kit found, one kind after the other: each test plants the fault."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_lab import DPOConfig, ReferenceCache, Run, load_policy, train_dpo
from dpo_lab.config import SFTConfig
from dpo_lab.loop import Checkpoint, Finished, TrainingDiverged
from dpo_lab.models import loading
from dpo_lab.models.checks import check_template
from dpo_lab.models.loading import save_policy
from dpo_lab.preferences import TokenData, read_preferences
from dpo_lab.storage import locks
from dpo_lab.storage.checkpoints import latest_checkpoint
from dpo_lab.storage.files import read_lines
from dpo_lab.storage.locks import is_held
from dpo_lab.workbench.cli.interruption import endings
from dpo_lab.workbench.cli.options import LabOptions
from dpo_lab.workbench.runs import compare
from dpo_lab.workbench.runs.run import LOCK
from dpo_lab.workbench.sweeps import StoredStudy, SweepSettings
from tests.command_line import QUICK, chat_model, dpo_lab, dpo_lab_process, some_rows, write_rows
from tests.conftest import ROOT, random_pairs, tiny_llama
from tests.small_tokenizers import CHATML, bpe

ONE_STEP = (*QUICK, "--max-steps", "1", "--validation", "0")


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, ...]:
    pairs = write_rows(tmp_path / "pairs.jsonl", some_rows(24))
    return ("--model", str(chat_model(tmp_path / "model")), "--pairs", str(pairs), "--cache", str(tmp_path / "cache"))


def started(*arguments: object, before: str = "", **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own, which goes on while the test does."""
    code = f"import sys\nfrom dpo_lab.workbench.cli import main\n{before}\nsys.exit(main())"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            **options)  # fmt: skip  # pyright: ignore


def until(is_so: object, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():  # pyright: ignore
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


# ── 1: two runs on one --tokens folder ───────────────────────────────────────────────────────────────────────────────


def test_a_token_folder_is_reused_and_what_others_read_is_never_written_to(capsys, tmp_path, inputs):
    tokens, own = tmp_path / "tokens", (*ONE_STEP, "--tokens", str(tmp_path / "tokens"))
    assert dpo_lab(capsys, "train", *inputs, *own, "--run", tmp_path / "a").status == 0
    mapped, files = TokenData.load(tokens), {path: path.stat() for path in tokens.iterdir()}
    before = mapped.ids.copy()
    seen = dpo_lab(capsys, "train", *inputs, *own, "--run", tmp_path / "b", "--beta", "0.5")
    assert seen.status == 0, seen.err
    assert "24 rows tokenised, 24 kept" in " ".join(seen.out.split())  # its report is there again
    for path, old in files.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (old.st_mtime_ns, old.st_ino), path

    write_rows(tmp_path / "pairs.jsonl", list(reversed(some_rows(24))))
    seen = dpo_lab(capsys, "train", *inputs, *own, "--run", tmp_path / "c")
    assert seen.status == 2
    assert f"{tokens} holds the token ids of other data" in seen.message
    assert "name another folder, or delete this one" in seen.message
    assert np.array_equal(mapped.ids, before)
    assert not list(tmp_path.glob(".tokens.*"))


def test_rows_that_cannot_be_told_apart_by_files_are_compared_by_their_token_ids(tmp_path):
    from dpo_lab.preferences import tokenize_pairs

    tokenize_pairs(some_rows(5), bpe(), folder=tmp_path / "tokens")
    data, _ = tokenize_pairs(some_rows(5), bpe(), folder=tmp_path / "tokens")  # it finds the same
    with pytest.raises(ValueError, match="tokens holds the token ids of other data"):
        tokenize_pairs(some_rows(6), bpe(), folder=tmp_path / "tokens")
    assert len(data) == len(TokenData.load(tmp_path / "tokens")) == 5


# ── 2: one run, one writer ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_second_to_write_to_a_run_is_refused_and_learns_who_holds_it(capsys, tmp_path, inputs):
    run = tmp_path / "run"
    own = ("train", *inputs, *QUICK, "--run", str(run), "--epochs", "400", "--checkpoint-every", "5")
    first = started(*own)
    until(lambda: list(run.glob("checkpoints/step-*")))
    assert is_held(run / LOCK)
    second = dpo_lab(capsys, "train", "--run", run, "--resume")
    assert second.status == 2
    assert f"the run {run} is held by process {first.pid} on " in second.message
    first.kill()
    first.communicate()
    before = [row for row in Run.load(run).metrics if row["kind"] == "step"]
    assert len({row["step"] for row in before}) == len(before)
    # It died, and its name is still in the folder: that locks nothing.
    assert (run / f"{LOCK}-holder").exists()
    with Run.load(run).held():
        pass


def test_two_that_begin_one_run_at_the_same_moment_are_one(tmp_path, inputs):
    own = ("train", *inputs, *QUICK, "--run", str(tmp_path / "run"), "--max-steps", "3")
    both = [started(*own, "--seed", seed) for seed in (0, 1)]
    outcomes = [(child.communicate()[1], child.returncode) for child in both]
    assert sorted(status for _, status in outcomes) == [0, 2], outcomes
    assert [row["step"] for row in Run.load(tmp_path / "run").metrics if row["kind"] == "step"] == [1, 2, 3]


def test_a_generator_in_this_process_is_one_writer_too(tmp_path):
    run = Run.create(tmp_path / "run", {"command": "train"})
    stream = run.follow(train_dpo(tiny_llama(), None, random_pairs(8), DPOConfig(batch_size=4, device="cpu")))
    next(stream)
    with pytest.raises(OSError, match=f"is held by process {os.getpid()} on .* wait for it or stop it"):
        next(Run.load(run.folder).follow(iter([])))
    stream.close()
    with Run.load(run.folder).held():
        pass


# ── 3: what decides the numbers ──────────────────────────────────────────────────────────────────────────────────────


def test_other_held_out_data_are_refused_on_resume_so_that_no_two_series_are_mixed(tmp_path):
    config = DPOConfig(batch_size=4, device="cpu", epochs=2, checkpoint_every=1)
    begun = train_dpo(tiny_llama(), None, random_pairs(8), config, held_out=random_pairs(3), checkpoints=tmp_path)
    next(event for event in begun if isinstance(event, Checkpoint))
    latest = latest_checkpoint(tmp_path)
    go_on = lambda **held: train_dpo(tiny_llama(), None, random_pairs(8), config, resume=latest, **held)
    with pytest.raises(ValueError, match="belongs to another run: held_out was '"):
        list(go_on(held_out=random_pairs(4)))
    list(go_on(held_out=random_pairs(3)))
    list(go_on())  # none at all mixes nothing


# ── 4: the user's own files ──────────────────────────────────────────────────────────────────────────────────────────


def test_token_ids_never_replace_what_stands_in_a_folder(capsys, tmp_path, inputs):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "weights.npy").write_bytes(b"years of work")
    seen = dpo_lab(capsys, "train", *inputs, *ONE_STEP, "--tokens", mine, "--run", tmp_path / "run")
    assert seen.status == 2
    assert f"{mine} is there and holds no token data; name a new or an empty folder" in seen.message
    assert (mine / "weights.npy").read_bytes() == b"years of work"


def test_an_output_is_no_input_and_replaces_nothing(capsys, tmp_path, inputs):
    pairs = tmp_path / "pairs.jsonl"
    before = pairs.read_bytes()
    for name in ("pairs.jsonl", "notes.csv"):
        if name == "notes.csv":
            (tmp_path / name).write_text("mine")
        seen = dpo_lab(capsys, "evaluate", *inputs, "--kl-prompts", 0, "--reference", inputs[1], "--table",
                       tmp_path / name)  # fmt: skip
        assert seen.status == 2
        assert f"{name} is there already, and no file is written over; name a new one" in seen.message
    assert pairs.read_bytes() == before
    with pytest.raises(ValueError, match=r"notes.csv is there already and is no table of runs"):
        compare.comparison_csv([Run.create(tmp_path / "r", {"command": "train"})], tmp_path / "notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "mine"


@pytest.mark.parametrize("name", ["mine.sqlite", "reference.sqlite"])
def test_another_programs_database_is_no_cache(tmp_path, name):
    path = tmp_path / name
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE photos (name TEXT)")
        store.execute("INSERT INTO photos VALUES ('summer')")
    store.close()
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"it is another program's database, its tables are photos.*name another"):
        ReferenceCache(path)
    (tmp_path / "notes.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(OSError, match="it is another kind of file"):
        ReferenceCache(tmp_path / "notes.db")
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([name, "notes.db"])


# ── 5: names that mean something to a library ────────────────────────────────────────────────────────────────────────


def test_a_study_lies_where_its_path_says(tmp_path):
    pytest.importorskip("optuna")
    settings = SweepSettings(beta="0.1,0.2", trials=1)
    for name in ("a?mode=memory", "a%20b", "a b", "a#b"):
        StoredStudy.begin(tmp_path / name, settings)
        with StoredStudy.load(tmp_path / name).worker():
            pass
    begun = StoredStudy.load(tmp_path / "a b")
    with begun.worker():
        assert begun.take() is not None
    assert [len(StoredStudy.load(tmp_path / name).rows()) for name in ("a b", "a%20b", "a?mode=memory")] == [1, 0, 0]
    assert (tmp_path / "a?mode=memory" / "study.sqlite").is_file()
    assert not (tmp_path / "a").exists()


def test_signs_of_markup_in_paths_are_printed_as_they_are(capsys, tmp_path, inputs):
    run = tmp_path / "[bold] :fire: $x_1$"
    seen = dpo_lab(capsys, "train", *inputs, *ONE_STEP, "--run", run)
    assert seen.status == 0, seen.err
    assert f"report: {run / 'report.html'}" in seen.out
    copy = shutil.copytree(run, tmp_path / "[red]")
    seen = dpo_lab(capsys, "compare", run, copy, "--figure", tmp_path / "f.png")
    assert seen.status == 0, seen.err
    assert "[bold] :fire: $x_1$" in seen.out
    assert "[red]" in seen.out


# ── 6: a failure late in the output ──────────────────────────────────────────────────────────────────────────────────


def test_a_console_of_few_signs_and_a_backend_that_is_not_there_cost_nothing(tmp_path, inputs):
    run = tmp_path / "run"
    seen = dpo_lab_process("train", *inputs, *QUICK, "--max-steps", 1, "--run", run,
                           env={"PYTHONIOENCODING": "ascii", "MPLBACKEND": "no_such_backend"})  # fmt: skip
    assert seen.status == 0, seen.err
    assert "KL from the reference:" in seen.out
    assert (run / "report.html").is_file()


def test_a_path_that_is_no_text_is_refused_before_training(tmp_path, inputs):
    run = os.fsencode(tmp_path) + b"/run-\xff"
    command = [sys.executable, "-m", "dpo_lab", "train", *inputs, *ONE_STEP, "--run", run]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)
    assert done.returncode == 2
    assert "is not UTF-8" in done.stderr
    assert not os.path.exists(run)


def test_a_report_that_fails_leaves_the_model_and_can_be_made_again(capsys, tmp_path, inputs, monkeypatch):
    def broken(run: Run) -> Path:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_report", broken)
        seen = dpo_lab(capsys, "train", *inputs, *ONE_STEP, "--run", tmp_path / "run")
    assert seen.status == 0, seen.err
    assert "the report could not be written" in seen.message
    assert f"dpo-lab report {tmp_path / 'run'} writes the report again" in seen.message
    assert f"model: {tmp_path / 'run' / 'model'}" in " ".join(seen.out.split())
    assert not (tmp_path / "run" / "report.html").exists()
    assert dpo_lab(capsys, "report", tmp_path / "run").status == 0
    assert "</html>" in (tmp_path / "run" / "report.html").read_text()


# ── 7: SIGTERM ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_is_a_first_ctrl_c(tmp_path, inputs):
    run = tmp_path / "run"
    child = started("train", *inputs, *QUICK, "--run", str(run), "--epochs", "400")
    until(lambda: (run / "config.json").exists() and sum(row["kind"] == "step" for row in Run.load(run).metrics) > 2)
    child.terminate()
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "stopping after this step" in err
    assert f"--run {run} --resume" in out
    assert latest_checkpoint(run / "checkpoints") is not None
    assert (run / "report.html").is_file()


def test_sigterm_before_the_first_step_leaves_no_run(tmp_path, inputs):
    slow = "import time, dpo_lab.workbench.cli.train as t\nt.training_data = lambda *_: time.sleep(60)"
    child = started("train", *inputs, *QUICK, "--run", str(tmp_path / "run"), before=slow)
    until(lambda: (tmp_path / "run" / "config.json").exists())
    time.sleep(0.5)
    child.terminate()
    child.communicate(timeout=60)
    assert child.returncode == 130
    assert not (tmp_path / "run").exists()


def test_a_long_run_writes_checkpoints_by_the_clock(tmp_path):
    numbers = {}
    for minutes in (0.0, 1e-9):
        config = DPOConfig(batch_size=4, device="cpu", epochs=2, checkpoint_minutes=minutes, log_every=3)
        events = list(train_dpo(model := tiny_llama(), None, random_pairs(8), config,
                                checkpoints=tmp_path / str(minutes)))  # fmt: skip
        steps = [event.step for event in events if isinstance(event, Checkpoint)]
        numbers[minutes] = (steps, torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    assert numbers[0.0][0] == [4]
    assert numbers[1e-9][0] == [1, 2, 3, 4]
    assert torch.equal(numbers[0.0][1], numbers[1e-9][1])
    assert DPOConfig().checkpoint_minutes == 10


@pytest.mark.skipif(os.name != "posix", reason="a process becomes another one on POSIX alone")
def test_the_lab_is_its_server_so_that_ending_it_ends_the_server(monkeypatch):
    from dpo_lab.workbench.cli import lab

    became = []
    monkeypatch.setattr(lab, "lab_command", lambda options: ["jupyter", "lab"])
    monkeypatch.setattr(os, "execve", lambda *what: became.append(what[:2]))
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: 0)
    lab.lab(LabOptions())
    assert became == [("jupyter", ["jupyter", "lab"])]


# ── 9: text outside HTML ─────────────────────────────────────────────────────────────────────────────────────────────


def test_formulas_are_text_in_tables(tmp_path):
    row = {"run": '=HYPERLINK("http://x")', "loss": -0.5, "name": "@SUM(A1)", "note": "+1", "plain": "a = b", "=x": 1}
    assert compare.csv_text([row]).splitlines()[0].endswith(",plain,'=x")
    assert compare.csv_text([row]).splitlines()[1] == '"\'=HYPERLINK(""http://x"")",-0.5,\'@SUM(A1),\'+1,a = b,1'


def test_answers_steer_no_terminal(capsys, tmp_path, monkeypatch):
    from dpo_lab.workbench.cli import models

    monkeypatch.setattr(models, "generate", lambda *_, **__: ["\x1b]0;mine\x07\x1b[2J"])
    seen = dpo_lab(capsys, "sample", "--model", chat_model(tmp_path / "model"), "hello \x1b[31m", "--device", "cpu")
    assert "\x1b" not in seen.out
    assert "␛]0;mine" in seen.out


# ── 10: whatever a row does to a parser is that row's fault ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_number_of_thousands_of_digits_costs_its_row_at_most(tmp_path, name):
    path, good, digits = tmp_path / name, some_rows(3), "7" * 5000
    lines = [json.dumps(row) for row in good]
    odd = ['{"prompt": "p", "chosen": "a", "rejected": "b", "score": ' + digits + "}",
           '{"prompt": ' + digits + ', "chosen": "a", "rejected": "b"}']  # fmt: skip
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
        import pyarrow as pa
        import pyarrow.parquet as pq

        kind = pa.json_() if hasattr(pa, "json_") else pytest.skip("this pyarrow has no JSON type")
        columns = {field: [row[field] for row in good] + [field] for field in ("prompt", "chosen", "rejected")}
        stored = pa.array([None] * 3 + [digits], pa.string())
        pq.write_table(pa.table(columns | {"extra": pa.ExtensionArray.from_storage(kind, stored)}), path)
        rows, _ = read_preferences(path)
        assert len(rows) == 4
        return
    path.write_text("[" + ",".join([*lines, *odd]) + "]" if name.endswith("json") else "\n".join([*lines, *odd]))
    rows, report = read_preferences(path, on_bad_row="skip")
    assert len(rows) == 4
    assert "field 'prompt' must be text" in report.summary(None)


# ── 11: smaller ones ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spoilt", [
    {"settings": [1]}, {"command": 7}, {"data": "x"}, {"settings": {"learning_rate": "fast"}},
    {"settings": {"cache": 5}}, {"settings": {"epochs": True}},
])  # fmt: skip
def test_wrong_types_in_a_runs_settings_are_named(capsys, tmp_path, spoilt):
    run = tmp_path / "run"
    Run.create(run, {"command": "train", "settings": {"model": "embedded"}})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | spoilt))
    seen = dpo_lab(capsys, "train", "--run", run, "--resume")
    assert seen.status == 2
    assert "is damaged" in seen.message


@pytest.mark.parametrize("place", [("x", "1"), ("0", "two"), ("-1", "1"), ("2", "2"), ("0", "0")])
def test_odd_words_of_a_launcher_are_named(capsys, monkeypatch, place):
    monkeypatch.setenv("RANK", place[0])
    monkeypatch.setenv("WORLD_SIZE", place[1])
    seen = dpo_lab(capsys, "losses")
    assert seen.status == 2
    assert f"RANK is {place[0]!r} and WORLD_SIZE is {place[1]!r}" in seen.message


def test_a_panic_of_the_tokenizer_is_a_message(tmp_path, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value")

    folder = chat_model(tmp_path / "model")
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", panic)
    with pytest.raises(ValueError, match=r"the tokenizer in .* is damaged .*unwrap.*copy it again"):
        load_policy(folder, device="cpu")


def test_a_record_that_is_no_file_is_named_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is no regular file"):
        read_lines(tmp_path / "metrics.jsonl")


def test_zeros_of_a_power_cut_are_not_taken_for_an_empty_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\0" * 4096)
    with pytest.raises(ValueError, match="holds zeros in place of lines, as after a power cut"):
        read_lines(path)
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind"' + b"\0" * 4096)
    assert read_lines(path).rows == [{"kind": "step", "step": 1}]


def test_a_kill_while_the_model_is_saved_leaves_a_run_that_goes_on(capsys, tmp_path, inputs):
    run = tmp_path / "run"
    die = (
        "import os, signal, shutil, transformers as t\n"
        "t.PreTrainedTokenizerBase.save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = started("train", *inputs, *ONE_STEP, "--run", str(run), before=die)
    child.communicate(timeout=90)
    assert child.returncode == -signal.SIGKILL
    assert Run.load(run).summary()["is_complete"] is False
    assert not (run / "model").exists()  # nothing that a push would upload
    report = Run.load(run).write_report().read_text()
    assert f"--run {run} --resume" in report
    assert dpo_lab(capsys, "train", "--run", run, "--resume").status == 0
    assert Run.load(run).summary()["is_complete"] is True
    assert not list(run.rglob("*.partial"))
    load_policy(run / "model", device="cpu")


def test_a_step_that_breaks_the_weights_is_not_saved(tmp_path, monkeypatch):
    step = torch.optim.SGD.step

    def broken(self: torch.optim.SGD, *given: object) -> None:
        step(self, *given)  # pyright: ignore
        self.param_groups[0]["params"][0].data[0] = float("inf")

    monkeypatch.setattr(torch.optim.SGD, "step", broken)
    for every in (1, None):  # before a checkpoint on the way, and at the end
        config = DPOConfig(batch_size=4, device="cpu", max_steps=1 + (every or 0), optimizer="sgd", learning_rate=0.1,
                           checkpoint_every=every, log_every=5)  # fmt: skip
        with pytest.raises(TrainingDiverged, match=r"weights are no longer numbers after step 1; lower learning_rate"):
            list(train_dpo(tiny_llama(), None, random_pairs(8), config, checkpoints=tmp_path))
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="learning_rate must be positive and at most 1e9, got 1e\\+38"):
        DPOConfig(learning_rate=1e38)


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_seed_is_a_whole_number_of_32_bits(capsys, seed):
    for make in (DPOConfig, SFTConfig):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 to 2\\^32 − 1"):
            make(seed=seed)
    for command in ("sample", "demo", "evaluate"):
        seen = dpo_lab(capsys, command, "--seed", seed)
        assert seen.status == 2
        assert "a seed is a whole number from 0 to 2^32" in seen.message or "must be a whole number" in seen.message


def test_a_model_of_a_thousand_million_layers_is_not_built(tmp_path):
    folder = chat_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match=r"says num_hidden_layers = 1000000000, and no model has more than 10,000"):
        load_policy(folder, device="cpu")


def test_a_template_that_does_not_end_is_refused(monkeypatch):
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr("dpo_lab.models.checks.TEMPLATE_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"the chat template of it goes on for more than 0\.3 seconds"):
        check_template(bpe(template=loops + CHATML, eos="<|im_end|>"), "it")
    assert time.monotonic() - began < 20
    check_template(bpe(template=CHATML, eos="<|im_end|>"), "it")
    check_template(bpe(template="{{ raise_exception('no') }}"), "it")  # it may want other turns
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_public_repository_is_noticed(tmp_path, monkeypatch):
    from dpo_lab.workbench.runs import publishing

    uploads = []
    hub = SimpleNamespace(
        create_repo=lambda name, **_: name, upload_folder=lambda **what: uploads.append(what),
        repo_info=lambda name, **_: SimpleNamespace(private=name == "me/hidden"),
    )  # fmt: skip
    monkeypatch.setattr(publishing, "check_push", lambda name: None)
    publishing.push_to_hub(tmp_path, "me/hidden", hub=hub)
    with pytest.raises(OSError, match="it was there before and is public: everybody would see the model"):
        publishing.push_to_hub(tmp_path, "me/shown", hub=hub)
    assert len(uploads) == 1


def test_the_end_is_recorded_once_its_reader_goes_on(tmp_path):
    run = Run.create(tmp_path / "run", {"command": "train"})
    config = DPOConfig(batch_size=4, device="cpu", max_steps=1)
    stream = run.follow(train_dpo(tiny_llama(), None, random_pairs(4), config))
    while not isinstance(next(stream), Finished):
        pass
    assert run.summary()["is_complete"] is False
    assert list(stream) == []
    assert run.summary()["is_complete"] is True


# ── found in a second round ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_saved_over_another_leaves_none_of_its_files(tmp_path):
    folder, tokenizer = tmp_path / "model", bpe(template=CHATML, eos="<|im_end|>")
    save_policy(tiny_llama(400, seed=1), tokenizer, folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "notes.txt").write_text("mine")
    plain, wanted = bpe(eos="<|im_end|>"), tiny_llama(400, seed=2)
    save_policy(wanted, plain, folder)
    assert not {"chat_template.jinja", "additional_chat_templates", "model.safetensors.index.json", ".partial",
                "model-00001-of-00002.safetensors"} & {path.name for path in folder.iterdir()}  # fmt: skip
    loaded, _ = load_policy(folder, device="cpu")
    assert torch.equal(loaded.model.embed_tokens.weight, wanted.model.embed_tokens.weight)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "link").symlink_to(folder)
    assert save_policy(wanted, plain, tmp_path / "link").is_symlink()


def test_who_is_refused_removes_nothing(tmp_path):
    from dpo_lab.workbench.recipes import Recipe, carry_out

    stream = carry_out(Recipe(), tmp_path / "run")
    with Run.load(tmp_path / "run").held():
        with pytest.raises(OSError, match="is held by process"):
            next(stream)
        assert (tmp_path / "run" / "config.json").is_file()


def test_a_log_that_cannot_be_written_does_not_end_a_training(capsys, tmp_path, inputs, monkeypatch):
    from dpo_lab.workbench.cli.terminal import SafeConsole

    printed = SafeConsole.print

    def full(self: SafeConsole, *what: object, **how: object) -> None:
        if str(what[:1]).startswith(("('step", "('held-out")):
            raise OSError(errno.ENOSPC, "No space left on device")
        printed(self, *what, **how)  # pyright: ignore

    monkeypatch.setattr(SafeConsole, "print", full)
    seen = dpo_lab(capsys, "train", *inputs, *QUICK, "--max-steps", 2, "--run", tmp_path / "run")
    assert seen.status == 0, seen.err
    assert Run.load(tmp_path / "run").summary()["is_complete"] is True


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without SIGHUP")
def test_a_terminal_that_is_closed_stops_as_sigterm_does(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert endings() == [signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        assert endings() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_same_token_ids_under_another_key_are_the_same(capsys, tmp_path, inputs, monkeypatch):
    own = (*ONE_STEP, "--tokens", str(tmp_path / "tokens"))
    assert dpo_lab(capsys, "train", *inputs, *own, "--run", tmp_path / "a").status == 0
    monkeypatch.chdir(tmp_path)
    here = tuple("pairs.jsonl" if word.endswith("pairs.jsonl") else word for word in inputs)
    seen = dpo_lab(capsys, "train", *here, *own, "--on-bad-row", "skip", "--run", tmp_path / "b")
    assert seen.status == 0, seen.err
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    seen = dpo_lab(capsys, "train", *inputs, *ONE_STEP, "--tokens", tmp_path / "link", "--run", tmp_path / "c")
    assert seen.status == 0, seen.err
    assert len(TokenData.load(tmp_path / "real")) == 24


def test_a_reader_that_stops_at_the_end_ends_the_run_where_its_model_is_saved(tmp_path):
    config = DPOConfig(batch_size=4, device="cpu", max_steps=1)
    for name in ("saved", "unsaved"):
        run = Run.create(tmp_path / name, {"command": "train"})
        stream = run.follow(train_dpo(tiny_llama(), None, random_pairs(4), config))
        for event in stream:
            if isinstance(event, Finished):
                if name == "saved":
                    run.model_folder.mkdir()
                break
        stream.close()
        assert run.summary()["is_complete"] is (name == "saved")


def test_a_disk_without_locks_is_named_and_trained_on(tmp_path, monkeypatch, caplog):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.FileLock, "acquire", none)
    run = Run.create(tmp_path / "run", {"command": "train"})
    assert "lies on a disk without locks" in caplog.text
    assert (run.folder / "config.json").is_file()


def test_a_row_that_json_cannot_hold_is_named_when_it_is_converted(capsys, tmp_path):
    lines = [json.dumps(row) for row in some_rows(2)]
    lines += ['{"prompt": "p", "chosen": "a", "rejected": "b", "score": ' + "7" * 5000 + "}"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    own = ("convert", tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    seen = dpo_lab(capsys, *own)
    assert seen.status == 2
    assert "cannot be written as JSON" in seen.message
    assert dpo_lab(capsys, *own, "--on-bad-row", "skip").status == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_an_odd_cell_of_a_parquet_file_costs_its_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {field: [row[field] for row in some_rows(3)] for field in ("prompt", "chosen", "rejected")}
    columns["when"] = pa.array([0, 2**31 - 1, 0], pa.date32())
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows, report = read_preferences(tmp_path / "rows.parquet", on_bad_row="skip")
    assert len(rows) == 2
    assert "holds a value that can't be read" in report.summary(None)


def test_a_home_that_nobody_has_is_a_path(capsys, tmp_path):
    for words in (("--model", "~nobody-here/x"), ("--pairs", "~nobody-here/x.jsonl")):
        seen = dpo_lab(capsys, "evaluate", "--reference", "embedded", *words)
        assert seen.status == 2
        assert "~nobody-here/x" in seen.message


@pytest.mark.parametrize("line", [
    '{"kind": "step", "step": 1, "loss": null}', '{"kind": "step", "step": 1, "loss": [1]}',
    '{"kind": "step", "step": 1, "loss": "abc"}', '{"kind": "finished", "step": 1}',
    '{"kind": "step", "step": 1, "loss": ' + "9" * 400 + "}",
])  # fmt: skip
def test_a_damaged_record_is_named_with_its_line(tmp_path, line):
    run = Run.create(tmp_path / "run", {"command": "train"})
    (run.folder / "metrics.jsonl").write_text('{"kind": "step", "step": 0, "loss": 0.7}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 (holds|must have)"):
        run.write_report()


def test_names_from_files_steer_no_terminal_through_the_log(capsys, tmp_path):
    folder = chat_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"x\x1b[2J": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    seen = dpo_lab_process("sample", "--model", folder, "hello", "--device", "cpu", "--max-new-tokens", "2")
    assert seen.status == 0, seen.err
    assert "holds weights that its config.json has no use for" in seen.err
    assert "\x1b" not in seen.err


def test_a_cache_called_as_sqlites_memory_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ReferenceCache(":memory:"):
        assert (tmp_path / ":memory:").is_file()
