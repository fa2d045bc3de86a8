"""DPO Lab: learn Direct Preference Optimization by running it.

The names below load their modules when they are first used, so `import dpo_lab` costs nothing:
torch, transformers and matplotlib arrive with the first function that needs them.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    # A thread of torch's that waits for the others spins before it sleeps. Where other programs have the cores, it
    # spins its own time away: sampling took four times as long (data/results/threads.md). Holds if torch comes later.
    os.environ["GOMP_SPINCOUNT"] = "10000"


def face(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for the `__init__` of a folder: each name loads its module when it is first used.

    homes: module → the names it offers, separated by spaces. A module is named from the folder, or from the top.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(home)}")
        module = home[name] if home[name].startswith("dpo_lab.") else f"{package}.{home[name]}"
        value = getattr(import_module(module), name)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(home)


_HOMES = {  # in the order in which DPO is explained
    "preferences.reading": "load_preferences",
    "models.loading": "load_policy",
    "loss": "PairScores implicit_rewards",
    "losses.table": "LOSSES",
    "logprobs": "token_logps sequence_logps",
    "reference": "ReferenceCache",
    "config": "DPOConfig SFTConfig",
    "training": "train_sft train_dpo",
    "sampling": "generate",
    "workbench.evaluation.pairs": "evaluate",
    "workbench.runs.run": "Run",
    "course.rlhf.reward_model": "RewardModel",
    "course.rlhf.config": "RewardConfig PPOConfig RLOOConfig",
    "course.rlhf.reward_training": "train_reward_model",
    "course.rlhf.policy_gradient": "train_ppo train_rloo",
}
__all__ = [name for names in _HOMES.values() for name in names.split()]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = face(__name__, _HOMES)
