"""What is wrong with a run? Its log in, findings out, in order of weight. For runs of any tool, from its log alone.

    reading.py   every format of logs → one table: metric → steps and values, under our names
    findings.py  one function per cause, each with its threshold; `diagnose`
    page.py      a diagnosis as a page of HTML

A diagnosis reads curves. It has not seen data, labels or answers, so it says how sure it is and what else would do it.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "findings": "CAUSES Diagnosis Finding diagnose",
    "page": "diagnosis_page",
    "reading": "Log read_log",
})  # fmt: skip
