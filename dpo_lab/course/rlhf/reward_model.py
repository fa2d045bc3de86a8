"""A reward model: the base model with a head that reads one number off the last token of an answer.

Trained on pairs with the Bradley–Terry loss −log σ(r(x, y_w) − r(x, y_l)) over the same loop as DPO. What it learns is
determined up to one number per prompt, since comparisons only see differences. The same module serves PPO as critic,
where it reads a number before every token instead.

B prompts with K answers each, N scored tokens, D width of the model. Stiennon et al. 2020 (arXiv 2009.01325),
Ouyang et al. 2022 (arXiv 2203.02155), Eq. 1.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpo_lab.batching import Batch, Layout, make_batch, row_lengths, split_passes
from dpo_lab.logprobs import autocast, hidden_states, usable_layout
from dpo_lab.models.inside import inner_model, output_layer, pick_device
from dpo_lab.models.loading import load_policy, save_policy
from dpo_lab.preferences.token_data import TokenData

HEAD = "reward_head.safetensors"


class RewardModel(nn.Module):
    """r_φ(x, y): a causal language model whose output layer is not used, and a linear head on its hidden states.

    seed: of the head's first weights, drawn from N(0, 1/(D + 1)) as in Stiennon et al. 2020. None starts the head at
        zero, so that every answer is worth 0: right for a critic, and slower to learn a reward from.
    """

    def __init__(self, backbone: nn.Module, *, seed: int | None = 0) -> None:
        super().__init__()
        self.backbone = backbone
        width = output_layer(backbone).weight.shape[1]
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5, generator=generator)
        self.head.to(next(backbone.parameters()).device)
        if output_layer(backbone).weight is not inner_model(backbone).get_input_embeddings().weight:
            output_layer(backbone).requires_grad_(False)  # nothing reads it, so nothing is to be learnt there

    @classmethod
    def on(cls, model: nn.Module, *, seed: int | None = 0) -> RewardModel:
        """A new reward model on a copy of `model`, which stays as it is."""
        return cls(copy.deepcopy(model).requires_grad_(True), seed=seed)

    def forward(self, batch: Batch) -> Tensor:
        """r_φ(x, y) of every answer, read at its last token. (B, K), float32"""
        return self._read(batch, last_tokens(batch).flatten()).view(batch.lengths.shape)

    def token_values(self, batch: Batch) -> Tensor:
        """One number per scored token, read at the token before it, where it is not yet chosen. (N,), float32"""
        return self._read(batch, batch.predictors)

    def _read(self, batch: Batch, places: Tensor) -> Tensor:
        hidden = hidden_states(self.backbone, batch).flatten(0, 1)[places].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden)[:, 0]

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass."""
        self.backbone.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]

    def save(self, folder: str | Path, tokenizer: Any) -> Path:
        """Write the model as `save_policy` does, and the head beside it."""
        folder = save_policy(self.backbone, tokenizer, folder)
        save_file({name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()},
                  folder / HEAD, metadata={"reads": json.dumps("last token")})  # fmt: skip
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> tuple[RewardModel, Any]:
        """What `save` wrote, in evaluation mode, and its tokenizer. ValueError where the folder has no head."""
        path = Path(folder) / HEAD
        if Path(folder).is_dir() and not path.is_file():
            raise ValueError(
                f"{folder} holds no reward model: {HEAD} is missing; give a folder that RewardModel.save wrote"
            )
        backbone, tokenizer = load_policy(folder, device=device)
        loaded = cls(backbone)
        weights = load_file(path)
        if weights["weight"].shape != loaded.head.weight.shape:
            raise ValueError(
                f"{path} is a head for width {weights['weight'].shape[1]}, the model beside it has "
                f"{loaded.head.weight.shape[1]}; copy both from one place"
            )
        loaded.head.load_state_dict(weights)
        return loaded.to(pick_device(device)).eval(), tokenizer


def last_tokens(batch: Batch) -> Tensor:
    """Flat positions in (R·T) of the last token of every answer, (B·K,); in both layouts, padded on either side."""
    if batch.spans is not None:
        ends = [end - 1 for span in batch.spans for end in span[2:]]
        return torch.tensor(ends, device=batch.input_ids.device)
    assert batch.attention_mask is not None
    rows, width = batch.attention_mask.shape
    places = torch.arange(width, device=batch.input_ids.device)
    last = (batch.attention_mask * places).argmax(-1)  # the largest position that holds a token
    return torch.arange(rows, device=last.device) * width + last


def bradley_terry_loss(rewards: Tensor) -> Tensor:
    """−log σ(r_w − r_l) per pair, from rewards (B, 2), chosen first. (B,)

    Adding a number to both rewards of a prompt changes nothing. Ouyang et al. 2022, Eq. 1, one pair per prompt;
    Bradley and Terry 1952.
    """
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1])


@torch.no_grad()
def score_rewards(
    model: RewardModel,
    data: TokenData,
    *,
    layout: Layout = "shared",
    tokens_per_pass: int = 16384,
    precision: str = "float32",
) -> np.ndarray:
    """r_φ(x, y) of a whole data set, (N, K), float32."""
    layout = usable_layout(model.backbone, layout, data)
    device = next(model.parameters()).device
    values = np.zeros((len(data), data.num_completions), np.float32)
    was_training = model.training
    model.eval()
    try:
        for indices in split_passes(np.arange(len(data)), row_lengths(data, layout), tokens_per_pass=tokens_per_pass):
            with autocast(device, precision):
                values[indices] = model(make_batch(data, indices, layout).to(device)).cpu().numpy()
    finally:
        model.train(was_training)
    return values
