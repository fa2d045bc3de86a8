"""`dpo-lab lab`: the course in JupyterLab, on this machine only.

A checkout opens its own notebooks. An installed package brings the course along, and the reader works on a copy of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from dpo_lab.storage.embedded import embedded_path
from dpo_lab.storage.files import sha256_of_file, to_json, write_whole
from dpo_lab.workbench.cli.options import LabOptions

MANIFEST = ".dpo-lab-course.json"
"""In a reader's folder: the SHA-256 of every file of the course as it was last written there, by the file's name."""

STUDENT, SOLVED = "notebooks/student/README.md", "notebooks/README.md"
"""The map of the notebooks without solutions, and of those with them."""

_ELSEWHERE = "name another folder with --folder"


def lab(options: LabOptions) -> int:
    """Start JupyterLab on the loopback address, at the map of the course, in a checkout or in the reader's copy."""
    command, environment = lab_command(options), lab_environment()
    if (folder := readers_folder(options)) is not None:
        changed = copy_course(folder)
        print(f"the course is in {folder}")
        if changed:
            print(f"left as you changed them: {', '.join(changed)}; rename one, and the next call writes the course's")
        sys.stdout.flush()
    if os.name == "posix":  # this process becomes the server, so that whoever ends it ends the server
        os.execve(command[0], command, environment)
    return subprocess.call(command, env=environment)


def lab_environment() -> dict[str, str]:
    """This process's environment, with our defaults for JupyterLab: pages of text open rendered, no news is fetched.

    What the user has set in JupyterLab itself goes before.
    """
    paths = [str(Path(__file__).with_name("lab_settings")), os.environ.get("JUPYTER_CONFIG_PATH")]
    return os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(path for path in paths if path)}


def lab_command(options: LabOptions) -> list[str]:
    """The command line that starts it. Raises ValueError where the course or JupyterLab is not there."""
    files = course_files()
    if SOLVED not in files:
        raise ValueError("the notebooks are missing beside the package and in it; install a wheel of DPO Lab, or get "
                         "its source and run `make lab` there")  # fmt: skip
    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed; run `make lab`, or pip install 'dpo-lab[course]'")
    root = (readers_folder(options) or _package().parent).resolve()
    command = [
        sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={options.port}",
        f"--LabApp.default_url=/lab/tree/{STUDENT if STUDENT in files else SOLVED}",
        *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),  # as in a container
    ]  # fmt: skip
    return command if options.browser else [*command, "--no-browser"]


# ── a copy of one's own ──────────────────────────────────────────────────────────────────────────────────────────────


def readers_folder(options: LabOptions) -> Path | None:
    """The folder that the course is copied to, or None where a checkout's own notebooks are opened."""
    return options.folder or (Path("dpo-lab-course") if _installed_course().is_dir() else None)


def course_files() -> dict[str, Path]:
    """The course's files by their names in a checkout, which they keep in a reader's folder, so that links hold.

    The kernel's folder is that of a notebook, so the sources copied for reading are never those that it imports.
    """
    folders = ("notebooks", "notebooks/[a-z]*", "notebooks/[a-z]*/student")  # the versions, and the languages
    notebooks = (f"{folder}/{name}" for folder in folders for name in ("README.md", "[0-9]*.ipynb"))
    course = installed if (installed := _installed_course()).is_dir() else _package().parent
    places = (
        (course, "", ("README.md", "CONTRIBUTING.md", "SECURITY.md", *notebooks, "notebooks/quizzes/*.json")),
        (embedded_path(), "data/", ("README.md", *(f"results/*.{kind}" for kind in ("md", "txt", "png", "gif")))),
        (_package(), "dpo_lab/", ("README.md", "workbench/README.md", "[a-z]*.py", "storage/logp_store.py")),
    )
    return {
        f"{prefix}{path.relative_to(root).as_posix()}": path
        for root, prefix, patterns in places
        for pattern in patterns
        for path in sorted(root.glob(pattern))
    }


def copy_course(folder: Path) -> list[str]:
    """Write the course into a folder, and return the names of the files that the reader has changed: these stay.

    A file is renewed where it still has the SHA-256 in the manifest, and written again where it is missing.
    ValueError where the folder holds something else.
    """
    written = _manifest(folder)
    write_whole(folder / MANIFEST, to_json(written, indent=1), remedy=_ELSEWHERE)  # from now on the folder is known
    changed = []
    for name, source in course_files().items():
        path, data = folder / name, source.read_bytes()
        ours, theirs = hashlib.sha256(data).hexdigest(), sha256_of_file(path) if path.is_file() else None
        if theirs not in (None, ours, written.get(name)):
            changed.append(name)
            continue
        if theirs != ours:
            write_whole(path, data, remedy=_ELSEWHERE)
        written[name] = ours
    write_whole(folder / MANIFEST, to_json(written, indent=1), remedy=_ELSEWHERE)
    return changed


def _manifest(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} holds no copy of the course and is not empty; name a new or an empty folder "
                             "with --folder")  # fmt: skip
        return {}
    try:
        written = json.loads(path.read_bytes())
    except ValueError:
        written = None
    if not isinstance(written, dict):
        raise ValueError(f"{path} is damaged; write {{}} into it, and files that differ from this version of the "
                         f"course are left as they are, or {_ELSEWHERE}")  # fmt: skip
    return written


def _package() -> Path:
    return Path(__file__).resolve().parents[2]


def _installed_course() -> Path:
    return _package() / "_course"
