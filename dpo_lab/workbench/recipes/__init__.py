"""A run described in one record, written as a command line or as Python, and carried out into a run folder.

Read in this order: `recipe` (the record and how it is written), `named` (starting points for models of the Hub),
`answers` (what the model answers, and what that is truly worth), `session` (from the record to the folder, stopped at
any moment).
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "answers": "answer_rows sample_row true_reward",
    "named": "NamedRecipe RECIPES",
    "recipe": "Recipe command_line python_code",
    "session": "Answers Prepared carry_out next_folder planned_steps",
})  # fmt: skip
