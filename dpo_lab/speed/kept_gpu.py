"""What `data/gpu.py` measured, read back for tables and pictures. No torch.

{"made": {…}, "rates": {"bfloat16": [[size, operations per second], …], …}, "clock": {…},
 "models": {"30m": {"parameters": …, "ways": [{"way": …, "pairs_per_second": …}, …], "curve": {…},
                    "training": {"sft": {…}, "dpo": {…}, "judged": {"after SFT": {…}, "after DPO": {…}}}}}}
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpo_lab.embedded import embedded_path

COMMAND = "python data/gpu.py"


def read_gpu(path: str | Path | None = None) -> dict[str, Any]:
    """The results; None reads those that come along with the project. ValueError says how to make them."""
    if path is None:
        with suppress(FileNotFoundError):
            path = embedded_path("results", "gpu.json")
    if path is None or not Path(path).is_file():
        raise ValueError(f"there are no results at {path or 'results/gpu.json'}; {COMMAND} on a machine with a GPU "
                         "computes them")  # fmt: skip
    return json.loads(Path(path).read_text(encoding="utf-8"))


def best_rate(found: dict[str, Any], dtype: str = "bfloat16") -> float:
    """The largest rate of matrix products that was measured with that precision, operations per second."""
    return max(rate for _, rate in found["rates"][dtype])


def rows_of_models(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A flat row per model: size, pairs per second, memory, share of the rate, true reward before and after DPO."""
    rows = []
    for name, model in found["models"].items():
        training = model["training"]
        fastest = max(model["ways"], key=lambda way: way["pairs_per_second"])
        rows.append({
            "model": name, "parameters": model["parameters"], "way": fastest["way"],
            "pairs_per_second": fastest["pairs_per_second"], "share": fastest["share"],
            "peak_gib": fastest["peak_bytes"] / 2**30, "sft_seconds": training["sft"]["seconds"],
            "dpo_seconds": training["dpo"]["seconds"], "before": training["judged"]["after SFT"]["reward"],
            "after": training["judged"]["after DPO"]["reward"],
        })  # fmt: skip
    return rows
