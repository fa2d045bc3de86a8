"""The built site as readers meet it, on a phone and on a wide window, in light and in dark. `make site` comes first.

DPO_LAB_PICTURES names a folder in which to keep a picture of each page.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dpo_lab.workbench.doctor import CAUSES, diagnose
from tests.browser.lab import WAIT
from tests.conftest import ROOT
from tests.doctor_logs import FOLDER as LOGS

BUILT = ROOT / "build" / "site"
STANDARDS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
PHONE, WIDE = 390, 1280  # CSS pixels
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]*.ipynb"))
PAGES = ["index", "try_it", "doctor", "run_it", "glossary", "README", "data/README", "reference/index",
         "reference/losses", "dpo_lab/README", "dpo_lab/workbench/README", "notebooks/README",
         *(f"notebooks/{name}" for name in CHAPTERS)]  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    """Serves the folder and writes nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if not (BUILT / "index.html").is_file():
        pytest.skip("the site is not built; make site builds it")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(BUILT)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Reader:
    """A window on the site that notes whatever a reader should never meet."""

    def __init__(self, browser: Browser, address: str, width: int, scheme: Any) -> None:
        self.address, self.alarms = address, list[str]()
        self.context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.alarms.append(f"an error: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("response", self._on_response)

    def open(self, name: str) -> Page:
        """The page, with its formulas set and its figures drawn."""
        self.page.goto(f"{self.address}/{name}.html", wait_until="load")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('.math')].every(one => one.querySelector('mjx-container'))"
        )
        return self.page

    def close(self) -> None:
        self.context.close()

    def _on_console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.alarms.append(f"the console: {message.text}")

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.alarms.append(f"a request to {request.url}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400:
            self.alarms.append(f"{response.status} for {response.url}")


@pytest.fixture(params=[(PHONE, "light"), (WIDE, "dark")], ids=["phone-light", "wide-dark"])
def reader(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Reader]:
    reader = Reader(browser, address, *request.param)
    yield reader
    reader.close()
    assert not reader.alarms


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Reader]:
    reader = Reader(browser, address, PHONE, "dark")
    yield reader
    reader.close()
    assert not reader.alarms


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(reader: Reader, name: str, request: pytest.FixtureRequest, tmp_path: Path):
    page = reader.open(name)
    width = page.evaluate("innerWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
    assert page.locator("mjx-merror, .merror").count() == 0
    assert page.locator(".bd-article h1").count() == 1
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background[4:-1].split(",")[:3]) > 3 * 128
    assert light == request.node.callspec.id.startswith("phone-light")
    if kept := os.environ.get("DPO_LAB_PICTURES"):
        page.screenshot(path=Path(kept) / f"site-{name.replace('/', '-')}-{width}.png")


@pytest.mark.parametrize("name", ["index", "try_it", "doctor", "glossary", "README", "dpo_lab/workbench/README",
                                  "reference/losses", "notebooks/README", "notebooks/03_loss_and_gradient",
                                  "notebooks/13_applications"])  # fmt: skip
def test_a_page_has_no_barrier_that_axe_knows(reader: Reader, name: str):
    axe = pytest.importorskip("axe_playwright_python", reason="the test extra brings axe-core along")
    page = reader.open(name)
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {preload: false, runOnly: " + json.dumps(STANDARDS) + "})")
    seen = [f"{one['id']}: {one['help']}: {node['html'][:160]}" for one in found["violations"] for node in one["nodes"]]
    assert seen == []


def test_every_slider_answers_to_the_keyboard(phone: Reader):
    page = phone.open("try_it")
    figures = page.locator(".moving")
    assert figures.count() >= 9
    for i in range(figures.count()):
        figure = figures.nth(i)
        noted = figure.locator(".noted")
        for slider in figure.locator("input[type=range]").all():
            assert page.locator(f"label[for='{slider.get_attribute('id')}']").inner_text()
            slider.focus()
            before, said, drawn = slider.input_value(), noted.inner_text(), figure.locator(".panels").inner_html()
            page.keyboard.press("ArrowRight" if int(before) < int(slider.get_attribute("max") or 0) else "ArrowLeft")
            assert abs(int(slider.input_value()) - int(before)) == 1
            assert noted.inner_text() != said
            assert figure.locator(".panels").inner_html() != drawn
            spoken = slider.get_attribute("aria-valuetext")
            assert spoken == slider.locator("xpath=following-sibling::output").inner_text()
            page.keyboard.press("End")
            assert slider.input_value() == slider.get_attribute("max")
        for menu in figure.locator("select").all():
            drawn = figure.locator(".panels").inner_html()
            menu.focus()
            page.keyboard.press("ArrowDown" if menu.input_value() == "0" else "ArrowUp")
            page.wait_for_function("([one, was]) => one.innerHTML !== was",
                                   arg=[figure.locator(".panels").element_handle(), drawn])  # fmt: skip


def test_what_is_drawn_is_what_python_computed(phone: Reader):
    sys.path.insert(0, str(ROOT / "site"))
    figures = importlib.import_module("figures")
    sys.path.remove(str(ROOT / "site"))
    page = phone.open("try_it")
    for name, (make, _) in figures.FIGURES.items():
        figure = json.loads(json.dumps(make().as_json()))
        root = page.locator(f"#figure-{name}-frame")
        assert json.loads(root.locator("script").inner_text() or root.locator("script").text_content() or "") == figure
    loss = page.locator("#figure-loss-frame")
    assert loss.locator(".point").first.get_attribute("data-y") == str(round(float(figures.loss_at(-8.0, 0.1)), 5))
    curve = [float(value) for value in (loss.locator("polyline").first.get_attribute("data-y") or "").split()]
    assert curve == pytest.approx(figures.loss_at(figures.GAPS, 0.1).tolist(), rel=1e-5)


def test_the_doctor_of_the_page_finds_what_python_finds(phone: Reader):
    """All logs but TensorBoard's, which are not text."""
    page = phone.open("doctor")
    logs = [path for path in sorted(LOGS.iterdir()) if "events" not in path.name]
    assert len(logs) >= 30
    for path in logs:
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        found = page.evaluate(
            "files => doctor.diagnose(doctor.read(files))", {file.name: file.read_text() for file in files}
        )
        assert found == [[one.cause, one.level, one.sureness, one.seen] for one in diagnose(path).findings], path.name


def test_a_log_that_is_chosen_is_read_and_one_that_is_none_is_refused(phone: Reader):
    page = phone.open("doctor")
    found = page.locator("#doctor-findings")
    page.get_by_label("Choose the files of a run").set_input_files([*(LOGS / "margins-ours").iterdir()])
    found.locator("h3").first.wait_for()
    assert found.locator("h3").first.inner_text().startswith(CAUSES["margins"].title)
    assert found.get_by_role("link", name="Chapter 10 shows it.").count()
    page.get_by_label("Choose the files of a run").set_input_files(LOGS / "healthy-trl-windows.csv")
    page.get_by_text("Nothing is wrong in what this log shows.").wait_for()
    page.get_by_label("Choose the files of a run").set_input_files(ROOT / "pyproject.toml")
    page.get_by_text("This cannot be read: none of the files is a log").wait_for()


def test_search_finds_a_term(reader: Reader):
    page = reader.page
    page.goto(f"{reader.address}/search.html?q=displacement")
    results = page.locator("#search-results ul.search li")
    results.first.wait_for()
    assert any("10. When DPO fails" in text for text in results.all_inner_texts())


def test_a_chapter_leads_to_its_neighbours_files_and_figures(reader: Reader):
    page = reader.open("notebooks/03_loss_and_gradient")
    hrefs = page.eval_on_selector_all("a", "all => all.map(one => one.getAttribute('href'))")
    assert "02b_what_follows.html" in hrefs
    assert "04_log_probabilities.html" in hrefs
    assert "../try_it.html#figure-loss" in hrefs
    assert sum("_downloads/" in (href or "") for href in hrefs) == 2
    solution = page.locator("details.hide").first
    assert not solution.locator(".highlight").first.is_visible()
    solution.locator("summary").click()
    assert solution.locator(".highlight").first.is_visible()


def test_without_scripts_a_picture_stands_for_each_figure(browser: Browser, address: str):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}/try_it.html")
    pictures = page.locator(".moving img")
    assert pictures.count() >= 9
    assert all(picture.get_attribute("alt") for picture in pictures.all())
    assert all(picture.evaluate("one => one.naturalWidth") > 300 for picture in pictures.all())
    context.close()
