"""Heat maps over words: every token once, on its colour, readable; and whatever a text holds, it stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.text import Text

from dpo_lab.workbench.plots import to_png, token_heatmap, token_html
from dpo_lab.workbench.plots.token_rewards import color_limit, token_colors
from dpo_lab.workbench.plots.token_text import drawable, lay_out, plain_lines, visible

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> $x^2$ $\\frac{1}{0}$ \\(y\\) "
    "</pre></div> \"&' 喵 \u202e \x00"
)


def answer_of(tokens, rewards=None, *, seed=0):
    generator = np.random.default_rng(seed)
    rewards = generator.normal(0, 1, len(tokens)) if rewards is None else np.array(rewards, float)
    logps = -generator.exponential(1, len(tokens))
    return SimpleNamespace(tokens=list(tokens), rewards=rewards, logps=logps, reference_logps=logps - rewards)


def pair_of(chosen, rejected=("No", "."), **rest):
    return SimpleNamespace(chosen=answer_of(chosen), rejected=answer_of(rejected, seed=1), **rest)


def cut(text, width=5):
    return [text[i : i + width] for i in range(0, len(text), width)]


class Page(HTMLParser):
    """All tags, attributes and texts of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.spans, self.text, self.depth = set(), set(), [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "wbr":
            self.depth.append((tag, dict(attrs)))
        if tag == "span" and "title" in dict(attrs):
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.depth.pop()[0] == tag, "tags must be closed in order"

    def handle_data(self, data):
        self.text += data
        if self.depth and "title" in self.depth[-1][1]:
            attributes, text = self.spans[-1]
            self.spans[-1] = (attributes, text + data)


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hostile_texts_of_ten_thousand_characters_stay_text():
    text = (HOSTILE * 100)[:10_000]
    page = Page(token_html(pair_of(cut(text), cut(HOSTILE), prompt_text=text)))
    assert page.tags == {"div", "span", "pre", "details", "summary", "strong", "wbr"}
    assert page.attributes <= {"style", "class", "title"}
    assert page.depth == []
    shown = "".join(part for _, part in page.spans[: len(cut(text))])
    assert shown == visible(text)
    assert "[U+202E]" in shown
    assert plain_lines(text) in page.text


def test_formulas_stand_where_mathjax_does_not_look():
    html = token_html(pair_of(cut(HOSTILE), prompt_text="$x^2$"))
    inside = "".join(re.findall(r"<pre [^>]*>.*?</pre>", html, flags=re.DOTALL))
    assert html.count("$") == inside.count("$") > 0
    assert set(re.findall(r'<pre class="([^"]*)"', html)) == {"mathjax_ignore tex2jax_ignore"}


def test_each_token_carries_its_numbers_and_its_colour():
    pair = pair_of(["a", " b", "\n", ""], ["c"])
    page = Page(token_html(pair))
    assert len(page.spans) == 5
    assert [text for _, text in page.spans] == ["a", " b", "↵\n", "⋯", "c"]
    for (attributes, _), reward in zip(page.spans, [*pair.chosen.rewards, *pair.rejected.rewards], strict=True):
        background, text = token_colors(reward, color_limit(pair))
        assert f"background:{background};color:{text}" in attributes["style"]
        assert ("solid" if reward > 0 else "dashed") in attributes["style"]
        assert f"reward {reward:+.2f}".replace("-", "−") in attributes["title"]
    assert f"log π_ref {pair.rejected.reference_logps[0]:.2f}" in page.spans[-1][0]["title"]
    total = f"{pair.chosen.rewards.sum():+.2f}".replace("-", "−")
    assert f"chosen: implicit reward {total}, 4 tokens" in page.text


def test_a_pair_without_prompt_or_log_probs_will_do():
    bare = SimpleNamespace(chosen=SimpleNamespace(tokens=["a"], rewards=[0.5]),
                           rejected=SimpleNamespace(tokens=["b"], rewards=[0.0]))  # fmt: skip
    html = token_html(bare)
    assert "<details>" not in html
    assert 'title="reward +0.50"' in html
    to_png(token_heatmap(bare))


# ── colours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def contrast(one, other):
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_text_can_be_read_on_its_colour():
    for reward in np.linspace(-1.2, 1.2, 241):
        background, text = token_colors(reward, 1.0)
        assert contrast(background, text) >= 4.5
    assert token_colors(0.0, 1.0)[0] == "#ffffff"
    assert token_colors(5.0, 1.0) == token_colors(1.0, 1.0)
    assert token_colors(0.5, 1.0) != token_colors(-0.5, 1.0)


def test_the_limit_is_the_largest_reward_of_the_pair_unless_given():
    pair = SimpleNamespace(chosen=answer_of("ab", [0.5, -0.25]), rejected=answer_of("c", [-2.0]))
    assert color_limit(pair) == 2.0
    assert color_limit(pair, 3.0) == 3.0
    still = SimpleNamespace(chosen=answer_of("ab", [0, 0]), rejected=answer_of("c", [0]))
    assert "#ffffff" in token_html(still)  # policy = reference: nothing has a colour
    for limit in (0.0, float("inf"), -1.0):
        with pytest.raises(ValueError, match="limit must be positive and finite"):
            token_html(pair, limit=limit)


# ── the figure ───────────────────────────────────────────────────────────────────────────────────────────────────────


def texts_of(figure):
    return [text for text in figure.findobj(Text) if text.get_text()]


def test_the_figure_draws_hostile_texts_as_they_are():
    figure = token_heatmap(pair_of(cut(HOSTILE), cut(HOSTILE, 9)), title=HOSTILE)
    to_png(figure)  # a warning about a missing letter, or a formula that does not parse, is an error here
    written = "".join(text.get_text() for text in texts_of(figure))
    assert "$x^2" in "".join(drawable(token) for token in cut(HOSTILE))
    assert "$" in written
    for text in texts_of(figure):
        assert "$" not in text.get_text().replace(r"\$", "") or not text.get_parse_math()
    assert "?" in written  # 喵, which the font lacks


def test_the_figure_holds_every_token_with_its_reward():
    pair = pair_of([" one", " two", " three"], ["four"])
    texts = [text.get_text() for text in texts_of(token_heatmap(pair))]
    for token, reward in zip([" one", " two", " three", "four"], [*pair.chosen.rewards, *pair.rejected.rewards],
                             strict=True):  # fmt: skip
        assert texts.count(token) == 1
        assert f"{reward:+.2f}".replace("-", "−") in texts


def test_what_does_not_fit_is_counted_and_summed():
    pair = pair_of(cut(HOSTILE * 100), ["Yes"])
    figure = token_heatmap(pair, max_lines=5)
    assert figure.get_figheight() < 4
    last = next(text.get_text() for text in texts_of(figure) if "more tokens" in text.get_text())
    left_out = int(re.search(r"(\d+) more tokens", last).group(1))
    total = pair.chosen.rewards[-left_out:].sum()
    assert f"{total:+.2f} together".replace("-", "−") in last
    whole = token_heatmap(pair_of(["a"] * 40), max_lines=24)
    assert not any("more tokens" in text.get_text() for text in texts_of(whole))


def test_lines_break_between_tokens_and_nothing_overlaps():
    tokens = [*cut(HOSTILE * 5, 7), "\n", "x" * 300, "\n\n", "end"]
    lines = lay_out(tokens, np.zeros(len(tokens)), 50)
    assert [cell.place for line in lines for cell in line] == list(range(len(tokens)))
    for line in lines:
        ends = [cell.left + cell.width for cell in line]
        assert max(ends) <= 50
        assert [cell.left for cell in line] == [0, *ends[:-1]]
    after = [tokens[line[0].place - 1] for line in lines if line[0].place]
    assert after.count("\n") == after.count("\n\n") == 1


def test_letters_that_cannot_be_seen_are_named():
    assert visible("a\tb\n") == "a⇥b↵"
    assert visible("\u202e\x00\ud800") == "[U+202E][U+0000][U+D800]"
    assert visible("") == "⋯"
    assert plain_lines("a\n\u2066b\t") == "a\n[U+2066]b\t"
    assert len(drawable("y" * 10_000)) == 40


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="one reward per token"):
        token_html(SimpleNamespace(chosen=answer_of("ab", [1.0]), rejected=answer_of("c")))
    with pytest.raises(ValueError, match="one reward per token and at least one token"):
        token_heatmap(SimpleNamespace(chosen=answer_of([]), rejected=answer_of("c")))
    with pytest.raises(ValueError, match="rewards must be finite"):
        token_heatmap(SimpleNamespace(chosen=answer_of("a", [np.inf]), rejected=answer_of("c")))
