"""The loss under its slider for β: the new curve stands in the page before a person would call it late."""

from __future__ import annotations

import os
import re
from statistics import median

from playwright.sync_api import expect

from dpo_lab.course.plots.loss import describe_loss
from tests.browser.lab import SLOWNESS, WAIT, Sheet

MOST = float(os.environ.get("DPO_LAB_REDRAW_MS", 300 * SLOWNESS))
"""Milliseconds from the key to the new picture, median of the moves."""

# From the key that reaches the page to the picture that the browser has loaded, both on the page's own clock.
CLOCK = """([handle, image]) => {
    window.moves = [];
    let began = null, before = image.src;
    handle.addEventListener("keydown", event => { began = event.timeStamp; before = image.src; }, true);
    image.addEventListener("load", () => {
        if (began === null || image.src === before) return;
        window.moves.push(performance.now() - began);
        began = null;
    });
}"""


def test_moving_beta_redraws_the_loss(sheet: Sheet):
    panel = sheet.show("from dpo_lab.course.sliders import loss_widget\nloss_widget(gap=5.0, beta=0.1)")
    page, image = sheet.page, panel.locator("img")
    row = panel.locator(".widget-hslider", has=page.get_by_text("β", exact=True))
    handle, readout, words = row.get_by_role("slider"), row.locator(".widget-readout"), panel.get_by_role("status")
    expect(words).to_have_text(describe_loss(5.0, 0.1), timeout=WAIT)
    sheet.shoot(panel, "before")
    page.evaluate(CLOCK, [handle.element_handle(), image.element_handle()])
    handle.focus()
    for number in range(1, 11):
        source = image.get_attribute("src")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("number => window.moves.length >= number", arg=number, timeout=WAIT)
        assert image.get_attribute("src") != source
        beta = 10 ** (-1 + 0.05 * number)
        assert float(readout.inner_text()) == float(f"{beta:.3g}")
        expect(words).to_have_text(describe_loss(5.0, beta), timeout=WAIT)
    sheet.shoot(panel, "after")
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # as in the dark theme: no white sheet in it
    expect(image).to_have_css("filter", re.compile("invert"))
    moves = page.evaluate("window.moves")
    told = f"β to picture: median {median(moves):.0f} ms of {', '.join(f'{move:.0f}' for move in moves)}"
    print(told)
    assert median(moves) <= MOST, told


def test_a_value_is_typed_where_it_stands_and_the_mouse_moves_it_too(sheet: Sheet):
    panel = sheet.show("from dpo_lab.course.sliders import loss_widget\nloss_widget()")
    page, words = sheet.page, panel.get_by_role("status")
    row = panel.locator(".widget-hslider", has=page.get_by_text("β", exact=True))
    expect(words).to_have_text(describe_loss(0.0, 0.1), timeout=WAIT)
    row.locator(".widget-readout").fill("0.5")
    page.keyboard.press("Enter")
    expect(words).to_have_text(re.compile("for β = 0.5[.,]"), timeout=WAIT)
    box = row.get_by_role("slider").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=8)
    page.mouse.up()
    expect(words).not_to_have_text(re.compile("for β = 0.5[.,]"), timeout=WAIT)
    beta = float(row.locator(".widget-readout").inner_text())
    assert beta < 0.5
    expect(words).to_have_text(re.compile(rf"for β = {re.escape(f'{beta:.3g}')}[.,]"), timeout=WAIT)
