"""Labels of one's own: what is asked, what was chosen, what can be learnt from it.

    questions.py  rows of pairs → questions: a prompt, two answers, hidden sources
    files.py      lines of JSON that survive a kill
    book.py       a person's choices, kept as they are made; undo, resume
    results.py    export for `load_preferences`, win rates, the pull of the left side
    agreement.py  two books compared: raw share, Cohen's kappa, the questions on which they differ

Pure Python, no torch; the panels are in `dpo_lab.widgets`.
"""

from dpo_lab.preferences.labels.agreement import CATEGORIES, Agreement, agreement, cohen_kappa
from dpo_lab.preferences.labels.book import CHOICES, Choice, LabelBook
from dpo_lab.preferences.labels.questions import Question, Questions, questions_of, task_of
from dpo_lab.preferences.labels.results import (
    ExportReport,
    Share,
    WinRate,
    export_labels,
    export_rows,
    left_share,
    wilson,
    win_rates,
)

__all__ = [
    "CATEGORIES",
    "CHOICES",
    "Agreement",
    "Choice",
    "ExportReport",
    "LabelBook",
    "Question",
    "Questions",
    "Share",
    "WinRate",
    "agreement",
    "cohen_kappa",
    "export_labels",
    "export_rows",
    "left_share",
    "questions_of",
    "task_of",
    "wilson",
    "win_rates",
]
