"""Recipes by name: models and preference sets of the Hub, with settings that somebody has published for them.

They are starting points, not results of ours. `dpo-lab recipes` prints them as command lines; in Python,
`carry_out(RECIPES["smollm2-ultrafeedback"].recipe, "runs/first")`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpo_lab.config import DPOConfig
from dpo_lab.workbench.recipes.recipe import Recipe

SMOLLM2, QWEN = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"
ULTRAFEEDBACK, HARMLESS = "trl-lib/ultrafeedback_binarized", "Anthropic/hh-rlhf:harmless-base"
QWEN_WHOLE = Recipe(
    model=QWEN, pairs=ULTRAFEEDBACK, validation=0.02,
    config=DPOConfig(
        beta=0.1, learning_rate=5e-7, batch_size=16, precision="bfloat16", gradient_checkpointing=True,
        evaluate_every=500, checkpoint_every=500,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class NamedRecipe:
    """A recipe, what it is for, and whose settings they are."""

    recipe: Recipe
    about: str
    source: str


RECIPES: dict[str, NamedRecipe] = {
    "smollm2-ultrafeedback": NamedRecipe(
        Recipe(
            model=SMOLLM2, pairs=ULTRAFEEDBACK, validation=0.02,
            config=DPOConfig(
                beta=0.5, learning_rate=1e-6, epochs=2, batch_size=128, schedule="cosine", warmup=0.1,
                precision="bfloat16", evaluate_every=100, checkpoint_every=100,
            ),
        ),
        "all 135 M weights, on judged answers to general questions; the instruct model has seen such pairs before",
        "alignment-handbook, recipes/smollm2/dpo/config_smol.yaml",
    ),
    "qwen2.5-ultrafeedback": NamedRecipe(
        QWEN_WHOLE,
        "all 0.5 B weights, on judged answers to general questions",
        "TRL, scripts/dpo.py, full training (there with Qwen2-0.5B-Instruct)",
    ),
    "qwen2.5-ultrafeedback-lora": NamedRecipe(
        replace(QWEN_WHOLE, lora=32, lora_alpha=16, config=replace(QWEN_WHOLE.config, learning_rate=5e-6)),
        "the same with an adapter: ten times the learning rate, a fraction of the memory",
        "TRL, scripts/dpo.py, LoRA (there with Qwen2-0.5B-Instruct)",
    ),
    "smollm2-harmless": NamedRecipe(
        Recipe(
            model=SMOLLM2, pairs=HARMLESS, validation=0.02,
            config=DPOConfig(
                beta=0.1, learning_rate=1e-6, batch_size=64, optimizer="rmsprop", adam_beta1=0.0, adam_beta2=0.99,
                schedule="constant", warmup=0.25, precision="bfloat16", evaluate_every=100, checkpoint_every=100,
            ),
        ),
        "all 135 M weights, on human judgements of harmlessness; the paper first fine-tunes on the chosen answers",
        "Rafailov et al. 2023, arXiv 2305.18290, appendix B (150 steps of warm-up are about a quarter of an epoch)",
    ),
}  # fmt: skip
