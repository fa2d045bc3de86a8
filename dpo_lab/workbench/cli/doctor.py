"""`dpo-lab doctor`: what the log of a run says is wrong with it. Loads no torch."""

from __future__ import annotations

import numpy as np

from dpo_lab.storage.files import write_whole
from dpo_lab.workbench.cli.options import DoctorOptions
from dpo_lab.workbench.cli.tables import REMEDY, check_output
from dpo_lab.workbench.cli.terminal import console
from dpo_lab.workbench.doctor.findings import Diagnosis, diagnose
from dpo_lab.workbench.doctor.page import diagnosis_page, entries, headline
from dpo_lab.workbench.plots.curves import PANELS

_BARS, _WIDTH = "▁▂▃▄▅▆▇█", 40


def doctor(options: DoctorOptions) -> int:
    """Print the findings in order of weight, with the curves that show them."""
    if options.html is not None:
        check_output(options.html, (".html",))
    diagnosis = diagnose(options.log, options.other)
    write = lambda words, style="": console.print(words, style=style, markup=False, soft_wrap=True)
    write(headline(diagnosis), "bold")
    for number, finding in enumerate(diagnosis.findings, start=1):
        write(f"\n{number}. {finding.level}: {finding.words.title}", "bold")
        for name, words in entries(finding).items():
            write(f"   {name}: {words}")
    write("")
    for line in sparks(diagnosis):
        write(line)
    for name, words in (("numbers", diagnosis.vitals), ("read with care", diagnosis.log.notes),
                        ("not looked at", diagnosis.unchecked)):  # fmt: skip
        if words:
            write(f"{name}: {'; '.join(words)}", "dim")
    if options.html is not None:
        write_whole(options.html, diagnosis_page(diagnosis).encode(), remedy=REMEDY)
        write(f"page: {options.html}")
    return 0


def sparks(diagnosis: Diagnosis) -> list[str]:
    """The curves that matter, each as a line of at most 40 bars from its lowest to its highest value."""
    lines = []
    for curve in (curve for name in diagnosis.panels for curve in PANELS[name].curves):
        for prefix in ("", "eval_"):
            values = diagnosis.log.values(prefix + curve.metric)
            if len(values) > 2:
                means = np.array([part.mean() for part in np.array_split(values, min(_WIDTH, len(values)))])
                levels = (means - means.min()) / (np.ptp(means) or 1.0) * (len(_BARS) - 1)
                bars = "".join(_BARS[level] for level in levels.round().astype(int))
                lines.append(f"{prefix + curve.metric:>24} {bars} {values[0]:.3g} → {values[-1]:.3g}")
    return lines
