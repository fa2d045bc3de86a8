"""DPO made to fail on purpose, and mended, in the pocket world: `python data/experiments/failures.py`.

Every run starts from the embedded model with the same settings (below), and is judged by the true reward on prompts of
the test split. A cell is a failure, a method, the level of the disturbance, and a seed; the seed draws the pairs, the
disturbance, the order and the answers.

    sound          dpo on the pairs as they are: what the others are compared with
    displacement   dpo, rpo, dpop: where the chosen answers' probability goes, on the training prompts themselves
    length         labels drawn anew from true reward + level per word; dpo, sigmoid_norm, LD-DPO (ld), R-DPO (r,
                   with the true price of a word, and with a quarter of it), and dpo on as many pairs whose answers
                   are of nearly equal length (near); level 0 is the control, labels drawn anew without a bonus
    noise          each label flipped with chance level; dpo, cdpo and robust with ε = level
    turn           few pairs many times over, judged on the way: dpo at two β, and the same number of steps on fresh
                   pairs
    reference      the policy begins at an SFT model; the reference is that model (right), the model before SFT
                   (stale), one trained on the rejected answers (other), or the right one scored with dropout
    off-policy     the same conversations and labels, answers from the policy itself (own), from a model trained on
                   rejected answers (other), from the policy at temperature 1.6 (hot), written by the world (written)
    rate           96 pairs 20 times over; level is the learning rate
    recorded       five runs with all that one can see on the way, for the reader to diagnose, of the first seed only:
                   sound, few pairs many times over, the learning rate of the base model's SFT, length-biased labels,
                   flipped labels; the held-out labels are as they were

`python data/experiments/failures.py --only noise` runs one of them.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable
from random import Random
from statistics import mean
from typing import Any

import numpy as np
from disturbances import (
    LABEL_TEMPERATURE,
    Rows,
    TailDiscounted,
    flipped,
    length_biased,
    mass_of,
    scored_with_dropout,
    shifted_by_length,
    words,
    words_per_token,
)
from harness import Experiment, carry_out, parser
from torch import nn

from dpo_lab import (
    DPOConfig,
    ReferenceCache,
    SFTConfig,
    evaluate,
    load_policy,
    load_preferences,
    train_dpo,
    train_sft,
)
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import score
from dpo_lab.loop import Evaluation, Step, optimise
from dpo_lab.losses.table import loss_of
from dpo_lab.preferences import encode_prompt, tokenize_pairs
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.worlds import corpus
from dpo_lab.worlds.pocket import write_answer
from dpo_lab.worlds.pocket.quality import quality

PROMPT_SEED, SOURCE_SEED = 66_000, 67_000
MAX_NEW_TOKENS = 80
BETA, RATE, BATCH = 0.5, 4e-4, 16  # of notebook 09's short runs
BONUS = 0.6
NOISE = (0.2, 0.4)
DROPOUT = 0.1
RECORDED = {"sound": 0.0, "few pairs": 0.0, "rate": 2e-3, "length": BONUS, "flips": 0.3}
"""The runs that are recorded, and their levels."""


def cells(seeds: int) -> list[dict[str, Any]]:
    """Everything that is to be run, the seeds one after the other, so that a part is a whole with fewer seeds."""
    wanted: list[tuple[str, str, float]] = [("sound", "dpo", 0.0)]
    wanted += [("displacement", method, 0.0) for method in ("dpo", "rpo", "dpop")]
    wanted += [("length", method, 0.0) for method in ("dpo", "sigmoid_norm", "ld")]
    wanted += [("length", method, BONUS) for method in ("dpo", "sigmoid_norm", "ld", "r", "r, α/4", "near")]
    wanted += [("noise", method, level) for level in NOISE for method in ("dpo", "cdpo", "robust")]
    wanted += [("turn", method, 0.0) for method in ("few, β 0.1", "few, β 1", "fresh, β 0.1")]
    wanted += [("reference", method, 0.0) for method in ("right", "stale", "other", "dropout")]
    wanted += [("off-policy", method, 0.0) for method in ("own", "other", "hot", "written")]
    wanted += [("rate", "dpo", rate) for rate in (2e-4, 4e-3)]
    once = [("recorded", method, level) for method, level in RECORDED.items()]
    return [{"failure": failure, "method": method, "level": level, "seed": seed}
            for seed in range(seeds) for failure, method, level in wanted + (once if seed == 0 else [])]  # fmt: skip


# ── the lab ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Lab:
    """What the cells share: the model, the pairs, and the prompts to judge by."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.base, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.rows: Rows = load_preferences("embedded", split="train").to_list()
        self.held: Rows = load_preferences("embedded", split="test", limit=200).to_list()
        self.conversations = corpus.prompts(arguments.prompts, split="test", seed=PROMPT_SEED)
        self.prompts = [encode_prompt(one.row(), self.tokenizer) for one in self.conversations]
        self.cache = ReferenceCache(arguments.work / "failures.sqlite")
        self.models: dict[tuple[str, int], nn.Module] = {}

    def run(self, cell: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """What the cell's failure measured."""
        name = cell["failure"].replace("-", "_")
        return getattr(self, name)(cell["method"], cell["level"], cell["seed"])

    # The failures.

    def sound(self, method: str, level: float, seed: int) -> dict[str, Any]:
        return self.judged(*self.trained(self.pairs(seed), seed, loss=method), seed)

    def displacement(self, method: str, level: float, seed: int) -> dict[str, Any]:
        rows = self.pairs(seed)
        policy, curves = self.trained(rows, seed, loss=method, epochs=2.0)
        return self.judged(policy, curves, seed) | self.mass(policy, rows[: self.arguments.prompts], seed)

    def length(self, method: str, level: float, seed: int) -> dict[str, Any]:
        rows = length_biased(self.pairs(seed, 3 * self.arguments.pairs if method == "near" else None), level, seed)
        if method == "near":
            near = lambda row: abs(words(row, "chosen") - words(row, "rejected")) <= 1
            rows = [row for row in rows if near(row)][: self.arguments.pairs]
        per_token = level / LABEL_TEMPERATURE * words_per_token(rows, self.tokenizer)
        match method:
            case "ld":
                policy, curves = self.tail_discounted(rows, seed)
            case "r" | "r, α/4":
                alpha = per_token if method == "r" else per_token / 4
                policy, curves = self.trained(rows, seed, cache=shifted_by_length(alpha, BETA))
            case "sigmoid_norm":
                policy, curves = self.trained(rows, seed, loss=method, beta=None)
            case _:
                policy, curves = self.trained(rows, seed, loss="dpo" if method == "near" else method)
        longer = mean(words(row, "chosen") > words(row, "rejected") for row in rows
                      if words(row, "chosen") != words(row, "rejected"))  # fmt: skip
        return self.judged(policy, curves, seed) | {"longer_chosen": longer, "pairs": len(rows)}

    def noise(self, method: str, level: float, seed: int) -> dict[str, Any]:
        smoothing = {} if method == "dpo" else {"label_smoothing": level}
        return self.judged(*self.trained(flipped(self.pairs(seed), level, seed), seed, loss=method, **smoothing), seed)

    def turn(self, method: str, level: float, seed: int) -> list[dict[str, Any]]:
        pairs, beta = method.split(", β ")
        few = max(self.arguments.pairs // 6, BATCH)
        steps = 10 * (few // BATCH)  # ten times over the few pairs
        rows = self.pairs(seed, few if pairs == "few" else steps * BATCH)
        return self.on_the_way(rows, seed, steps, beta=float(beta))

    def recorded(self, method: str, level: float, seed: int) -> list[dict[str, Any]]:
        steps = 60
        rows = self.pairs(seed, steps * BATCH)
        knobs: dict[str, Any] = {}
        match method:
            case "few pairs":
                rows, knobs = rows[: max(self.arguments.pairs // 6, BATCH)], {"beta": 0.1}
            case "rate":
                knobs = {"learning_rate": level}
            case "length":
                rows = length_biased(rows, level, seed)
            case "flips":
                rows = flipped(rows, level, seed)
        return self.on_the_way(rows, seed, steps, **knobs)

    def reference(self, method: str, level: float, seed: int) -> dict[str, Any]:
        rows, start = self.pairs(seed), self.tuned("chosen", seed)
        wrong = {"stale": self.base, "other": self.tuned("rejected", seed)}.get(method, start)
        cache = scored_with_dropout(DROPOUT, seed) if method == "dropout" else None
        policy, curves = self.trained(rows, seed, start=start, reference=wrong, cache=cache)
        return self.judged(policy, curves, seed, reference=start)

    def off_policy(self, method: str, level: float, seed: int) -> dict[str, Any]:
        conversations = corpus.prompts(self.arguments.pairs, split="train", seed=SOURCE_SEED + seed)
        prompts = [encode_prompt(one.row(), self.tokenizer) for one in conversations]
        if method == "written":
            rng = Random(seed)
            texts = [[write_answer(one, rng) for _ in range(4)] for one in conversations]
        else:
            writer = self.tuned("rejected", seed) if method == "other" else self.base
            found = generate_ids(writer, self.tokenizer, prompts, num_samples=4, max_new_tokens=MAX_NEW_TOKENS,
                                 temperature=1.6 if method == "hot" else 1.0, seed=seed, batch_size=512)  # fmt: skip
            texts = [[one.text for one in row] for row in found]
        rows, without = corpus.pair_answers(conversations, texts, temperature=LABEL_TEMPERATURE, seed=seed)
        data, _ = tokenize_pairs(rows, self.tokenizer)
        nats = -float(score(self.base, data).sum() / data.completion_lengths.sum())
        policy, curves = self.trained(rows, seed)
        return self.judged(policy, curves, seed) | {"nats_per_token": nats, "pairs": len(rows), "no_pair": without}

    def rate(self, method: str, level: float, seed: int) -> dict[str, Any]:
        few = self.pairs(seed, min(96, self.arguments.pairs))
        return self.judged(*self.trained(few, seed, learning_rate=level, epochs=20.0, beta=0.1), seed, beta=0.1)

    # What they share.

    def on_the_way(self, rows: Rows, seed: int, steps: int, **knobs: Any) -> list[dict[str, Any]]:
        """A row at the start and after each fifth of the steps; it has the training losses and accuracies since the
        row before, step by step."""
        policy = copy.deepcopy(self.base)
        config = self.config(seed, epochs=1000.0, max_steps=steps, schedule="constant", evaluate_every=steps // 5,
                             **knobs)  # fmt: skip
        found: list[dict[str, Any]] = []
        since: list[dict[str, float]] = []
        for event in train_dpo(policy, self.tokenizer, rows, config, held_out=self.held, cache=self.cache):
            if isinstance(event, Step):
                since.append(event.metrics)
            elif isinstance(event, Evaluation):
                curves = {"losses": [step["loss"] for step in since],
                          "accuracies": [step["rewards/accuracies"] for step in since]}  # fmt: skip
                found.append({"step": event.step} | self.answers(policy, seed, self.base)
                             | held_metrics(event.metrics, config.beta or BETA) | curves)  # fmt: skip
                since = []
        return found

    def pairs(self, seed: int, number: int | None = None) -> Rows:
        """Training pairs, others for each seed; fewer are the first of more."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return [self.rows[i] for i in order[: number or self.arguments.pairs]]

    def config(self, seed: int, **knobs: Any) -> DPOConfig:
        shared = {"beta": BETA, "learning_rate": RATE, "batch_size": BATCH, "seed": seed,
                  "max_steps": self.arguments.max_steps, "device": self.arguments.device}  # fmt: skip
        return DPOConfig(**(shared | knobs))

    def trained(self, rows: Rows, seed: int, *, start: nn.Module | None = None, reference: nn.Module | None = None,
                cache: Any = None, **knobs: Any) -> tuple[nn.Module, dict[str, float]]:  # fmt: skip
        """A policy trained from a copy of `start`, and what its curves end at."""
        policy = copy.deepcopy(start or self.base)
        events = train_dpo(policy, self.tokenizer, rows, self.config(seed, **knobs), reference=reference,
                           cache=cache or self.cache)  # fmt: skip
        return policy, ends_of(events)

    def tail_discounted(self, rows: Rows, seed: int) -> tuple[nn.Module, dict[str, float]]:
        """LD-DPO with α = 0."""
        policy, config = copy.deepcopy(self.base), self.config(seed)
        data, _ = tokenize_pairs(rows, self.tokenizer, max_length=config.max_length)
        _, loss, beta = loss_of(config)
        nothing = np.zeros((len(data), 2), np.float32)
        engine = Engine.open(policy, config)
        objective = TailDiscounted(data, None, config, "shared", engine, loss, beta, nothing, nothing, "live")
        objective.reference_model = self.base
        return policy, ends_of(optimise(policy, objective, engine, config))

    def tuned(self, side: str, seed: int) -> nn.Module:
        """The base model after SFT on the chosen or the rejected answers of pairs that no cell of this seed uses."""
        if (side, seed) not in self.models:
            number = self.arguments.pairs
            rest = self.pairs(seed, 2 * number)[number:]
            rows = [row | {"chosen": row[side]} for row in rest]
            model = copy.deepcopy(self.base)
            config = SFTConfig(learning_rate=RATE, batch_size=BATCH, seed=seed, max_steps=self.arguments.max_steps,
                               device=self.arguments.device)  # fmt: skip
            for _ in train_sft(model, self.tokenizer, rows, config):
                pass
            self.models[side, seed] = model
        return copy.deepcopy(self.models[side, seed])

    def judged(self, policy: nn.Module, curves: dict[str, float], seed: int, *, reference: nn.Module | None = None,
               beta: float = BETA) -> dict[str, Any]:  # fmt: skip
        """True reward, shares, words and KL of one answer to each test prompt; loss and accuracy on held-out pairs."""
        reference = reference or self.base
        metrics = evaluate(policy, self.tokenizer, self.held, reference=reference, cache=self.cache, beta=beta).metrics
        return self.answers(policy, seed, reference) | held_metrics(metrics, beta) | curves

    def answers(self, policy: nn.Module, seed: int, reference: nn.Module) -> dict[str, float]:
        """The judge's numbers on one answer to each test prompt, and their KL from the reference."""
        answers = [row[0] for row in generate_ids(policy, self.tokenizer, self.prompts, seed=seed, batch_size=128,
                                                  max_new_tokens=MAX_NEW_TOKENS)]  # fmt: skip
        found = quality(self.conversations, [answer.text for answer in answers])
        kl = kl_of_samples(policy, reference, self.prompts, [[answer.ids] for answer in answers])
        return {name: found[name] for name in ("reward", "success", "well_formed", "words")} | {"kl": kl.mean}

    def mass(self, policy: nn.Module, rows: Rows, seed: int) -> dict[str, float]:
        """Where the probability of training prompts is: on the chosen answer, the rejected one, or elsewhere.

        `elsewhere_reward` is the true reward of what is neither, `base_…` the same before training.
        """
        found: dict[str, float] = {}
        prompts = [encode_prompt(row, self.tokenizer) for row in rows]
        for name, model in (("", policy), ("base_", self.base)):
            answers = generate_ids(model, self.tokenizer, prompts, seed=seed, batch_size=128,
                                   max_new_tokens=MAX_NEW_TOKENS)  # fmt: skip
            shares, rewards = mass_of(rows, [row[0].text for row in answers])
            found |= {f"{name}{key}": value for key, value in shares.items()}
            found |= {f"{name}elsewhere_reward": mean(rewards)} if rewards else {}
        return found


def held_metrics(metrics: dict[str, float], beta: float) -> dict[str, float]:
    """What the held-out pairs say: the DPO loss at β, accuracy, and by how many nats the chosen answers moved."""
    of = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {"heldout_loss": of["loss"], "heldout_accuracy": of["rewards/accuracies"],
            "chosen_change": of["rewards/chosen"] / beta}  # fmt: skip


def ends_of(events: Iterable[Any]) -> dict[str, float]:
    """What a run's curves say: its first step, and the mean of its last ten."""
    steps = [event.metrics for event in events if isinstance(event, Step)]
    last = lambda name: float(np.mean([step[name] for step in steps[-10:]]))
    found = {"first_loss": steps[0]["loss"], "loss": last("loss"), "steps": len(steps)}
    if "rewards/accuracies" in steps[0]:
        found |= {"first_accuracy": steps[0]["rewards/accuracies"], "accuracy": last("rewards/accuracies")}
    return found


def main() -> None:
    options = parser(__doc__, seeds=5)
    options.add_argument("--pairs", type=int, default=640, help="training pairs of a run (default: %(default)s)")
    options.add_argument("--prompts", type=int, default=160, help="prompts to judge by (default: %(default)s)")
    options.add_argument("--max-steps", type=int, default=None, help="fewer steps, to try the script out")
    arguments = options.parse_args()
    settings = {name: getattr(arguments, name) for name in ("pairs", "prompts", "max_steps")} | {
        "beta": BETA, "learning_rate": RATE, "batch_size": BATCH, "bonus": BONUS}  # fmt: skip
    lead = ("DPO made to fail on purpose in the pocket world, and mended; what each cell is: "
            "data/experiments/failures.py. KL in nats per answer from the run's reference (in `reference`: from the "
            "model that the policy began at), chosen_change in nats on held-out pairs.")  # fmt: skip
    columns = ["reward", "success", "well_formed", "words", "kl", "first_loss", "first_accuracy", "loss", "accuracy",
               "heldout_loss", "heldout_accuracy", "chosen_change", "longer_chosen", "nats_per_token", "on_chosen",
               "on_rejected", "elsewhere", "elsewhere_reward", "base_on_chosen", "base_on_rejected", "base_elsewhere",
               "base_elsewhere_reward"]  # fmt: skip
    about = Experiment("failures", "DPO made to fail on purpose", lead, columns, settings,
                       group_by=("failure", "method", "level", "step"))  # fmt: skip
    carry_out(about, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
