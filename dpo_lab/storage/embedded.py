"""Where the embedded models and data lie: in the installed wheel, or in the checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def embedded_path(*parts: str) -> Path:
    """The path of something embedded, such as `embedded_path("pairs", "train.jsonl.gz")`.

    An installed wheel carries it in `dpo_lab/_data/`, a checkout in `data/` beside the package.
    FileNotFoundError names both places where neither has it.
    """
    candidates = [root.joinpath(*parts) for root in (_PACKAGE / "_data", _PACKAGE.parent / "data")]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"embedded {'/'.join(parts) or 'data'} is missing: neither {candidates[0]} nor {candidates[1]} exists; "
        "install the wheel again, or build the data in a checkout with `make data`"
    )
