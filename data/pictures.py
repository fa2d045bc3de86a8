"""The pictures of the README and the site's card: `python data/pictures.py`, with `--run` after a new run (minutes).

`--run` trains as `dpo-lab demo` does, on a quarter of its pairs. At `STEPS` it samples answers to the same prompts,
with the same random numbers. It writes data/results/demo_run.json; pictures are drawn from it and real_model.json.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from io import BytesIO
from pathlib import Path
from typing import Any

from measuring import RESULTS, answer, made_with
from PIL import Image

from dpo_lab import DPOConfig, load_policy, load_preferences, train_dpo
from dpo_lab.course.plots.jobs import plot_shares
from dpo_lab.course.saved_results import demand_share, read_real_model
from dpo_lab.loop import Step
from dpo_lab.preferences.chat import prompt_text
from dpo_lab.workbench.plots.style import BLUE, GREEN, GREY, INK, dress, new_figure, text, to_png
from dpo_lab.worlds.instructions import GROUPS, draw
from dpo_lab.worlds.pocket import Conversation, judge

NUM_PAIRS, NUM_PROMPTS, SEED = 1280, 64, 0
STEPS = (0, 2, 5, 8, 12, 16, 20, 25, 30, 40)
SECONDS = 0.48  # per picture: under five seconds in all, and once only, so that nothing moves beside a reader's text
CARD = Path(__file__).resolve().parents[1] / "site" / "static" / "card.png"


def run() -> dict[str, Any]:
    """Losses of a run, the mean true reward at `STEPS`, and the answer that gained most, as it was at each."""
    rows = load_preferences("embedded", split="test").to_list()[:NUM_PROMPTS]
    prompts = [Conversation.from_row(row) for row in rows]
    model, tokenizer = load_policy("embedded")
    pairs = load_preferences("embedded", split="train").to_list()[:NUM_PAIRS]
    answers, losses = [answer(model, tokenizer, prompts, SEED)], []
    for event in train_dpo(model, tokenizer, pairs, DPOConfig(seed=SEED)):
        if isinstance(event, Step):
            losses.append(event.metrics["loss"])
            if event.step in STEPS:
                answers.append(answer(model, tokenizer, prompts, SEED))
                print(f"step {event.step}: {answers[-1][0]}", flush=True)
    rewards = [[judge(prompt, one).reward for prompt, one in zip(prompts, own, strict=True)] for own in answers]
    gains = [last - first for first, last in zip(rewards[0], rewards[-1], strict=True)]
    shown = gains.index(max(gains))
    return {
        "made": made_with("python data/pictures.py --run") | {"pairs": NUM_PAIRS, "prompts": NUM_PROMPTS},
        "losses": losses,
        "prompt": prompt_text(rows[shown]),
        "rows": [{"step": step, "reward": sum(own) / len(own), "answer": said[shown], "its reward": own[shown]}
                 for step, own, said in zip(STEPS, rewards, answers, strict=True)],
    }  # fmt: skip


def moment(found: dict[str, Any], i: int) -> bytes:
    """The run up to the i-th of its moments, as a PNG: curves above, the prompt and the answer below."""
    rows, row = found["rows"][: i + 1], found["rows"][i]
    figure = new_figure(6.4, 4.6)
    places = figure.subplot_mosaic([["loss", "reward"], ["words", "words"]], height_ratios=(1.2, 1))
    loss, reward, words = (places[name] for name in ("loss", "reward", "words"))
    losses = found["losses"][: row["step"]]
    loss.plot(range(1, len(losses) + 1), losses, color=BLUE)
    dress(loss, "Training loss", "step", "nats per pair")
    reward.plot([one["step"] for one in rows], [one["reward"] for one in rows], color=GREEN, marker="o")
    dress(reward, f"True reward, {found['made']['prompts']} new prompts", "step", "mean")
    for ax, values in ((loss, found["losses"]), (reward, [one["reward"] for one in found["rows"]])):
        room = 0.08 * (max(values) - min(values))
        ax.set(xlim=(-1, STEPS[-1] + 1), ylim=(min(values) - room, max(values) + room))
    words.set_axis_off()
    wrapped = lambda one, width: "\n".join(textwrap.fill(line, width) for line in one.split("\n") if line)
    words.text(0, 1, wrapped(found["prompt"], 64), va="top", **text(11, GREY))
    words.text(0, 0.62, wrapped(row["answer"], 48), va="top", **text(14, INK))
    words.text(0, 0, f"step {row['step']} of {STEPS[-1]}: the true reward of this answer is {row['its reward']:+.1f}",
               va="bottom", **text(12, GREEN))  # fmt: skip
    return to_png(figure, dpi=100)


def animate(found: dict[str, Any]) -> None:
    """data/results/demo_run.gif: every moment once, the last stays."""
    frames = [Image.open(BytesIO(moment(found, i))).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
              for i in range(len(STEPS))]  # fmt: skip
    frames[0].save(RESULTS / "demo_run.gif", save_all=True, append_images=frames[1:], duration=int(1000 * SECONDS))


def real_model() -> Any:
    """SmolLM2-135M-Instruct before and after RPO: the shares of demands met."""
    made, rows = read_real_model()
    tasks = draw("test", made["prompts"], seed=0)
    shares = {label: {group: demand_share(rows, name, tasks, belongs) for group, belongs in GROUPS.items()}
              for name, label in (("base", "before"), ("RPO", "after RPO"))}  # fmt: skip
    title = f"SmolLM2-135M-Instruct on {made['prompts']} test tasks"
    return plot_shares(shares, title=title, xlabel="share of demands met, 95% interval")


def card(found: dict[str, Any]) -> Any:
    """What stands beside a link to the site: its name and the two curves of the run."""
    figure = new_figure(12, 6.3)
    figure.set_layout_engine("none")  # places are given
    ax = figure.add_axes((0.08, 0.14, 0.87, 0.5))
    figure.text(0.08, 0.83, "DPO Lab", **text(48))
    figure.text(0.08, 0.73, "Learn Direct Preference Optimization by running it", **text(25, GREY))
    rewards = [row["reward"] for row in found["rows"]]
    ax.plot(range(1, len(found["losses"]) + 1), found["losses"], color=BLUE, linewidth=3)
    ax.plot(STEPS, rewards, color=GREEN, linewidth=5)
    for height, words, color in ((found["losses"][-1], "training loss, nats per pair", BLUE),
                                 (rewards[-1], "true reward of new answers", GREEN)):  # fmt: skip
        ax.annotate(words, (STEPS[-1], height), (0, 18), textcoords="offset points", ha="right", **text(20, color))
    ax.set_ylim(0, 1.3 * max(rewards))
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=16)
    ax.set_xlabel("step", **text(18, GREY))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="store_true", help="train anew, which takes minutes")
    saved = RESULTS / "demo_run.json"
    if parser.parse_args().run:
        saved.write_text(json.dumps(run(), indent=1, ensure_ascii=False) + "\n")
    found = json.loads(saved.read_text())
    animate(found)
    CARD.write_bytes(to_png(card(found), dpi=100))
    (RESULTS / "real_model.png").write_bytes(to_png(real_model().figure, dpi=120))


if __name__ == "__main__":
    main()
