"""TRL's `DPOTrainer` on token ids that we give it: its own collator, log-probs, loss, metrics and training loop.

Only what comes before the batch is replaced: the ids are ours, so that both sides see the same tokens. Written for the
internals of TRL 1.16.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from dpo_lab.preferences import TokenData
from dpo_lab.preferences.unpaired import is_good

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's neighbours announce their coming changes
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

VERSION = "1.16."


class GivenTokens(DPOTrainer):
    """The trainer, with data that is tokenised already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.losses: list[float] = []
        self.rewards: list[tuple[float, float]] = []
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, *_):
        return dataset


class GivenAnswers(KTOTrainer):
    """The trainer of single answers, with data that is tokenised already, mismatched answers included."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class Recorded(GivenTokens):
    """Keeps loss and mean rewards of every step: the log rounds the loss to a few digits."""

    def compute_loss(self, *args: Any, **kwargs: Any):
        loss = super().compute_loss(*args, **kwargs)
        self.losses.append(float(loss.detach()))
        self.rewards.append(tuple(self._metrics["train"][f"rewards/{side}"][-1] for side in ("chosen", "rejected")))
        return loss


def rows_of(data: TokenData, indices: np.ndarray | range | None = None) -> datasets.Dataset:
    """The pairs as the columns that TRL's collator reads."""
    rows = [data.row(int(i)) for i in (range(len(data)) if indices is None else indices)]
    columns = {
        "prompt_ids": [row.prompt.tolist() for row in rows],
        "chosen_ids": [row.completions[0].tolist() for row in rows],
        "rejected_ids": [row.completions[1].tolist() for row in rows],
    }
    return datasets.Dataset.from_dict(columns)


def answers_of(data: TokenData, others: TokenData) -> datasets.Dataset:
    """Single answers and their mismatched ones as the columns that the collator of `KTOTrainer` reads."""
    ids = lambda part: [part.row(i).completions[0].tolist() for i in range(len(part))]
    columns = {
        "prompt_ids": [data.row(i).prompt.tolist() for i in range(len(data))],
        "completion_ids": ids(data), "KL_completion_ids": ids(others), "label": is_good(data).tolist(),
    }  # fmt: skip
    return datasets.Dataset.from_dict(columns)


def settings(folder: Path, kind: type[DPOConfig | KTOConfig] = DPOConfig, **changes: Any) -> Any:
    """What both sides have in common: float32 on the CPU, AdamW without decay, clipping at 1, one epoch.

    No gradient checkpointing, no files written, no tracker; pairs in a random order unless `changes` say otherwise.
    """
    plain: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        "num_train_epochs": 1, "weight_decay": 0.0, "max_grad_norm": 1.0, "warmup_steps": 0, "max_length": None,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(**plain | changes)


def make_trainer(
    kind: type[Any], model: Any, reference: Any, rows: datasets.Dataset, tokenizer: Any, config: DPOConfig | KTOConfig
) -> Any:
    """A trainer over `rows`; reference None with precomputed log-probs takes the model as it is now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(model=model, ref_model=reference, args=config, train_dataset=rows, processing_class=tokenizer)
