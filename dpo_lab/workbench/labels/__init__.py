"""Labels of one's own: the questions, the choices, and what can be learnt from them.

    questions.py  rows of pairs → questions: a prompt, two answers, hidden sources
    book.py       a person's choices, written as they are made; undo, resume
    results.py    export for `load_preferences`, win rates, the pull of the left side
    two_books.py  two books compared: raw share, Cohen's kappa, the questions on which they differ

No torch; the panels are in `dpo_lab.workbench.widgets`.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "two_books": "Agreement CATEGORIES agreement cohen_kappa",
    "book": "CHOICES Choice LabelBook",
    "questions": "Question Questions questions_of task_of",
    "results": "ExportReport Share WinRate export_labels export_rows left_share wilson win_rates",
})  # fmt: skip
