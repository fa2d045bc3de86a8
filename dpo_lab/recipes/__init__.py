"""A run asked for in one record, said as a command line or as Python, and carried out into a run folder.

Read in this order: `recipe` (the record and how it is written), `named` (starting points for models of the Hub),
`answers` (what the model says on the way, and what that is truly worth), `session` (from the record to the folder,
stopped at any moment).
"""

from dpo_lab.recipes.answers import answer_rows, sample_rows, true_reward
from dpo_lab.recipes.named import RECIPES, NamedRecipe
from dpo_lab.recipes.recipe import Recipe, command_line, python_code
from dpo_lab.recipes.session import Answers, Prepared, carry_out, next_folder, planned_steps

__all__ = [
    "RECIPES",
    "Answers",
    "NamedRecipe",
    "Prepared",
    "Recipe",
    "answer_rows",
    "carry_out",
    "command_line",
    "next_folder",
    "planned_steps",
    "python_code",
    "sample_rows",
    "true_reward",
]
