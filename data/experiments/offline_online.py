"""DPO offline, semi-online and online, with three numbers on the way: `python data/experiments/offline_online.py`.

Three runs that differ in one setting of `train_rounds`, `sampler`, and start from the embedded model. All take the
same prompts, as many answers to each, and as many steps; the true reward is the judge:

    offline        never   the answers are those of the model before training, to new prompts in each round
    semi-online    round   the answers are the policy's own, of the beginning of the round
    online         step    the answers are the policy's own, of this step

Judged on the 400 prompts of the test split: true reward of one answer each, and KL from the embedded model. Of each
fifth of a run it keeps what `train_rounds` reports, and the accuracy on pairs before they are learnt from.

One learning rate, a few minutes. The study with tuned rates, beside RLOO and GRPO, is `rounds.py`.

Rows go to data/results/offline_online.json, the table to offline_online.md; notebook 17 draws it.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import mean, stdev
from typing import Any

from harness import Cell, Experiment, Result, carry_out, parser

from dpo_lab import load_policy, load_preferences
from dpo_lab.loop import Step
from dpo_lab.preferences import encode_prompt
from dpo_lab.sampling import generate_ids
from dpo_lab.workbench.evaluation import kl_of_samples
from dpo_lab.workbench.rounds import Round, RoundsConfig, train_rounds, true_reward

SAMPLERS = {"offline": "never", "semi-online": "round", "online": "step"}
SETTINGS: dict[str, Any] = {
    "rounds": 5, "prompts": 96, "answers": 4, "steps": 6, "batch_size": 16, "beta": 0.5, "learning_rate": 1e-3,
    "max_new_tokens": 64, "max_length": 256,
}  # fmt: skip
EVALUATION_SEED = 99


def cells(seeds: int) -> list[Cell]:
    """Every sampler once with a seed before the next seed begins."""
    return [{"method": method, "knob": SAMPLERS[method], "seed": seed} for seed in range(seeds) for method in SAMPLERS]


class Lab:
    """What every run shares: the model, the prompts to train on and the prompts to judge on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = arguments.device
        self.reference, self.tokenizer = load_policy("embedded", device=arguments.device)
        self.train, self.test = (load_preferences("embedded", split=name).to_list() for name in ("train", "test"))

    def run(self, cell: Cell) -> Result:
        """Train, then judge; everything of one run."""
        policy, began = copy.deepcopy(self.reference), time.process_time()
        config = RoundsConfig(**SETTINGS, sampler=cell["knob"], seed=cell["seed"], device=self.device)
        events = list(train_rounds(policy, self.tokenizer, self.train, true_reward, config))
        seconds = time.process_time() - began
        rounds = [event.metrics for event in events if isinstance(event, Round)]
        steps = [event.metrics for event in events if isinstance(event, Step)]
        fifths = lambda found: [round(mean(found[i : i + len(found) // config.rounds]), 4)
                                for i in range(0, len(found), len(found) // config.rounds)]  # fmt: skip
        return {
            **self.judged(policy), "judged_in_training": fifths([one["reward"] for one in rounds]),
            "mixed": fifths([one["mixed"] for one in rounds]), "kl_on_the_way": fifths([one["kl"] for one in rounds]),
            "accuracy": fifths([one["rewards/accuracies"] for one in steps]),
            "sampled_answers": rounds[-1]["cost/sampled_answers"], "cpu_seconds": round(seconds, 1),
        }  # fmt: skip

    def judged(self, policy: Any) -> dict[str, float]:
        """True reward and KL of one answer to each test prompt, at temperature 1."""
        prompts = [encode_prompt(row, self.tokenizer) for row in self.test]
        answers = generate_ids(policy, self.tokenizer, prompts, max_new_tokens=SETTINGS["max_new_tokens"],
                               seed=EVALUATION_SEED, batch_size=256)  # fmt: skip
        rewards = true_reward(self.test, [own[0] for own in answers])
        divergence = kl_of_samples(policy, self.reference, prompts, [[one.ids for one in own] for own in answers])
        return {"reward": mean(rewards), "reward_standard_error": stdev(rewards) / len(rewards) ** 0.5,
                "kl": divergence.mean}  # fmt: skip


def main() -> None:
    arguments = parser(__doc__).parse_args()
    experiment = Experiment(
        "offline_online", "Offline, semi-online and online DPO in the pocket world",
        "True reward of one answer to each of 400 test prompts, and KL in nats per answer, mean ± standard deviation "
        "over seeds. Everything else is equal: prompts, answers to each, steps, learning rate.",
        ("reward", "kl", "sampled_answers", "cpu_seconds"), SETTINGS | {"evaluation_seed": EVALUATION_SEED},
    )  # fmt: skip
    carry_out(experiment, cells(arguments.seeds), Lab, arguments)


if __name__ == "__main__":
    main()
