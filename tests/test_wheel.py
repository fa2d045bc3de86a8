"""The built wheel, installed alone elsewhere, trains on the model and data that it brings, and opens the course."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=inherited | environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the files that git tracks."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: what belongs to the project is known from git")
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "-z", "--cached", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    # Where the build's own tool is installed, no network is needed; else `build` fetches it.
    isolation = ["--no-isolation"] if find_spec("hatchling") else []
    run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", dist, source, cwd=dist)
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel; for what the wheel depends on, it looks into the environment of the tests."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    # A plain path, not `site.addsitedir`: an editable install of the checkout in there must not take effect.
    (packages / "the_others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def test_the_wheel_holds_package_model_and_data_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dpo_lab"}
    for needed in (
        "dpo_lab/__init__.py",
        "dpo_lab/workbench/runs/page.css",
        "dpo_lab/_data/models/pocket-sft/model.safetensors",
        "dpo_lab/_data/models/pocket-sft/tokenizer.json",
        "dpo_lab/_data/pairs/train.jsonl.gz",
        "dpo_lab/_data/pairs/test.jsonl.gz",
        "dpo_lab/_course/notebooks/README.md",
        "dpo_lab/_course/notebooks/student/README.md",
    ):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "test_" in name or name.endswith(".pyc")]
    notebooks = {name.removeprefix("dpo_lab/_course/") for name in names if name.endswith(".ipynb")}
    assert notebooks == {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").glob("**/[0-9]*.ipynb")}
    assert wheel.stat().st_size < 20e6


def test_the_installed_wheel_is_what_runs(elsewhere, tmp_path):
    code = (
        "import dpo_lab; from dpo_lab.storage.embedded import embedded_path as at; print(dpo_lab.__file__); print(at())"
    )
    places = run(elsewhere / "bin" / "python", "-c", code, cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(elsewhere) for place in places), places
    script = (elsewhere / "bin" / "dpo-lab").read_text()
    assert script.startswith(f"#!{elsewhere / 'bin' / 'python'}"), script


def test_it_trains_from_an_empty_folder(elsewhere, tmp_path):
    told = run(
        elsewhere / "bin" / "dpo-lab", "train", "--max-steps", 3, "--samples", 0, "--kl-prompts", 0,
        "--run", "runs/first", cwd=tmp_path, DPO_LAB_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert "step 3/3" in told
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "cache"}
    assert (tmp_path / "runs" / "first" / "model" / "model.safetensors").is_file()
    answer = run(
        elsewhere / "bin" / "dpo-lab", "sample", "hello", "--model", "runs/first/model", "--max-new-tokens", 8,
        cwd=tmp_path,
    )  # fmt: skip
    assert "→" in answer


def test_it_writes_its_notebooks_for_nbgrader(elsewhere, tmp_path):
    pytest.importorskip("nbformat")
    run(elsewhere / "bin" / "python", "-m", "dpo_lab.course.exercises.quizzes", "graded", cwd=tmp_path)
    written = sorted(path.name for path in tmp_path.glob("graded/*/*.ipynb"))
    assert written == sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_it_opens_a_copy_of_the_course_and_writes_nothing_beside_itself(elsewhere, tmp_path):
    pytest.importorskip("jupyterlab")
    (config := tmp_path / "config").mkdir()
    (config / "jupyter_server_config.json").write_text('{"ServerApp": {"allow_root": true}}')
    (packages,) = elsewhere.glob("lib/python*/site-packages")
    installed = lambda: {
        (path, path.stat().st_mtime_ns) for path in packages.rglob("*") if "__pycache__" not in str(path)
    }
    before = installed()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(
        [elsewhere / "bin" / "dpo-lab", "lab", "--folder", "mine", "--port", "18897", "--no-browser"], cwd=tmp_path,
        env=inherited | {"JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        try:
            told = iter(server.stderr or ())
            found = next(filter(None, (re.search(r"(http://\S+)/lab(\S*)\?token=(\w+)", line) for line in told)))
            address, page, token = found.groups()
            assert page == "/tree/notebooks/student/README.md"
            contents = f"{address}/api/contents{page.removeprefix('/tree')}?content=0&token={token}"
            until = time.monotonic() + 60
            while True:
                try:
                    assert b'"README.md"' in urllib.request.urlopen(contents, timeout=30).read()
                    break
                except OSError:  # it names its address before it answers there
                    assert time.monotonic() < until
                    time.sleep(0.2)
        finally:
            server.terminate()
    assert installed() == before
    assert (tmp_path / "mine" / "notebooks" / "student" / "00_quickstart.ipynb").is_file()
    # The copy has a folder dpo_lab, for reading; what runs there is the package.
    place = run(elsewhere / "bin" / "python", "-c", "import dpo_lab; print(dpo_lab.__file__)", cwd=tmp_path / "mine")
    assert Path(place.strip()).is_relative_to(elsewhere)
