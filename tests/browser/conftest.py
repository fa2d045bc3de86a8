"""One JupyterLab and one Chromium for all tests of this folder; a window and a kernel for each test.

    pytest tests/browser --run-browser

The panels are used as people use them. DPO_LAB_PICTURES names a folder in which to keep a picture of each panel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.lab import CHROMIUM, Lab, Sheet, new_browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = new_browser(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture
def sheet(lab: Lab, browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sheet]:
    """A notebook for this test; at the end nothing must have asked for anything outside, or opened a dialog."""
    pictures = Path(os.environ.get("DPO_LAB_PICTURES") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    sheet = Sheet(lab, browser, re.sub(r"\W+", "_", request.node.name.removeprefix("test_"))[:40], pictures)
    yield sheet
    sheet.close()
    assert not sheet.alarms
