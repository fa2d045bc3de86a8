"""`dpo-lab lab`: the course in JupyterLab, on this machine only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from dpo_lab.workbench.cli.options import LabOptions


def lab(options: LabOptions) -> int:
    """Start JupyterLab on the loopback address, at the map of the course."""
    command, environment = lab_command(options), lab_environment()
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
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / "notebooks" / "README.md").is_file():
        raise ValueError(
            "the notebooks are not part of the installed package; get the source of DPO Lab and run `make lab` there"
        )
    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed; run `make lab`, or pip install 'dpo-lab[course]'")
    command = [
        sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={checkout}", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={options.port}",
        "--LabApp.default_url=/lab/tree/notebooks/README.md",
    ]  # fmt: skip
    return command if options.browser else [*command, "--no-browser"]
