"""The enumerable world for code that samples: a tokenizer of its letters, and its reward as a function of answers.

With these, everything that works on a language model (sampling, PPO, RLOO, DPO on pairs of token ids) runs in
`enumerable.py`'s world too, where the policy that comes out can be compared with π*, answer by answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_lab.worlds.enumerable import END, EnumerableWorld


def letter_tokenizer(letters: str) -> Any:
    """A transformers tokenizer of characters: 0 is the end token, then the letters, as in `ResponseTree`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(END + letters)}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)


def prompt_tokens(world: EnumerableWorld) -> list[list[int]]:
    """Every prompt as token ids, begun by the end token, as the world's own model was trained."""
    return [world.tree.encode(END + prompt).tolist() for prompt in world.table.prompts]


class LetterReward:
    """The world's true reward of sampled answers: `(prompts, answers) -> (n,)`."""

    def __init__(self, world: EnumerableWorld) -> None:
        self.rewards = world.table.rewards.numpy()
        self.prompts = {tuple(ids): x for x, ids in enumerate(prompt_tokens(world))}
        tree = world.tree
        self.answers = {tuple(tree.encode(text).tolist()): y for y, text in enumerate(tree.responses)}

    def __call__(self, prompts: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
        rows = [self.prompts[tuple(map(int, prompt))] for prompt in prompts]
        columns = [self.answers[tuple(map(int, answer.ids))] for answer in answers]
        return self.rewards[rows, columns]
