"""`dpo-lab inspect` and `dpo-lab convert`: how data are read, as tokens; and written in the layouts of other tools."""

from __future__ import annotations

import json
from typing import Any

from rich.text import Text

from dpo_lab.preferences.reading import read_preferences
from dpo_lab.preferences.reports import BadRow, counted
from dpo_lab.preferences.token_cache import reading
from dpo_lab.preferences.writing import written
from dpo_lab.storage.files import write_whole
from dpo_lab.workbench.cli.inputs import print_note, print_report
from dpo_lab.workbench.cli.options import ConvertOptions, InspectOptions
from dpo_lab.workbench.cli.tables import REMEDY, check_output
from dpo_lab.workbench.cli.terminal import console

_STYLES = {"prompt": "dim", "scored": "green", "cut": "red"}


def inspect(options: InspectOptions) -> int:
    """Print the layout, the reports and some rows as tokens."""
    from dpo_lab.models.loading import load_tokenizer
    from dpo_lab.preferences.inspection import inspect_data, plain

    found = inspect_data(
        options.data, load_tokenizer(options.model, trust_remote_code=options.trust_remote_code), options.split,
        num_rows=options.rows, max_length=options.max_length, score_turns=options.score_turns, sft=options.sft,
        limit=options.limit, **reading(options, options.data),
    )  # fmt: skip
    print_report(found.read)
    print_report(found.tokens)
    if not found.tokens.kept:
        raise ValueError(f"of {options.data} no row is kept to learn from; the report above says why")
    for row in found.rows:
        console.print(f"\n{row.place}", style="bold")
        for name, parts in row.texts.items():
            line = Text.assemble((f"{name:>10} ", "bold"), *((plain(part), _STYLES[part.fate]) for part in parts))
            console.print(line, soft_wrap=True)
    print_note("\nprompt as it reads, |scored| tokens between bars, ⟨cut: what --max-length leaves out⟩")
    return 0


def _line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except (TypeError, ValueError) as problem:
        raise BadRow(None, f"cannot be written as JSON ({problem})", "give text and numbers") from None


def convert(options: ConvertOptions) -> int:
    """Read the pairs and write them in another layout."""
    check_output(options.out, (".jsonl", ".json"))
    split = options.split or ("train" if options.data == "embedded" else None)
    rows, report = read_preferences(options.data, split, limit=options.limit, **reading(options, options.data))
    print_report(report)
    done = []
    for row in rows:
        try:
            done += [_line(one) for one in written([row], options.to)]
        except BadRow as problem:
            if options.on_bad_row == "raise":
                raise problem.or_skip() from None
            print_note(f"left out: {problem}")
    text = (
        b"[" + b",\n".join(done) + b"]\n" if options.out.suffix == ".json" else b"".join(line + b"\n" for line in done)
    )
    write_whole(options.out, text, remedy=REMEDY)
    console.print(f"{counted(len(done), 'row')} written as {options.to}: {options.out}", soft_wrap=True)
    return 0
