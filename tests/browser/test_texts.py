"""Texts of data, models and settings in the page: every panel shows them as text, and nothing in them runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import WAIT, Lab, Sheet
from tests.command_line import chat_model, some_rows, write_rows

SHORT = (
    "<script>window.hasRun = 1</script><img src=x onerror='window.hasRun = 2'> $\\frac{a}{b}$ \\(x^2\\) $$y$$ "
    "</pre></textarea><svg onload='window.hasRun = 3'></svg><a href='javascript:window.hasRun = 4'>a</a> &lt;b&gt;"
)
LONG = f"{SHORT} {'x' * 10_000}"

LABELLER = """
from dpo_lab.workbench.widgets import Labeller
Labeller("hostile.jsonl", book="hostile.book.jsonl", who={who!r})
"""
INSPECTOR = """
from dpo_lab.workbench.widgets import Inspector
Inspector({{{who!r}: "other"}}, "hostile.jsonl", reference="model", max_length=256)
"""
COCKPIT = """
import ipywidgets
from dpo_lab.config import DPOConfig
from dpo_lab.workbench.widgets import Cockpit, Comparer
config = DPOConfig(batch_size=4, epochs=1, evaluate_every=2, max_length=256)
cockpit = Cockpit("hostile_runs", model="model", pairs="hostile.jsonl", limit=None, samples=2, max_new_tokens=4,
                  config=config)
cockpit.train()
cockpit.wait(240)
ipywidgets.VBox([cockpit, Comparer("hostile_runs")])
"""
ARENA = """
from dpo_lab.workbench.widgets import Arena
arena = Arena({{"one": "model", {who!r}: "other"}}, "hostile.jsonl", book="arena.book.jsonl", who={who!r},
              num_prompts=4, max_new_tokens=4)
arena.start()
arena.wait(240)
arena
"""


@pytest.fixture(scope="module", autouse=True)
def _files(lab: Lab) -> None:
    """Two tiny models, and pairs of which every text is hostile."""
    for seed, name in enumerate(("model", "other")):
        chat_model(lab.folder / name, seed=seed)
    added = {"prompt": LONG, "chosen": SHORT, "rejected": SHORT}  # at the end: what is cut off there is the same text
    rows = [{name: f"{text} {added[name]}" for name, text in row.items()} for row in some_rows(24)]
    write_rows(lab.folder / "hostile.jsonl", rows)


def check(page: Page, panel: Locator) -> None:
    """Nothing ran, nothing was made of the markup, no formula was set."""
    page.wait_for_timeout(1500)  # for a picture that is not there to fail, and for formulas to be set
    assert page.evaluate("window.hasRun === undefined")
    made = "script, svg[onload], a[href^=javascript], img:not([src^=blob]):not([src^=data]), mjx-container, .MathJax"
    assert panel.locator(made).count() == 0


def text_of(panel: Locator) -> str:
    return panel.evaluate("panel => panel.textContent")


def test_a_page_that_runs_them_would_be_noticed(sheet: Sheet):
    """The alarm itself: as markup, the same text does run."""
    page = sheet.page
    page.goto("about:blank")
    page.evaluate("text => { document.body.innerHTML = text; }", SHORT)
    page.wait_for_function("() => window.hasRun !== undefined", timeout=WAIT)
    with pytest.raises(AssertionError):
        check(page, page.locator("body"))
    sheet.alarms.clear()


def test_labeller(sheet: Sheet):
    panel = sheet.show(LABELLER.format(who=SHORT))
    expect(panel.get_by_role("group", name="Question 1 of 24")).to_be_visible(timeout=WAIT)
    check(sheet.page, panel)
    text = text_of(panel)
    assert LONG in text
    assert text.count(SHORT) >= 4  # prompt, both answers, the name of who labels
    panel.get_by_role("button", name="Left is better").click()
    expect(panel.get_by_role("group", name="Question 2 of 24")).to_be_visible(timeout=WAIT)
    panel.get_by_role("button", name="Show results").click()
    expect(panel.locator("table")).to_be_visible(timeout=WAIT)
    check(sheet.page, panel)
    sheet.shoot(panel, "hostile")


def test_arena(sheet: Sheet):
    panel = sheet.show(ARENA.format(who=SHORT))
    expect(panel.get_by_role("button", name="Left is better")).to_be_visible(timeout=WAIT)
    panel.get_by_role("button", name="Left is better").click()
    expect(panel.get_by_text("left, saved")).to_be_visible(timeout=WAIT)
    panel.get_by_role("button", name="Show results").click()
    expect(panel.locator("table")).to_be_visible(timeout=WAIT)
    check(sheet.page, panel)
    assert LONG in text_of(panel)
    sheet.shoot(panel, "hostile")


def test_inspector(sheet: Sheet):
    panel = sheet.show(INSPECTOR.format(who=SHORT))
    expect(panel.get_by_role("status").filter(has_text="Margin")).to_be_visible(timeout=WAIT)
    for number in range(2):
        if number:
            panel.get_by_role("button", name="Next").click()
        check(sheet.page, panel)
        assert LONG in text_of(panel)
    sheet.shoot(panel, "hostile")


def test_cockpit_comparer_and_report(sheet: Sheet):
    panel = sheet.show(COCKPIT)
    expect(panel.get_by_text("run-01: complete").first).to_be_visible(timeout=WAIT)
    for summary in panel.locator("summary").all():
        summary.click()
    check(sheet.page, panel)
    assert text_of(panel).count(LONG) >= 2  # in the cockpit and in the comparer
    sheet.shoot(panel, "hostile")
    report: Path = sheet.folder / "hostile_runs" / "run-01" / "report.html"
    page = sheet.context.new_page()
    page.goto(report.as_uri(), timeout=WAIT)
    check(page, page.locator("body"))
    assert LONG in text_of(page.locator("body"))
    page.screenshot(path=sheet.pictures / "report-hostile.png")
