"""Every panel in the page, in a wide and in a narrow window: no label is cut off, nothing stands beyond the edge."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.lab import HEIGHT, WAIT, WIDTH, Lab, Sheet
from tests.command_line import chat_model, some_rows, write_rows

TRAIN = (
    'Cockpit("layout_runs", model="fine", pairs="fine.jsonl", limit=None, samples=2, max_new_tokens=6, config=quick)'
)
PANELS = {
    "bradley_terry": "bradley_terry_widget()",
    "optimum": "optimum_widget()",
    "loss": "loss_widget()",
    "cockpit": f"panel = {TRAIN}\npanel.train()\npanel.wait(240)\npanel",
    "comparer": f"""
for seed in (1, 2):
    panel = {TRAIN}
    panel.controls["seed"].value = seed
    panel.train()
    panel.wait(240)
Comparer("layout_runs")
""",
    "inspector": 'panel = Inspector("other", "fine.jsonl", reference="fine")\npanel.wait(240)\npanel',
    "labeller": """
panel = Labeller("fine.jsonl", book="layout.book.jsonl")
panel.choose("left")
panel.show_results()
panel
""",
    "arena": """
panel = Arena(["fine", "other"], "fine.jsonl", book="layout_arena.book.jsonl", num_prompts=4, max_new_tokens=6)
panel.start()
panel.wait(240)
panel
""",
    "sweep": """
panel = SweepPanel(folder="layout_sweep", model="fine", pairs="fine.jsonl", device="cpu", batch_size="6",
                   beta="0.05:1:log", learning_rate="1e-4:1e-3:log", limit=None, trials=3)
panel.start()
panel.wait(240)
panel
""",
}
BEFORE = """
from dpo_lab.config import DPOConfig
from dpo_lab.course.sliders import bradley_terry_widget, loss_widget, optimum_widget
from dpo_lab.workbench.widgets import Arena, Cockpit, Comparer, Inspector, Labeller, SweepPanel
quick = DPOConfig(batch_size=4, evaluate_every=2, learning_rate=1e-3)
"""

# What is wrong with the layout, in words. A box that scrolls may hold what is wider than itself.
FAULTS = """panel => {
    const faults = [], edge = panel.closest(".jp-OutputArea-output").getBoundingClientRect().right;
    const shown = one => one.offsetParent !== null;
    for (const one of panel.querySelectorAll("label, button, .widget-readout, .widget-label"))
        if (shown(one) && one.scrollWidth > one.clientWidth + 1) faults.push("cut off: " + one.textContent);
    for (const one of panel.querySelectorAll("*")) {
        let box = one.parentElement;
        while (box !== panel && box !== null && !["auto", "scroll"].includes(getComputedStyle(box).overflowX))
            box = box.parentElement;
        const isFree = box === panel || box === null || box.classList.contains("jupyter-widgets");
        if (shown(one) && isFree && one.getBoundingClientRect().right > edge + 1)
            faults.push("beyond the edge: " + one.className + " " + one.textContent.slice(0, 60));
    }
    for (const one of panel.querySelectorAll("input, select, textarea"))
        if (shown(one) && !one.labels?.length && !one.getAttribute("aria-label")) faults.push("without a label");
    return faults;
}"""


@pytest.fixture(scope="module", autouse=True)
def _files(lab: Lab) -> None:
    for seed, name in enumerate(("fine", "other")):
        chat_model(lab.folder / name, seed=seed)
    write_rows(lab.folder / "fine.jsonl", some_rows(24))


@pytest.mark.parametrize("name", list(PANELS))
def test_panel(sheet: Sheet, name: str):
    panel = sheet.show(BEFORE + PANELS[name])
    if name not in ("labeller", "inspector", "arena"):
        expect(panel.locator("img").first).to_be_visible(timeout=WAIT)
    found = {}
    for width in (WIDTH, 900):
        sheet.page.set_viewport_size({"width": width, "height": HEIGHT})
        sheet.page.wait_for_timeout(500)
        found[width] = panel.evaluate(FAULTS)
        sheet.shoot(panel, f"{name}-{width}", width)
    assert not any(found.values()), "\n".join(f"{width}: {fault}" for width in found for fault in found[width])


def test_the_comparer_s_table_is_saved_as_a_file(sheet: Sheet):
    panel = sheet.show(BEFORE + PANELS["comparer"])
    with sheet.page.expect_download(timeout=WAIT) as download:
        panel.get_by_text("Save this table as CSV").click()
    header, *rows = download.value.path().read_text().splitlines()
    assert download.value.suggested_filename == "runs.csv"
    assert header.startswith("run,")
    assert len(rows) >= 2


def test_a_long_line_of_code_and_a_long_name_of_a_file_are_not_cut(sheet: Sheet):
    sheet.name = "16_a_name_of_28_letters"
    sheet.show(f"{BEFORE}loss_widget()  # {'long ' * 40}")
    sheet.page.set_viewport_size({"width": 1280, "height": 800})
    editor = sheet.page.locator(".jp-CodeCell .cm-scroller").first
    assert editor.evaluate("one => one.scrollWidth <= one.clientWidth + 1")
    name = sheet.page.locator(".jp-DirListing-itemText", has_text=sheet.name)
    beyond = """one => {
        const letters = document.createRange();
        letters.selectNodeContents(one);
        return letters.getBoundingClientRect().right - one.closest(".jp-DirListing").getBoundingClientRect().right;
    }"""
    assert name.evaluate(beyond) <= 0
