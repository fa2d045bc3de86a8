"""A diagnosis as a page of HTML: findings, the curves that show them, and what the log could not tell."""

from __future__ import annotations

from dpo_lab.workbench.doctor.findings import Diagnosis, Finding
from dpo_lab.workbench.plots.curves import PANELS, describe_panel, plot_panel
from dpo_lab.workbench.plots.style import new_figure, to_png
from dpo_lab.workbench.runs.page import picture, terms, text, whole_page

CALM = "Nothing looks wrong"


def headline(diagnosis: Diagnosis) -> str:
    """The verdict in a sentence."""
    alarms = [finding.words.title for finding in diagnosis.findings if finding.level != "note"]
    if not alarms:
        return f"{CALM}: {', '.join(diagnosis.vitals[:3])}."
    return alarms[0] + (f". Also: {'; '.join(alarms[1:])}." if alarms[1:] else ".")


def entries(finding: Finding) -> dict[str, str]:
    """What is said of a finding, by the question that it answers."""
    words = finding.words
    return {"seen": f"{finding.seen} ({finding.sureness})", "usually means": words.means, "try": words.remedy,
            "shown in": f"notebooks/{words.notebook}.ipynb"}  # fmt: skip


def diagnosis_page(diagnosis: Diagnosis) -> str:
    """The page, which needs no other file."""
    log, rows = diagnosis.log, diagnosis.log.rows()
    found = [
        f"<h3>{text(f'{finding.level}: {finding.words.title}')}</h3>\n"
        + terms({name: text(words) for name, words in entries(finding).items()})
        for finding in diagnosis.findings
    ]
    figures = []
    for name in diagnosis.panels:
        figure = new_figure(4.6, 3.0)
        plot_panel(rows, name, ax=figure.subplots())
        figures.append(picture(to_png(figure), describe_panel(rows, name), PANELS[name].meaning))
    about = {"log": log.place, "format": log.format, "numbers": "; ".join(diagnosis.vitals)}
    about |= {"read with care": "; ".join(log.notes)} if log.notes else {}
    about |= {"not looked at": "; ".join(diagnosis.unchecked)} if diagnosis.unchecked else {}
    sections = [
        ("Findings", "\n".join(found) or f"<p>{CALM}.</p>"),
        ("Curves", '<div class="figures">' + "\n".join(figures) + "</div>"),
        ("The log", terms({name: text(words) for name, words in about.items()})),
    ]
    return whole_page("Diagnosis of a run", text(headline(diagnosis)), sections)
