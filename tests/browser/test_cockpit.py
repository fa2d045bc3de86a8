"""The cockpit: Train shows how far it is, curves grow, Stop stops and leaves a run that can be used."""

from __future__ import annotations

import math
import re
from pathlib import Path

from playwright.sync_api import Locator, expect

from dpo_lab.models import load_policy
from dpo_lab.preferences import load_preferences
from dpo_lab.workbench.evaluation import evaluate
from dpo_lab.workbench.runs import Run
from tests.browser.lab import SLOWNESS, WAIT, Sheet, until

CELL = """
from dpo_lab.config import DPOConfig
from dpo_lab.workbench.widgets import Cockpit
config = DPOConfig(batch_size=4, epochs=50, evaluate_every=4, learning_rate=3e-4)
cockpit = Cockpit("{folder}", limit=48, samples=2, max_new_tokens=12, config=config)
cockpit
"""

RAISED = """
import threading
try:
    cockpit.wait(60)
except ValueError as error:
    print("ValueError, threads:", [thread.name for thread in threading.enumerate() if "dpo-lab" in thread.name])
"""

# What stands beside the bar, how long the bar is, and each new picture, as the page shows them one after another.
WATCH = """([panel, image]) => {
    const bar = panel.querySelector(".progress-bar");
    const words = bar.closest(".widget-hprogress").nextElementSibling;
    window.told = {words: [], widths: [], pictures: 0, clicked: null, stopped: null};
    new MutationObserver(() => {
        const told = window.told, now = panel.textContent;
        if (told.words.at(-1) !== words.textContent) told.words.push(words.textContent);
        if (told.widths.at(-1) !== bar.style.width) told.widths.push(bar.style.width);
        if (told.clicked !== null && told.stopped === null && /run-\\d+: stopped/.test(now))
            told.stopped = performance.now();
    }).observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
    let last = null;
    image.addEventListener("load", () => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 600, height: 400});
        canvas.getContext("2d").drawImage(image, 0, 0, 600, 400);
        const drawn = canvas.toDataURL();
        if (drawn !== last) window.told.pictures += 1;
        last = drawn;
    });
}"""


def button(panel: Locator, name: str) -> Locator:
    return panel.get_by_role("button", name=re.compile(f"{name}$"))  # an icon's letter comes before the name


def steps_told(words: list[str]) -> list[int]:
    return [int(found[1]) for text in words if (found := re.match(r"step (\d+) of \d+", text))]


def watch(sheet: Sheet, panel: Locator) -> None:
    sheet.page.evaluate(WATCH, [panel.element_handle(), panel.locator("img").element_handle()])


def told(sheet: Sheet) -> dict:
    return sheet.page.evaluate("window.told")


def test_train_stop_and_train_again(sheet: Sheet):
    panel = sheet.show(CELL.format(folder="cockpit_runs"))
    page = sheet.page
    train, stop = (button(panel, name) for name in ("Train", "Stop"))
    expect(train).to_be_enabled(timeout=WAIT)
    expect(stop).to_be_disabled()
    sheet.shoot(panel, "1-new")
    watch(sheet, panel)

    train.click()
    expect(train).to_be_disabled(timeout=WAIT)
    page.wait_for_function("() => window.told.pictures >= 4", timeout=WAIT)
    page.wait_for_function(
        "() => new Set(window.told.words.filter(text => /^step .* left/.test(text)).map(text => text.split(' ')[1]))"
        ".size >= 3",
        timeout=WAIT,
    )
    sheet.shoot(panel, "2-training")

    stop.evaluate("button => button.addEventListener('click', event => { window.told.clicked = event.timeStamp; })")
    stop.click()
    page.wait_for_function("() => window.told.stopped !== null", timeout=WAIT)
    seen = told(sheet)
    seconds = (seen["stopped"] - seen["clicked"]) / 1000
    print(f"from the click on Stop to the run kept: {seconds:.2f} s")
    expect(train).to_be_enabled(timeout=WAIT)
    expect(stop).to_be_disabled(timeout=WAIT)

    steps = steps_told(seen["words"])
    assert len(set(steps)) >= 3
    assert steps == sorted(steps)
    widths = [float(width.rstrip("%")) for width in seen["widths"] if width.endswith("%")]
    assert len(set(widths)) >= 3
    run = Run.load(sheet.folder / "cockpit_runs" / "run-01")
    summary = run.summary()
    assert not summary["is_complete"]
    assert 0 < max(steps) <= summary["step"] < summary["num_steps"]
    expect(panel).to_contain_text(f"stopped, {summary['step']} of {summary['num_steps']} steps")
    model, tokenizer = load_policy(run.model_folder, device="cpu")
    reference, _ = load_policy("embedded", device="cpu")
    rows = list(load_preferences("embedded", split="test"))[:4]
    margins = evaluate(model, tokenizer, rows, reference=reference).table["margin"]
    assert all(math.isfinite(margin) and margin for margin in margins)  # it moved away from where it began
    sheet.shoot(panel, "3-stopped")

    epochs = panel.get_by_label("epochs", exact=True)
    epochs.fill("0.75")
    epochs.press("Enter")
    pictures = seen["pictures"]
    train.click()
    expect(panel).to_contain_text(re.compile("run-02: complete"), timeout=WAIT)
    expect(train).to_be_enabled(timeout=WAIT)  # and its report is written
    second = Run.load(sheet.folder / "cockpit_runs" / "run-02")
    assert second.summary()["is_complete"]
    assert second.config["settings"]["epochs"] == 0.75
    until(lambda: told(sheet)["pictures"] > pictures, "the second run's curves")
    for name in ("run-01", "run-02"):
        expect(panel.get_by_label("runs shown")).to_contain_text(name)
        expect(panel.locator("details", has_text="The curves in words")).to_contain_text(name, timeout=WAIT)
    sheet.shoot(panel, "4-two-runs")
    assert seconds <= 2 * SLOWNESS, f"Stop took {seconds:.2f} s"


def test_it_fits_one_screen_of_a_laptop(sheet: Sheet):
    """1280 × 800, with the list of files open: knobs, curves and the answer are seen together, without scrolling."""
    panel = sheet.show(CELL.format(folder="small_screen").replace("cockpit\n", "cockpit.train()\ncockpit\n"))
    sheet.page.set_viewport_size({"width": 1280, "height": 800})
    expect(panel.get_by_text("true reward").first).to_be_visible(timeout=WAIT)
    button(panel, "Stop").click()
    expect(button(panel, "Train")).to_be_enabled(timeout=WAIT)
    panel.evaluate("panel => panel.scrollIntoView({block: 'start'})")
    parts = [panel.get_by_label("preset"), button(panel, "Train"), panel.locator("img"), panel.get_by_label("prompt"),
             panel.get_by_text("true reward").first, panel.get_by_label("runs shown")]  # fmt: skip
    for part in parts:
        box = part.bounding_box()
        assert box is not None
        assert box["y"] >= 80
        assert box["y"] + box["height"] <= 780, part
    sheet.page.screenshot(path=sheet.pictures / f"{sheet.name}-1280x800.png")


def test_a_bookmark_that_is_pasted_brings_the_knobs_back(sheet: Sheet):
    panel = sheet.show(CELL.format(folder="bookmarked"))
    panel.get_by_label("preset").select_option("noisy labels")
    panel.get_by_text("more", exact=True).click()
    place, command = panel.get_by_label("bookmark"), panel.locator("pre", has_text="dpo-lab train")
    expect(place).to_have_value(re.compile('"flip": 0.4'), timeout=WAIT)
    bookmark = place.input_value()
    panel.get_by_label("preset").select_option("as given")
    expect(place).not_to_have_value(re.compile("flip"), timeout=WAIT)
    place.fill(bookmark)
    place.press("Enter")
    until(lambda: "--flip 0.4" in command.evaluate("one => one.textContent"), "the command of the bookmark")


def test_a_click_while_cells_run_is_answered_at_once_or_says_that_it_waits(sheet: Sheet):
    panel = sheet.show(CELL.format(folder="busy_runs"))
    train = button(panel, "Train")
    cells = sheet.page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(cells.count() - 1).locator(".cm-content").click()
    sheet.page.keyboard.insert_text("import time\ntime.sleep(20)")
    sheet.page.keyboard.press("Shift+Enter")
    train.click()
    until(
        lambda: train.is_disabled() or "waiting" in train.evaluate("one => getComputedStyle(one, '::after').content"),
        "a sign of life", 15,
    )  # fmt: skip
    button(panel, "Stop").click(timeout=WAIT)


def test_a_kernel_closed_in_the_middle_of_a_training_loses_nothing_that_was_saved(sheet: Sheet):
    panel = sheet.show(CELL.format(folder="closed_runs"))
    watch(sheet, panel)
    button(panel, "Train").click()
    page, folder = sheet.page, sheet.folder / "closed_runs" / "run-01"
    page.wait_for_function("() => window.told.words.some(text => /^step /.test(text))", timeout=WAIT)
    until(lambda: len(rows_of(folder)) >= 6, "six rows in the run's folder")
    before = rows_of(folder)
    sheet.lab.close_kernels()
    after = rows_of(folder)
    assert after[: len(before)] == before
    run = Run.load(folder)
    assert run.summary()["step"] >= max(row["step"] for row in before)
    # The kernel leaves its training in order: the model stands there too.
    load_policy(run.model_folder, device="cpu")


def rows_of(folder: Path) -> list[dict]:
    return Run.load(folder).metrics if (folder / "metrics.jsonl").is_file() else []


def test_an_error_in_training_is_shown_in_the_panel_and_raised_by_wait(sheet: Sheet):
    cell = CELL.format(folder="broken_runs").replace(
        'Cockpit("broken_runs"', 'Cockpit("broken_runs", model="./<b>no</b>"'
    )
    panel = sheet.show(cell)
    button(panel, "Train").click()
    alert = panel.get_by_role("alert")
    expect(alert).to_contain_text("Error: ValueError: no model folder at './<b>no</b>'", timeout=WAIT)
    expect(button(panel, "Train")).to_be_enabled(timeout=WAIT)
    sheet.shoot(panel, "error")
    raised = sheet.run(RAISED)
    assert raised == "ValueError, threads: []"
