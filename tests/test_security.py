"""What SECURITY.md promises: nothing loaded runs code, names stay in their folder, text stays text, the lab is ours."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dpo_lab.preferences import TokenData, load_preferences
from dpo_lab.reference import ReferenceCache
from dpo_lab.workbench.cli import parse
from dpo_lab.workbench.doctor.findings import Diagnosis, Finding
from dpo_lab.workbench.doctor.page import diagnosis_page
from dpo_lab.workbench.doctor.reading import Log
from tests.audit import audit
from tests.command_line import chat_model, dpo_lab, some_rows, write_rows
from tests.conftest import ROOT

SOURCES = [*(ROOT / "dpo_lab").rglob("*.py"), *(ROOT / "data").rglob("*.py")]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the package and the data's scripts: where, the name that is called, and the call."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def given(call: ast.Call, name: str) -> str | None:
    """The source of a keyword argument."""
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


# ── code ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_unpickled_unpacked_or_evaluated():
    forbidden = re.compile(r"(pickle|marshal|shelve|dill|joblib|cloudpickle)\.(loads?|Unpickler|open)|(builtins\.)?"
                           r"(eval|exec|compile|__import__)|os\.(system|popen)|yaml\.(load|unsafe_load|full_load)|"
                           r"(.*\.)?(extractall|unpack_archive)|(tarfile|zipfile)\..*|pandas\.read_pickle")  # fmt: skip
    found = [f"{place} {name}" for place, name, _ in calls() if forbidden.fullmatch(name)]
    assert not found
    shells = [place for place, _, call in calls() if given(call, "shell") not in (None, "False")]
    assert not shells


def test_what_could_unpickle_is_told_not_to():
    rules = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False"),
             "AutoModelForCausalLM.from_pretrained": ("use_safetensors", "True")}  # fmt: skip
    seen = set()
    for place, name, call in calls():
        if name in rules:
            seen.add(name)
            argument, value = rules[name]
            assert given(call, argument) == value, f"{place}: {name} without {argument}={value}"
    assert seen == rules.keys()


def test_remote_code_is_off_unless_it_is_asked_for():
    from dpo_lab import load_policy
    from dpo_lab.workbench.cli.options import COMMANDS

    assert inspect.signature(load_policy).parameters["trust_remote_code"].default is False
    defaults = {name: kind.__dataclass_fields__["trust_remote_code"].default for name, kind in COMMANDS.items()
                if "trust_remote_code" in kind.__dataclass_fields__}  # fmt: skip
    assert {"train", "sft", "cache", "evaluate", "sample", "sweep"} <= defaults.keys()
    assert not any(defaults.values())
    assert not [place for place, _, call in calls() if given(call, "trust_remote_code") == "True"]


@pytest.fixture
def shelf(tmp_path: Path) -> tuple[Path, Path]:
    return chat_model(tmp_path / "model"), write_rows(tmp_path / "pairs.jsonl", some_rows(6))


def test_a_run_folder_or_a_sweep_alone_cannot_allow_remote_code(capsys, tmp_path, shelf):
    model, pairs = shelf
    for command, option, name in (("train", "--run", "config.json"), ("sweep", "--study", "sweep.json")):
        folder = tmp_path / command
        folder.mkdir()
        settings = {"model": str(model), "pairs": str(pairs), "trust_remote_code": True}
        settings |= {"beta": "0.1,0.2"} if command == "sweep" else {}
        kept = settings if command == "sweep" else {"command": "train", "settings": settings}
        (folder / name).write_text(json.dumps(kept))
        told = dpo_lab(capsys, command, option, folder, *(("--resume",) if command == "train" else ()))
        assert told.status == 2
        assert "which a file alone can't allow; read that code, then say --trust-remote-code again" in told.message


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["owner/..", "../secret", "owner/a..b", "owner/name:..", "a/../b", "-/.."])
def test_a_hub_id_cannot_lead_upwards(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; give a file or folder"):
        load_preferences(name)


def test_token_data_reads_its_own_files_whatever_its_manifest_names(tmp_path):
    TokenData.from_rows([([1], ([2], [3]))]).save(tmp_path / "tokens")
    (tmp_path / "secret.npy").write_bytes(b"secret")
    path = tmp_path / "tokens" / "token_data.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret.npy"] = manifest["files"].pop("ids.npy")
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"tokens/ids.npy should have None bytes, has \d+; delete .* and tokenise again"
    ):
        TokenData.load(tmp_path / "tokens")
    for content in ("[]", "{", '{"version": 1}', '{"version": 1, "files": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="is damaged: it is no manifest of token data; delete it"):
            TokenData.load(tmp_path / "tokens")


def test_a_model_in_several_files_cannot_name_one_that_lies_elsewhere(capsys, shelf):
    model, pairs = shelf
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../../secret.safetensors"}}))
    told = dpo_lab(capsys, "cache", "--model", model, "--pairs", pairs)
    assert told.status == 2
    assert "names '../../secret.safetensors', which lies outside of its folder; get the model again" in told.message
    index.write_text('{"weight_map": 7}')
    assert "index.json is damaged" in dpo_lab(capsys, "cache", "--model", model, "--pairs", pairs).message


def test_a_saved_data_set_cannot_name_a_file_that_lies_elsewhere(tmp_path):
    import datasets

    datasets.Dataset.from_list(some_rows(3)).save_to_disk(tmp_path / "saved")
    assert len(load_preferences(tmp_path / "saved")) == 3
    state = tmp_path / "saved" / "state.json"
    kept = json.loads(state.read_text())
    kept["_data_files"][0]["filename"] = "../../secret.arrow"
    state.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"names '../../secret.arrow', which lies outside of its folder"):
        load_preferences(tmp_path / "saved")


def test_a_file_of_the_user_s_is_never_set_aside_as_a_damaged_cache(tmp_path):
    for name, content in (("notes.txt", b"mine"), (".profile", b"export A=1\n"), ("model.safetensors", b"\x08\0\0")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(
            OSError,
            match=r"cannot be written \(it is another kind of file, file is not a database\); .* name another folder",
        ):
            ReferenceCache(path)
        assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 3


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

EVIL = ("<script>alert(1)</script><img src=x onerror=alert(2)></pre></code></td></textarea><svg onload=alert(3)>"
        "<a href='javascript:alert(4)'>a</a>\" onmouseover=\"alert(5)' onfocus='alert(6) &lt;script&gt;")  # fmt: skip
HARMLESS = {"class", "style", "role", "aria-live", "aria-label", "tabindex", "title", "dir", "scope", "download",
            "data-lm-suppress-shortcuts", "href", "open", "lang", "colspan"}  # fmt: skip


class Tags(HTMLParser):
    """The tags and attributes that a browser would make of a text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value or "" for name, value in attributes if name in ("href", "src")}


def check(html: str) -> None:
    found = Tags(html)
    assert not found.tags & {"script", "img", "svg", "iframe", "object", "embed", "form", "textarea", "base", "link"}
    assert found.attributes <= HARMLESS, found.attributes - HARMLESS
    assert all(link.startswith("data:text/csv") for link in found.links)


def test_the_check_itself_sees_what_would_run():
    for html in (EVIL, f'<p title="{EVIL}">', f"<p title='{EVIL}'>"):
        with pytest.raises(AssertionError):
            check(html)


def test_every_function_that_makes_html_escapes_what_it_is_given():
    from types import SimpleNamespace

    from dpo_lab.preferences import ReadReport, TokenReport
    from dpo_lab.preferences.inspection import Inspection, Part, ShownRow
    from dpo_lab.workbench.plots import new_figure, show, token_html
    from dpo_lab.workbench.runs import page
    from dpo_lab.workbench.runs.report import render_report
    from dpo_lab.workbench.widgets import markup
    from dpo_lab.workbench.widgets.inspector import token_table
    from dpo_lab.workbench.widgets.sweep import _titled

    parts = [Part("prompt", [EVIL]), Part("scored", [EVIL]), Part("cut", [EVIL])]
    report, shown = ReadReport(EVIL, notes=[EVIL]), ShownRow(EVIL, {EVIL: parts})
    answer = SimpleNamespace(tokens=[EVIL, EVIL], rewards=np.zeros(2), logps=np.zeros(2), reference_logps=np.zeros(2))
    made = [
        markup.line(EVIL), markup.line(EVIL, is_error=True), markup.notes([EVIL]), markup.block(EVIL * 20),
        markup.code(EVIL, EVIL), markup.table(EVIL, [{EVIL: EVIL, "b": [EVIL]}]),
        markup.table(EVIL, [{EVIL: EVIL}], upright=True), markup.answers(EVIL, {EVIL: (EVIL, 0.5), "b": (None, None)}),
        markup.download(EVIL, EVIL, EVIL), page.text(EVIL), page.text({EVIL: [EVIL]}), page.folded(EVIL),
        page.folded(EVIL * 20), page.table(EVIL, [EVIL, EVIL], []), page.terms({EVIL: ""}), page.code(EVIL),
        markup.text_box(EVIL, EVIL), Inspection(report, TokenReport(9, end_tokens=[EVIL]), [shown])._repr_html_(),
        token_html(SimpleNamespace(chosen=answer, rejected=answer, prompt_text=EVIL)), token_table(answer, EVIL),
        _titled(EVIL, EVIL),
    ]  # fmt: skip
    for html in made:
        check(html)
        assert "alert(1)" in html, "what was given is not shown"
    picture = Tags(page.picture(b"", EVIL, EVIL))
    assert (picture.tags, picture.attributes) == ({"figure", "img", "figcaption"}, {"src", "alt"})
    config = {"command": "train", "settings": {"model": EVIL, EVIL: EVIL}, EVIL: EVIL}
    samples = [{"prompt": EVIL, "before": EVIL, "after": EVIL, "chosen": EVIL, EVIL: EVIL}]
    rows = [{"kind": "step", "step": 1, "loss": 0.5, EVIL: 1.0, "seconds": 1.0}]
    here = Path()  # a folder that is there, as the model's
    run = SimpleNamespace(folder=EVIL, config=config, metrics=rows, margins={}, samples=samples, model_folder=here,
                          checkpoints=here)  # fmt: skip
    report = render_report(run, panels={})
    check(report.partition("<body>")[2])
    assert "default-src 'none'" in report.partition("<body>")[0]
    log = Log(EVIL, EVIL, {EVIL: (np.arange(3), np.ones(3))}, {}, (EVIL,))  # nothing to draw
    diagnosis = Diagnosis(log, (Finding("not_finite", "problem", "certain", EVIL),), (EVIL,), (EVIL,))
    check(diagnosis_page(diagnosis).partition("<body>")[2])
    assert Tags(shown_text(show(new_figure(3, 2), EVIL * 2, EVIL * 2))).tags == {"details", "summary"}


def shown_text(shown) -> str:
    """The Markdown that a figure puts under itself."""
    import IPython.display

    given: list[dict[str, str]] = []
    display, IPython.display.display = IPython.display.display, lambda data, **_: given.append(data)
    try:
        shown._ipython_display_()
    finally:
        IPython.display.display = display
    return given[-1]["text/markdown"]


def test_no_other_module_makes_html():
    known = {"workbench/plots/captions.py", "workbench/plots/token_rewards.py", "workbench/runs/page.py",
             "workbench/runs/report.py", "workbench/widgets/inspector.py", "workbench/widgets/markup.py",
             "workbench/widgets/sweep.py", "workbench/doctor/page.py", "preferences/inspection.py",
             "course/exercises/quizzes.py"}  # fmt: skip
    tag = re.compile(r"<(?:/?[a-z][a-z0-9]*)(?: [a-z-]+=|>)")
    found = set()
    for path in (ROOT / "dpo_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):  # only what is put together can hold what came from elsewhere
                words = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                if tag.search(words):
                    found.add(str(path.relative_to(ROOT / "dpo_lab")))
    assert found <= known, f"{found - known}: escape what is put in, and add it to the functions tested above"


# ── the libraries underneath ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_known_hole_fails_the_check_and_a_missing_tool_or_network_is_said(tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==2.13.0\n")
    tool = lambda code: audit(pins, [sys.executable, "-c", f"import sys; print(sys.argv[1:]); {code}"])
    assert tool("pass") == (0, "no known hole in the pinned versions")
    status, told = tool("print('torch 2.13.0 PYSEC-1'); sys.exit(1)")
    assert status == 1
    assert "torch 2.13.0 PYSEC-1" in told
    assert str(pins) in told
    assert tool("sys.exit('requests.exceptions.ConnectionError: no route')")[0] == 2
    assert audit(pins, [sys.executable, "-m", "no_such_tool"]) == (
        2, "pip-audit is not installed (make audit installs it)",
    )  # fmt: skip


# ── the lab ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_real_lab_listens_on_the_loopback_alone_and_asks_for_its_token(tmp_path):
    pytest.importorskip("jupyterlab")
    from dpo_lab.workbench.cli.lab import lab_command, lab_environment
    from dpo_lab.workbench.cli.options import LabOptions

    options = parse(["lab", "--port", "18899", "--no-browser"])
    assert isinstance(options, LabOptions)
    environment = lab_environment() | {"JUPYTER_RUNTIME_DIR": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    server = subprocess.Popen(lab_command(options) + ["--allow-root"] * (sys.platform == "linux"), env=environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert server.stderr is not None
        address = None
        for line in server.stderr:
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab\S*\?token=([0-9a-f]+)", line):
                address, token = found.groups()
                break
        assert address is not None, "it told no address"
        until = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/api/contents", timeout=5)
        assert refused.value.code == 403
        refused.value.close()
        urllib.request.urlopen(f"{address}/api/contents?token={token}", timeout=5).close()
        port = int(address.rpartition(":")[2])
        tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
        entries = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
        listening = {entry[1] for entry in entries if entry[3] == "0A"}
        assert {entry for entry in listening if entry.endswith(f":{port:04X}")} <= {f"0100007F:{port:04X}"}
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()
