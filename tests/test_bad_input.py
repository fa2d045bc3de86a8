"""What a user can get wrong, through the command line: status 2, one message with the value, the rule and the remedy.

Messages of single rooms are tested with those rooms; here stands what reaches the terminal.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest
import torch

from dpo_lab.workbench.runs import Run
from tests.command_line import QUICK, chat_model, dpo_lab, some_rows, write_rows
from tests.conftest import tiny_llama
from tests.faults import full_disk
from tests.small_tokenizers import CHATML, bpe
from tests.tiny import saved_model, tiny_tokenizer

GOOD = some_rows(6)
ROW = json.dumps(GOOD[0])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with a good model, good pairs, and a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("shelf")
    chat_model(folder / "model")
    write_rows(folder / "pairs.jsonl", GOOD)
    arguments = ("train", "--model", folder / "model", "--pairs", folder / "pairs.jsonl", *QUICK, "--max-steps", 1)
    from dpo_lab.workbench.cli import main

    assert main([str(argument) for argument in (*arguments, "--run", folder / "run")]) == 0
    return folder


@pytest.fixture
def refuse(capsys, monkeypatch, tmp_path, shelf):
    """Call `dpo-lab` in an empty folder, and see that the message holds every piece and nothing is left behind.

    SHELF in an argument stands for the shelf. `train` and others get the good model and pairs where none are named.
    """
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(command: str, *arguments: object, say: tuple[str, ...]) -> str:
        words = [str(argument).replace("SHELF", str(shelf)) for argument in arguments]
        takes = {"train": ("model", "pairs", "run"), "sft": ("model", "pairs", "run"), "cache": ("model", "pairs"),
                 "evaluate": ("model", "pairs", "reference"), "sample": ("model",)}.get(command, ())  # fmt: skip
        good = {"model": shelf / "model", "pairs": shelf / "pairs.jsonl", "reference": shelf / "model", "run": "new"}
        for name in takes:
            if f"--{name}" not in words:
                words += [f"--{name}", str(good[name])]
        before = {path for path in tmp_path.rglob("*") if path.name != "cache"}
        told = dpo_lab(capsys, command, *words)
        assert told.status == 2, told
        assert "Traceback" not in told.err
        for piece in say:
            assert piece in told.message, told.message
        left = {path.relative_to(tmp_path) for path in set(tmp_path.rglob("*")) - before}
        assert not {path for path in left if path.parts[0] == "new"}, "a mistake leaves no run behind"
        return told.message

    return call


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

DATA = {
    "malformed JSON": (
        "a.jsonl", f'{ROW}\n{ROW}\n{{"prompt": oops}}\n'.encode(),
        ("a.jsonl, line 3: is not JSON: Expecting value at column 12", "write one JSON object per line"),
    ),
    "a line that is no object": ("a.jsonl", f"{ROW}\n[1, 2]\n".encode(), ("line 2: must be an object", "got [1, 2]")),
    "malformed JSON list": ("a.json", b'[{"prompt": 1},\n{]', ("a.json, line 2: is not JSON", "list of objects")),
    "missing field": (
        "a.jsonl", b'{"prompt": "a", "chosen": "b"}\n',
        ("a.jsonl, line 1: field 'rejected' is missing; the row has prompt, chosen", "add 'rejected'"),
    ),
    "no known field": ("a.jsonl", b'{"text": "a"}\n', ("fits no layout, its fields are text", "known are: prompt, ")),
    "empty completion": (
        "a.jsonl", f'{ROW}\n{{"prompt": "a", "chosen": "", "rejected": "b"}}\n'.encode(),
        ("line 2: field 'chosen' must not be empty, got ''", "write the answer, or leave the row out"),
    ),
    "wrong type": (
        "a.jsonl", b'{"prompt": "a", "chosen": 3, "rejected": "b"}\n',
        ("line 1: field 'chosen' must be text or a list of messages, got 3", 'write it as text, "3"'),
    ),
    "unknown role": (
        "a.jsonl", b'{"prompt": [{"role": "boss", "content": "a"}], "chosen": "b", "rejected": "c"}\n',
        ("field 'prompt[0]' has the unknown role 'boss'", "use one of system, user, assistant, tool"),
    ),
    "half a surrogate pair": (
        "a.jsonl", b'{"prompt": "a \\ud800", "chosen": "b", "rejected": "c"}\n',
        ("field 'prompt' has half of a surrogate pair", "write the whole character"),
    ),
    "negative weight": (
        "a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}\n',
        ("field 'weight' must be a finite number and not negative, got -1", "1 counts a row once"),
    ),
    "unpaired": (
        "a.jsonl", b'{"prompt": "a", "completion": "b", "label": true}\n',
        ("field 'label' marks single answers as good or bad", "--loss kto", "join a good and a bad answer of each"),
    ),
    "not UTF-8": (
        "a.jsonl", f"{ROW}\n".encode() + b'{"prompt": "caf\xe9"}\n',
        ("a.jsonl, line 2: is not UTF-8: byte 0xe9 at offset 15 of the line", "save the file as UTF-8"),
    ),
    "UTF-16": ("a.jsonl", f"{ROW}\n".encode("utf-16"), ("begins with a UTF-16 byte order mark", "save the file as")),
    "truncated gzip": (
        "a.jsonl.gz", gzip.compress(os.urandom(1) + f"{ROW}\n".encode() * 50)[:60],
        ("a.jsonl.gz", "copy or download it again"),
    ),
    "no gzip": ("a.jsonl.gz", f"{ROW}\n".encode(), ("is not a sound gzip file", "take .gz off the name")),
    "unknown ending": ("a.xlsx", b"PK", ("a.xlsx has a file kind that is not read", "use one of .jsonl, .json")),
    "no parquet": ("a.parquet", b"PAR1 nonsense", ("is not a sound parquet file", "copy or download it again")),
    "empty file": ("a.jsonl", b"", ("a.jsonl is empty", "it should hold rows of preferences")),
    "empty list": ("a.json", b"[]", ("a.json holds no rows", "each row needs a prompt and answers")),
    "ragged csv": (
        "a.csv", b"prompt,chosen,rejected\na,b,c,d\n",
        ("a.csv, line 2: has 4 cells under a header of 3", "quote texts that hold commas"),
    ),
    "nothing but ties": (
        "a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
        ("holds no usable row among 1", "chosen = rejected states no preference: 1 (line 1)"),
    ),
    "one prompt": (
        "a.jsonl", f"{ROW}\n".encode() * 2,
        ("2 rows with 1 distinct prompt(s) cannot be split", "hold nothing out with --validation 0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_data_that_cannot_be_used(refuse, tmp_path, kind):
    name, content, say = DATA[kind]
    (tmp_path / name).write_bytes(content)
    refuse("train", "--pairs", name, say=say)


def test_data_that_is_not_there(refuse, tmp_path):
    refuse("train", "--pairs", "nowhere.jsonl", say=("nowhere.jsonl does not exist", f"relative to {tmp_path}", "Hub"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    refuse("train", "--pairs", "empty", say=("empty holds no data file (.jsonl", "it holds notes.txt"))
    refuse("train", "--held-out", "gone.jsonl", say=("gone.jsonl does not exist", "give a file or folder"))
    refuse("cache", "--split", "dev", say=("split 'dev' is not in pairs.jsonl: it has no column 'split'", "leave"))
    refuse("train", "--held-out-split", "test", say=("held_out_split is 'test' without --held-out", "name the source"))
    refuse("train", "--pairs", "owner/no-such-data", say=("owner/no-such-data is not", "check the path, go online"))


def test_data_that_may_not_be_read(refuse, tmp_path, monkeypatch):
    """Root may read everything, so the refusal is staged where the file is opened."""
    path = write_rows(tmp_path / "secret.jsonl", GOOD)
    real_open = type(path).open

    def refuse_open(self, *args, **kw):
        if self.name == "secret.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return real_open(self, *args, **kw)

    monkeypatch.setattr(type(path), "open", refuse_open)
    refuse("train", "--pairs", path, say=("no permission to read", "secret.jsonl", "change its mode or read a copy"))


def test_pairs_that_do_not_fit_the_length(refuse, tmp_path):
    write_rows(tmp_path / "a.jsonl", [row | {"system": "be brief " * 9} for row in GOOD])
    say = ("tokens that must be kept", "no room within max_length = 16", "raise max_length, or shorten the system turn")
    refuse("train", "--pairs", "a.jsonl", "--max-length", 16, say=say)


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = {
    ("--loss", "dop"): ("loss is not known, got 'dop'", "choose one of dpo, cdpo"),
    ("--beta", "0"): ("beta must be positive and finite, got 0.0", "0.1 is the usual start"),
    ("--beta", "-1"): ("beta must be positive and finite, got -1.0",),
    ("--beta", "nan"): ("beta must be positive and finite, got nan",),
    ("--beta", "much"): ("Error parsing --beta", "'much'"),
    ("--loss", "cdpo", "--label-smoothing", "0.5"): ("label_smoothing must lie in [0, 0.5), got 0.5", "0.1 is a usual"),
    ("--label-smoothing", "0.1"): ("the loss dpo has no knob 'label_smoothing', got label_smoothing=0.1", "its knobs"),
    ("--knobs", "gamma", "1"): ("the loss dpo has no knob 'gamma', got gamma=1.0", "its knobs are beta (0.5)"),
    ("--loss", "hinge", "--divergence", "js", "--knobs", "x", "1"): ("hinge has no knob 'x'",),
    ("--loss", "simpo", "--divergence", "js"): ("divergence must be reverse_kl for the loss simpo, got 'js'",),
    ("--learning-rate", "0"): ("learning_rate must be positive and at most 1e9, got 0.0", "1e-4 for small models"),
    ("--epochs", "0"): ("epochs must be positive, got 0.0", "1 to 3 are usual"),
    ("--max-steps", "0"): ("max_steps must be positive, got 0", "None leaves it to epochs"),
    ("--warmup", "2"): ("warmup is a share of the steps and must lie in [0, 1], got 2.0", "0.1 is usual"),
    ("--batch-size", "0"): ("batch_size must be at least 1, got 0", "16 or 32 is the usual start"),
    ("--max-length", "1"): ("max_length must be at least 2, got 1", "it counts prompt plus completion"),
    ("--max-grad-norm", "0"): ("max_grad_norm must be positive, got 0.0", "None does not clip"),
    ("--optimizer", "lion"): ("invalid choice 'lion' for argument '--optimizer'", "'adamw'"),
    ("--precision", "float16", "--device", "cpu"): ("precision float16 needs a GPU", "use bfloat16 or float32"),
    ("--device", "gpu0"): ("device 'gpu0' cannot be used", "auto takes what is there"),
    ("--limit", "0"): ("limit must be at least 1, got 0", "None keeps all rows"),
    ("--validation", "1.5"): ("validation is a share and must lie in [0, 1), got 1.5", "0.1 is usual"),
    ("--samples", "-1"): ("samples must not be negative, got -1", "0 samples nothing"),
    ("--kl-prompts", "1"): ("kl_prompts must be 0 or at least 2, got 1", "64 is usual"),
    ("--max-new-tokens", "0"): ("max_new_tokens must be at least 1, got 0", "128 is the usual start"),
    ("--sample-temperature", "-1"): ("temperature must be finite and not negative, got -1.0", "0 is greedy"),
    ("--on-bad-row", "fix"): ("invalid choice 'fix' for argument '--on-bad-row'", "'raise', 'skip'"),
    ("--betta", "1"): ("Unrecognized options: --betta", "--beta"),
}


@pytest.mark.parametrize("arguments", SETTINGS, ids=" ".join)
def test_settings_out_of_range(refuse, arguments):
    refuse("train", *arguments, say=SETTINGS[arguments])


def test_a_loss_that_turns_into_no_number_stops_with_step_rows_and_what_to_try(refuse, shelf, tmp_path):
    model = tiny_llama(400)
    model.lm_head.weight.data *= 1e38
    wild = saved_model(tmp_path / "wild", model, bpe(template=CHATML))
    refuse("sample", "hi", "--model", wild, say=("probabilities that are no numbers", "look at its weights"))
    refuse("train", "--model", wild, "--samples", 0, say=("the reference gives log-probs", "weights are broken"))
    say = ("the loss is", "rows ", "Try a lower learning rate")
    refuse("train", "--run", "r", "--loss", "simpo", "--model", wild, "--samples", 0, "--device", "cpu", say=say)


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_that_are_none(refuse, shelf, tmp_path):
    refuse("train", "--model", "./nowhere", say=("no model folder at './nowhere'", "check the path"))
    refuse("train", "--model", "owner/no-such-model", say=("'owner/no-such-model' is no folder here", "go online once"))
    (tmp_path / "bare").mkdir()
    refuse(
        "sample", "hi", "--model", "bare", say=("bare is a folder but no model: config.json is missing", "RUN/model")
    )
    refuse("sample", "hi", "--model", "SHELF/pairs.jsonl", say=("is a file; a model is a folder with config.json",))


def test_models_that_are_damaged_or_could_run_code(refuse, shelf, tmp_path):
    pickled = shutil.copytree(shelf / "model", tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    refuse("train", "--model", pickled, say=("only pickled weights (pytorch_model.bin), which can run code", "convert"))

    cut = shutil.copytree(shelf / "model", tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refuse("train", "--model", cut, say=(f"the model in {cut} is damaged", "copy it again from where it came"))

    broken = shutil.copytree(shelf / "model", tmp_path / "broken")
    (broken / "config.json").write_text("{")
    refuse("train", "--model", broken, say=("is damaged", "copy it again"))


def test_tokenizers_that_do_not_fit(refuse, tmp_path):
    big = saved_model(tmp_path / "big", tiny_llama(64), bpe(template=CHATML))
    refuse("train", "--model", big, say=("does not fit its model: it gives ids up to 354, the model has 64", "use the"))
    endless = saved_model(tmp_path / "endless", tiny_llama(400), bpe(eos=None))
    refuse("train", "--model", endless, say=("has no end token", "set eos_token in its tokenizer_config.json"))


def test_a_reference_that_speaks_in_other_tokens(refuse, tmp_path):
    other = saved_model(tmp_path / "other", tiny_llama(64), tiny_tokenizer())
    say = ("has another tokenizer than", "give --reference the model that training began from")
    refuse("evaluate", "--reference", other, say=say)


def test_texts_longer_than_a_table_of_positions(refuse, capsys, tmp_path, shelf):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=400, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
    folder = saved_model(tmp_path / "gpt2", GPT2LMHeadModel(config), bpe(template=CHATML))
    say = ("tokens, and the model has 16 positions", "lower max_length to 16 or less")
    refuse("train", "--model", folder, say=say)
    refuse("cache", "--model", folder, say=say)
    refuse("sample", "the cat " * 40, "--model", folder, "--raw", say=say[:1])
    fits = ("--max-length", "16", "--max-steps", "1", *QUICK, "--max-new-tokens", "60")
    told = dpo_lab(capsys, "train", "--model", folder, "--pairs", shelf / "pairs.jsonl", *fits, "--run", "fits")
    assert told.status == 0, "prompts are shortened and answers end where the table ends"


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_folders_that_are_taken_or_cannot_be(refuse, shelf, tmp_path):
    refuse(
        "train", "--run", "SHELF/run", say=("already holds a run", "give another --run, or go on with it by --resume")
    )
    refuse("train", "--run", "SHELF", say=("is not empty and holds no run", "give --run a new or an empty folder"))
    refuse("train", "--run", "SHELF/pairs.jsonl/run", say=("cannot be written (Not a directory)", "choose another"))
    (tmp_path / "loop").symlink_to("loop")
    refuse("train", "--run", "loop/run", say=("loop/run cannot be written", "choose another folder with --run"))


def test_resuming_what_cannot_go_on(refuse, shelf, tmp_path):
    refuse("train", "--resume", "--run", "nothing", say=("there is no folder nothing", "give the folder of a run"))
    (tmp_path / "bare").mkdir()
    refuse("train", "--resume", "--run", "bare", say=("bare holds no run: config.json is missing", "--run"))
    refuse(
        "sft", "--resume", "--run", "SHELF/run", say=("was begun with 'train' and cannot go on with 'sft'", "another")
    )
    say = ("--beta is 0.3, but the run in", "was begun with None; leave it out to go on, or begin another run")
    refuse("train", "--resume", "--run", "SHELF/run", "--beta", 0.3, say=say)
    damaged = shutil.copytree(shelf / "run", tmp_path / "damaged")
    (damaged / "config.json").write_text("{")
    refuse("train", "--resume", "--run", damaged, say=("config.json is damaged", "restore it, or train again"))


def test_resuming_without_the_run_s_name(capsys):
    told = dpo_lab(capsys, "train", "--resume")
    assert (told.status, told.message) == (
        2, "dpo-lab: --resume needs --run: name the folder of the run to go on with",
    )  # fmt: skip


def test_resuming_on_data_that_has_changed(refuse, capsys, shelf, tmp_path):
    pairs = write_rows(tmp_path / "pairs.jsonl", GOOD)
    common = ("--model", shelf / "model", "--pairs", pairs, "--run", "r")
    assert dpo_lab(capsys, "train", *common, *QUICK, "--max-steps", 1).status == 0
    before = Run.load(tmp_path / "r").metrics
    write_rows(pairs, some_rows(7))
    say = ("belongs to another run: data was", "resume with the same settings and data")
    refuse("train", "--run", "r", "--pairs", pairs, "--resume", say=say)
    assert Run.load(tmp_path / "r").metrics == before, "what was recorded stays"


@pytest.mark.parametrize("room", [0, 100, 3000, 40_000, 120_000, 260_000])
def test_a_full_disk_is_told_wherever_it_strikes(capsys, monkeypatch, shelf, tmp_path, room):
    """From the first file to the last: every room is smaller than some file of a run."""
    monkeypatch.chdir(tmp_path)
    arguments = ("--model", shelf / "model", "--pairs", shelf / "pairs.jsonl", *QUICK, "--max-steps", 1)
    with full_disk(room):
        told = dpo_lab(capsys, "train", *arguments, "--run", "r", "--cache", tmp_path / "c")
    assert told.status == 2, told
    assert "free space or permissions" in told.message or "free space" in told.message
    assert "Traceback" not in told.err
    run = [] if (tmp_path / "r" / "config.json").exists() else arguments
    told = dpo_lab(capsys, "train", "--run", "r", "--cache", tmp_path / "c", *(run or ["--resume"]))
    assert told.status == 0, told
    assert Run.load(tmp_path / "r").summary()["is_complete"]


def test_a_cache_that_cannot_be_written(refuse, shelf, tmp_path):
    say = ("the reference cache", "cannot be", "--cache or DPO_LAB_CACHE")
    refuse("train", "--cache", "SHELF/pairs.jsonl/cache.sqlite", *QUICK, say=say)
    refuse("cache", "--cache", "/dev/null", say=say)


def test_tables_and_figures_that_cannot_be_written(refuse, shelf, tmp_path):
    refuse("evaluate", "--table", "t.xlsx", say=("t.xlsx must end in .csv or .jsonl", "the ending decides the format"))
    refuse("compare", "SHELF/run", "--csv", "t.txt", say=("t.txt must end in .csv or .jsonl",))
    refuse("compare", "SHELF/run", "--figure", "f.doc", say=("f.doc must end in .png or .pdf or .svg",))
    (tmp_path / "folder.csv").mkdir()
    refuse("evaluate", "--table", "folder.csv", say=("folder.csv cannot be written (it is a folder)", "name another"))
    refuse("compare", "SHELF/run", "--figure", "SHELF/pairs.jsonl/f.png", say=("cannot be written", "name another"))
    with full_disk(10):
        refuse("evaluate", "--table", "t.csv", "--kl-prompts", 0, say=("cannot be", "free space"))


def test_runs_that_cannot_be_compared(refuse):
    refuse("compare", say=("there are no runs to load", "name one, such as runs/NAME"))
    refuse("compare", "nowhere", say=("there is no folder nowhere", "give the folder of a run"))
    refuse("compare", "SHELF/model", say=("model holds no run: its config.json has no command", "given as --run"))


# ── sampling, the course ─────────────────────────────────────────────────────────────────────────────────────────────


def test_samples_that_cannot_be_drawn(refuse, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    refuse("sample", say=("nothing to answer", "give prompts as arguments, on standard input, or with --pairs"))
    refuse("sample", "hi", "--temperature", -1, say=("temperature must be finite and not negative, got -1.0", "greedy"))
    refuse("sample", "hi", "--top-p", 0, say=("top_p must lie in (0, 1], got 0.0", "1 keeps every token"))
    refuse("sample", "hi", "--num-samples", 0, say=("num_samples must be at least 1, got 0", "1 is the usual start"))
    refuse(
        "sample", "hi", "--num-samples", 2, "--temperature", 0, say=("num_samples must be 1 at temperature 0, got 2",)
    )
    refuse("sample", "--pairs", "SHELF/pairs.jsonl", "--limit", 0, say=("limit must be at least 1, got 0", "None"))


def test_the_course_without_its_notebooks_or_jupyter(refuse, monkeypatch, tmp_path):
    from dpo_lab.workbench.cli import lab

    monkeypatch.setattr(lab, "__file__", str(tmp_path / "dpo_lab" / "workbench" / "cli" / "lab.py"))
    refuse("lab", say=("the notebooks are missing beside the package and in it", "run `make lab` there"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "README.md").write_text("# The course\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse("lab", "--folder", "new", say=("JupyterLab is not installed", "pip install 'dpo-lab[course]'"))


def test_a_folder_that_is_no_copy_of_the_course(refuse, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for name in ("full", "full/thesis.txt"):
        refuse("lab", "--folder", name, say=(f"{name} holds no copy of the course and is not empty", "empty folder"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    (tmp_path / "full" / ".dpo-lab-course.json").write_text("[")
    refuse("lab", "--folder", "full", say=(".dpo-lab-course.json is damaged", "write {} into it", "another folder"))


def test_a_package_that_is_not_installed_and_memory_that_is_out(refuse, monkeypatch):
    from dpo_lab.workbench.cli import models

    def fail(error: Exception):
        def load(*_: object, **__: object):
            raise error

        return load

    monkeypatch.setattr(models, "load_policy", fail(ImportError("reading it needs `datasets`; pip install datasets")))
    refuse("sample", "hi", say=("needs `datasets`", "pip install"))
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried"),
        RuntimeError("can't allocate memory"),
    ):
        monkeypatch.setattr(models, "load_policy", fail(error))
        refuse("sample", "hi", say=("dpo-lab: out of memory", "lower --tokens-per-pass"))
    monkeypatch.setattr(models, "load_policy", fail(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):  # our own mistakes keep their traceback
        refuse("sample", "hi", say=())
