"""JupyterLab as a learner has it, started for a test, and a page in which a cell of a notebook is run."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, expect

from dpo_lab.workbench.cli.lab import lab_environment

SLOWNESS = float(os.environ.get("DPO_LAB_SLOWNESS", "1"))
"""The limits on time are multiplied by it: they are meant for a machine that does nothing else."""

WAIT = 240_000.0
"""Milliseconds that something without a limit may take before a test gives up: starting, importing, training."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

WIDTH, HEIGHT = 1400, 1000  # of the window, in CSS pixels

_FLAGS = (
    "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip


class Lab:
    """A JupyterLab of its own on a free port: its notebooks, settings, caches and logs lie in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder / "home", secrets.token_hex(16)
        self.folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        places = {name: str(folder / name.lower()) for name in (
            "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "DPO_LAB_CACHE",
        )}  # fmt: skip
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={self.folder}",
            "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.url.rpartition(':')[2]}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}", *(["--allow-root"] if is_root() else []),
        ]  # fmt: skip
        self.log = folder / "lab.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=lab_environment() | places, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def ask(self, path: str, method: str = "GET") -> Any:
        """What the server's API answers."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def close_kernels(self) -> None:
        """Shut every kernel down, as the menu of JupyterLab does."""
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        """End the server and its kernels."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _wait(self) -> None:
        ends = time.monotonic() + WAIT / 1000
        while True:
            try:
                self.ask("status")
                return
            except (urllib.error.URLError, OSError) as error:
                if self.process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"JupyterLab did not start: {self.log.read_text()[-2000:]}") from error
                time.sleep(0.25)


class Sheet:
    """A notebook open in JupyterLab, in a browser window that belongs to it."""

    def __init__(self, lab: Lab, browser: Browser, name: str, pictures: Path) -> None:
        self.lab, self.name, self.pictures = lab, name, pictures
        self.alarms: list[str] = []  # dialogs and requests to elsewhere: there must be none
        self.context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.page.on("dialog", self._on_dialog)
        self.page.on("request", self._on_request)

    @property
    def folder(self) -> Path:
        """The folder in which the notebook's kernel runs."""
        return self.lab.folder

    def show(self, source: str) -> Locator:
        """Run the cell and return what it shows: a panel. An exception in the cell fails the test."""
        cell = nbformat.v4.new_code_cell(source)
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), self.folder / f"{self.name}.ipynb")
        # A workspace of its own, so that it doesn't open what another test has left open.
        self.page.goto(
            f"{self.lab.url}/lab/workspaces/{self.name}/tree/{self.name}.ipynb?token={self.lab.token}", timeout=WAIT
        )
        editor = self.page.locator(".jp-CodeCell .cm-content").first
        expect(editor).to_contain_text(source.splitlines()[-1], timeout=WAIT)
        # A cell that is run before its kernel is there is not run at all.
        expect(self.page.get_by_text(re.compile(r"\| Idle$"))).to_be_visible(timeout=WAIT)
        editor.click()
        self.page.keyboard.press("Shift+Enter")
        error = self.page.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)")
        panel = self.page.locator(".jp-OutputArea-output .widget-vbox").first
        expect(panel.or_(error).first).to_be_visible(timeout=WAIT)
        if error.count():
            raise AssertionError(error.inner_text())
        return panel

    def run(self, source: str) -> str:
        """Run one more cell, in the same kernel, and return what it prints."""
        cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        cell = cells.nth(cells.count() - 1)
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Shift+Enter")
        printed = cell.locator(".jp-OutputArea-output").first
        expect(printed).to_be_visible(timeout=WAIT)
        return printed.inner_text().strip()

    def shoot(self, panel: Locator, name: str, width: int = WIDTH) -> None:
        """A picture of the whole panel, for people to look at: in a window that is as high as it needs."""
        self.page.set_viewport_size({"width": width, "height": 3200})
        self.page.wait_for_timeout(300)
        panel.screenshot(path=self.pictures / f"{self.name}-{name}.png")
        self.page.set_viewport_size({"width": width, "height": HEIGHT})

    def close(self) -> None:
        """Close the window and the kernel."""
        self.context.close()
        self.lab.close_kernels()

    def _on_dialog(self, dialog: Any) -> None:
        self.alarms.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.lab.url, "blob:", "data:")):
            self.alarms.append(f"a request to {request.url}")


def new_browser(playwright: Any) -> Browser:
    """Chromium without a window. Where tests run as root it has no sandbox, for it starts with none there."""
    flags = [*_FLAGS, *(["--no-sandbox"] if is_root() else [])]
    return playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=WAIT)


def is_root() -> bool:
    """Whether this process may do everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def until(holds: Callable[[], Any], what: str, seconds: float = WAIT / 1000) -> Any:
    """Wait until `holds()` is true, and return it."""
    ends = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < ends, f"it did not come about: {what}"
        time.sleep(0.05)
    return found
