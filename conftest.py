"""What the notebooks' own test run needs: `pytest --nbval --nbval-current-env notebooks`, as `make test` calls it."""

from __future__ import annotations

import os
import tempfile

import pytest

from dpo_lab.storage.logp_store import default_cache_path

# Student versions lack their solutions on purpose; tests/test_student_notebooks.py. Translations have the same cells.
collect_ignore_glob = ["notebooks/[a-z]*/*"]

# Models converted from .gguf files, which are made once and checked at every use, stay in the user's cache.
os.environ.setdefault("DPO_LAB_MODELS", str(default_cache_path().with_name("models")))
# A kernel inherits this process's environment: no notebook touches the user's reference cache or a network.
os.environ.setdefault("DPO_LAB_CACHE", tempfile.mkdtemp(prefix="dpo-lab-notebooks-"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """nbval waits five seconds for what a cell printed; a loaded machine needs longer."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = 60  # type: ignore[attr-defined]
