"""DPO Lab: learn Direct Preference Optimization by running it.

The names below load their modules when they are first used, so `import dpo_lab` costs nothing:
torch, transformers and matplotlib arrive with the first function that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dpo_lab.config import DPOConfig, SFTConfig
    from dpo_lab.evaluation import evaluate
    from dpo_lab.logprobs import sequence_logps, token_logps
    from dpo_lab.losses import LOSSES, PairScores, implicit_rewards
    from dpo_lab.models import load_policy
    from dpo_lab.preferences import load_preferences
    from dpo_lab.reference import ReferenceCache
    from dpo_lab.rlhf import (
        PPOConfig,
        RewardConfig,
        RewardModel,
        RLOOConfig,
        train_ppo,
        train_reward_model,
        train_rloo,
    )
    from dpo_lab.runs import Run
    from dpo_lab.sampling import generate
    from dpo_lab.training import train_dpo, train_sft

_HOME = {
    "DPOConfig": "config",
    "SFTConfig": "config",
    "LOSSES": "losses",
    "PairScores": "losses",
    "implicit_rewards": "losses",
    "load_preferences": "preferences",
    "load_policy": "models",
    "token_logps": "logprobs",
    "sequence_logps": "logprobs",
    "generate": "sampling",
    "ReferenceCache": "reference",
    "train_dpo": "training",
    "train_sft": "training",
    "evaluate": "evaluation",
    "Run": "runs",
    "RewardModel": "rlhf",
    "RewardConfig": "rlhf",
    "PPOConfig": "rlhf",
    "RLOOConfig": "rlhf",
    "train_reward_model": "rlhf",
    "train_ppo": "rlhf",
    "train_rloo": "rlhf",
}

__all__ = [  # noqa: RUF022  in the order in which DPO is explained
    "load_preferences",
    "load_policy",
    "PairScores",
    "LOSSES",
    "implicit_rewards",
    "token_logps",
    "sequence_logps",
    "ReferenceCache",
    "DPOConfig",
    "SFTConfig",
    "train_sft",
    "train_dpo",
    "generate",
    "evaluate",
    "Run",
    "RewardModel",
    "RewardConfig",
    "train_reward_model",
    "PPOConfig",
    "train_ppo",
    "RLOOConfig",
    "train_rloo",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'dpo_lab' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(f"dpo_lab.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
