"""The inspector: the heat map in the page has the numbers of `token_logps`, for whichever pair is shown."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Locator, expect

from dpo_lab.batching import make_batch
from dpo_lab.logprobs import token_logps
from dpo_lab.losses import LOSSES
from dpo_lab.models import load_policy
from dpo_lab.preferences import load_preferences, prompt_text, tokenize_pairs
from tests.browser.lab import WAIT, Lab, Sheet

BETA = LOSSES["dpo"].knobs["beta"]
CELL = """
from dpo_lab.preferences import load_preferences
from dpo_lab.workbench.widgets import Inspector
rows = list(load_preferences("embedded", split="test"))[:{count}]
Inspector({{"after": "shaken"}}, rows, reference="embedded")
"""
TOKENS = """box => [...box.querySelectorAll("span[title]")].map(
    token => [token.title, getComputedStyle(token).backgroundColor]
)"""


@pytest.fixture(scope="module")
def shaken(lab: Lab) -> Path:
    """The embedded model with every weight a little off, in a folder: a policy that differs from its reference."""
    model, tokenizer = load_policy("embedded", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(
                0.05 * weight.std() * torch.randn(weight.shape, generator=generator) if weight.numel() > 1 else 0
            )
    model.save_pretrained(lab.folder / "shaken")
    tokenizer.save_pretrained(lab.folder / "shaken")
    return lab.folder / "shaken"


@torch.no_grad()
def expected(model, tokenizer, row) -> list[np.ndarray]:
    """log π of every token of chosen and of rejected."""
    data, _ = tokenize_pairs([row], tokenizer, max_length=1024)
    batch = make_batch(data, np.array([0]))
    return np.split(token_logps(model, batch).numpy(), np.cumsum(batch.lengths.numpy().ravel())[:-1])


def table_in_page(panel: Locator, side: str) -> np.ndarray:
    """(tokens, 3): log π, log π_ref and reward, read from the table as the page has it."""
    folded = panel.locator("details", has_text=f"numbers of the {side} answer")
    return np.array(
        folded.evaluate(
            "folded => [...folded.querySelectorAll('tr:has(td)')]"
            ".map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.textContent)))"
        )
    )


def heat_in_page(panel: Locator, side: int) -> tuple[list[tuple[float, ...]], list[str]]:
    """Of each token of the heat map: reward, log π and log π_ref from what stands under the pointer; its colour."""
    found = panel.locator("pre:has(span[title])").nth(side).evaluate(TOKENS)
    numbers = [tuple(float(x) for x in re.findall(r"[-+]?\d+\.\d+", title.replace("−", "-"))) for title, _ in found]
    return numbers, [color for _, color in found]


def check_numbers(panel: Locator, policies, tokenizer, row) -> None:
    mine, frozen = (expected(model, tokenizer, row) for model in policies)
    for k, side in enumerate(("chosen", "rejected")):
        shown = table_in_page(panel, side)
        rewards = BETA * (mine[k] - frozen[k])
        for column, value in enumerate((mine[k], frozen[k], rewards)):
            np.testing.assert_allclose(shown[:, column], value, atol=2e-4)
        numbers, colors = heat_in_page(panel, k)
        np.testing.assert_allclose(np.array(numbers), np.stack([rewards, mine[k], frozen[k]], 1), atol=0.0052)
        assert len(set(colors)) > 2  # a heat map, not a text on white
        strongest = int(np.argmax(np.abs(rewards)))
        red, _, blue = (int(part) for part in re.findall(r"\d+", colors[strongest])[:3])
        assert (blue > red) == (rewards[strongest] > 0)  # blue: more likely than before


def test_the_heat_map_has_the_numbers_of_token_logps(sheet: Sheet, shaken: Path):
    rows = list(load_preferences("embedded", split="test"))[:12]
    panel = sheet.show(CELL.format(count=len(rows)))
    (model, tokenizer), (reference, _) = load_policy(shaken, device="cpu"), load_policy("embedded", device="cpu")
    words, place = panel.get_by_role("status").nth(1), panel.get_by_label("pair", exact=True)
    expect(words).to_contain_text("Margin", timeout=WAIT)
    prompt = panel.get_by_role("group", name="Prompt")

    def stands(row) -> None:
        expect(prompt.locator("pre")).to_have_text(prompt_text(row), timeout=WAIT)

    stands(rows[0])
    check_numbers(panel, (model, reference), tokenizer, rows[0])
    sheet.shoot(panel, "1-first")

    panel.get_by_role("button", name="Next").click()
    stands(rows[1])
    check_numbers(panel, (model, reference), tokenizer, rows[1])
    place.focus()
    sheet.page.keyboard.press("ArrowUp")
    stands(rows[2])
    check_numbers(panel, (model, reference), tokenizer, rows[2])

    panel.get_by_label("sorted by").select_option("margin, lowest first")
    totals = [[one.sum() for one in expected(model, tokenizer, row)] for row in rows]
    frozen = [[one.sum() for one in expected(reference, tokenizer, row)] for row in rows]
    margins = BETA * ((np.array(totals) - np.array(frozen)) @ [1, -1])
    lowest = int(np.argmin(margins))
    stands(rows[lowest])
    told = float(re.findall(r"Margin ([-+.\d]+)", words.inner_text())[0])
    assert abs(told - margins[lowest]) < 1e-3
    panel.locator("summary", has_text="numbers of the chosen answer").click()
    sheet.shoot(panel, "2-lowest")
