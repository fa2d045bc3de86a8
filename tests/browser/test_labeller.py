"""The labeller, by keyboard alone: five choices, one taken back, and the export read as preferences."""

from __future__ import annotations

from playwright.sync_api import Locator, expect

from dpo_lab.preferences import load_preferences
from dpo_lab.workbench.labels import LabelBook
from tests.browser.lab import WAIT, Sheet

CELL = """
from dpo_lab.workbench.widgets import Labeller
rows = [{{"prompt": f"Question {{i}}?", "answers": [f"Answer {{i}} of the first.", f"Answer {{i}} of the second."],
         "sources": ["first", "second"]}} for i in range({count})]
Labeller(rows, book="mine.book.jsonl", who="ann")
"""


def read(panel: Locator, name: str) -> str:
    return panel.get_by_role("group", name=name).locator("pre").inner_text()


def test_after_a_click_the_letters_label_and_leave_the_notebook_alone(sheet: Sheet):
    cell = CELL.format(count=4).replace("mine.book", "clicked.book")
    panel = sheet.show(cell.replace("Question {i}?", "Question {i}? {'Why? ' * 200 * i}"))  # each is higher
    cells, message = sheet.page.locator(".jp-Notebook .jp-Cell"), panel.get_by_role("status").nth(1)
    num_cells, left = cells.count(), panel.get_by_role("button", name="Left is better")
    for plain in (panel.get_by_text("0 of 4 done"), panel.get_by_text("Left", exact=True), panel.locator("pre").nth(1)):
        plain.click()
        sheet.page.keyboard.press("a")
        assert cells.count() == num_cells, plain
    stood = left.bounding_box()
    left.click()
    expect(message).to_have_text("Question 1: left, saved.", timeout=WAIT)
    sheet.page.wait_for_timeout(400)
    sheet.page.keyboard.press("a")
    expect(message).to_have_text("Question 2: left, saved.", timeout=WAIT)
    panel.get_by_role("group", name="Left").locator("pre").click()
    sheet.page.keyboard.press("a")  # in an answer it labels nothing, and inserts no cell
    sheet.page.wait_for_timeout(400)
    assert cells.count() == num_cells
    assert left.bounding_box() == stood  # under the mouse still, however long the texts are


def test_five_pairs_are_labelled_with_the_keyboard_one_undone_and_the_export_read_back(sheet: Sheet):
    panel = sheet.show(CELL.format(count=6))
    page = sheet.page
    message = panel.get_by_role("status").nth(1)
    expect(panel.get_by_role("group", name="Question 1 of 6")).to_be_visible(timeout=WAIT)
    sheet.shoot(panel, "1-begin")
    key = panel.get_by_label("key", exact=True)
    key.focus()
    chosen: dict[str, tuple[str, str]] = {}

    def press(letter: str, number: int, told: str) -> None:
        expect(panel.get_by_role("group", name=f"Question {number} of 6")).to_be_visible(timeout=WAIT)
        left, right = read(panel, "Left"), read(panel, "Right")
        chosen[read(panel, f"Question {number} of 6")] = (left, right) if letter == "a" else (right, left)
        page.wait_for_timeout(400)  # a key that comes sooner than a person can read is not taken
        page.keyboard.press(letter)
        expect(message).to_have_text(f"Question {number}: {told}, saved.", timeout=WAIT)
        expect(key).to_have_value("", timeout=WAIT)
        expect(key).to_be_focused()

    for number, letter in enumerate("abbab", start=1):
        press(letter, number, {"a": "left", "b": "right"}[letter])
    undone = panel.get_by_role("group", name="Question 6 of 6")
    expect(undone).to_be_visible(timeout=WAIT)
    page.wait_for_timeout(400)
    page.keyboard.press("u")
    expect(message).to_have_text("Question 5: right taken back.", timeout=WAIT)
    press("a", 5, "left")
    sheet.shoot(panel, "2-five-labelled")

    # From the field for letters on to the button that exports, without the mouse.
    for _ in range(8):  # past the prompt and both answers
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Export":
            break
    page.keyboard.press("Enter")
    expect(message).to_contain_text("load_preferences(", timeout=WAIT)
    path = sheet.folder / "mine.labels.jsonl"
    found = {row["prompt"]: (row["chosen"], row["rejected"]) for row in load_preferences(str(path))}
    assert found == chosen
    assert len(found) == 5

    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Show results":
            break
    page.keyboard.press("Enter")
    expect(panel.locator("table")).to_contain_text("first", timeout=WAIT)
    sheet.shoot(panel, "3-results")

    sheet.lab.close_kernels()
    assert LabelBook.open(sheet.folder / "mine.book.jsonl").counts["open"] == 1
