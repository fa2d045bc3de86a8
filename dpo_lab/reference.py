"""The reference's log-probabilities, computed once, stored on disk, never wrong.

DPO needs log π_ref(y|x) of every pair, and the reference never changes: so it is scored in one pass before training,
and no second model has to stay in memory. Three questions make it right, and this file answers them in order:

    fingerprint   which model is it?            its weights, configuration and adapters, hashed
    row_keys      which value is it?            the fingerprint, the precision, and a pair's token ids after truncation
    logps         what hits, and what misses?   stored values are read, the rest is scored and stored

The loss, β, the learning rate, the order and the output folder are in no key, so they change nothing; whatever would
change a value changes the key, so nothing stale is ever served. `storage.logp_store` is the file behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import nn

from dpo_lab.batching import Layout
from dpo_lab.engine.engine import Engine
from dpo_lab.logprobs import SCORING_VERSION, score
from dpo_lab.models.inside import inner_model
from dpo_lab.models.lora import adapted_layers, base_weights, is_off
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.storage.logp_store import LogpStore
from dpo_lab.storage.token_files import release

BLOCK = 2**14
"""Pairs that are looked for, and then scored, together: their keys and tokens are in memory meanwhile."""
# Settings that say where a model came from or how it is stored: they change with saving and loading, its values do not.
_UNHASHED_SETTINGS = {"_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "torch_dtype"}


# ── which model is it? ───────────────────────────────────────────────────────────────────────────────────────────────


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over what a model is: its class, its configuration, the state of its adapters, and every weight's name,
    type, shape and bytes. As hex. A model whose adapters are switched off is its base, and has its base's."""
    inner = inner_model(model)
    is_base = is_off(model)
    what = {
        "class": type(inner).__qualname__,
        "settings": _hashed_settings(inner.config.to_dict()),
        "adapters": [] if is_base else _adapter_states(model),
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode())
    for name, tensor in sorted((base_weights(model) if is_base else model.state_dict()).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hashed_settings(settings: Any) -> Any:
    """The settings without those of `_UNHASHED_SETTINGS`, in a configuration's parts too."""
    if not isinstance(settings, dict):
        return settings
    return {str(key): _hashed_settings(value) for key, value in settings.items() if key not in _UNHASHED_SETTINGS}


def _adapter_states(model: nn.Module) -> list[Any]:
    """What decides an adapter's part beside its weights: its scale, and whether it is on, off or merged (peft)."""
    return [
        (name, getattr(layer, "scaling", None), layer.active_adapters, layer.merged_adapters, layer.disable_adapters)
        for name, layer in adapted_layers(model)
    ]


# ── which value is it? ───────────────────────────────────────────────────────────────────────────────────────────────


def scoring_conditions(model: nn.Module, precision: str) -> str:
    """What besides weights and tokens decides a value: the precision, the kind of device, the scoring code, and the
    release of transformers, whose model code computes the forward pass."""
    parameter = next(model.parameters())
    release = ".".join(transformers.__version__.split(".")[:2])
    return f"{precision} {parameter.dtype} {parameter.device.type} v{SCORING_VERSION} transformers {release}"


def row_keys(model_fingerprint: str, data: TokenData, conditions: str, rows: slice = slice(None)) -> list[bytes]:
    """One 16-byte key per row of `data`, or of a run of its rows."""
    prefix = hashlib.blake2b(f"{model_fingerprint} {conditions}".encode(), digest_size=16)
    keys = []
    bounds, ids = np.asarray(data.bounds[rows]), np.asarray(data.ids)
    relative = np.ascontiguousarray(bounds - bounds[:, :1], "<i8")
    for (start, *_, end), own in zip(bounds.tolist(), relative, strict=True):
        digest = prefix.copy()
        digest.update(own.tobytes())
        digest.update(np.ascontiguousarray(ids[start:end], "<i4").tobytes())
        keys.append(digest.digest())
    release(data.ids)
    release(data.bounds)
    return keys


# ── what hits, and what misses? ──────────────────────────────────────────────────────────────────────────────────────


class CachedLogps(NamedTuple):
    """What a call of `ReferenceCache.logps` found and did."""

    values: np.ndarray  # (N, K) float32, nats
    num_found: int
    num_computed: int


class ReferenceCache(LogpStore):
    """Summed log-probs of completions under frozen models, in one file that several processes may share.

    path: the file; by default `reference.sqlite` in the folder that DPO_LAB_CACHE names, or in ~/.cache/dpo-lab.
    Rows are stored after every pass through the model, so a killed process loses at most one pass. Threads may share
    one object: a notebook opens the cache in one thread and trains in another.
    """

    def logps(
        self,
        model: nn.Module,
        data: TokenData,
        *,
        precision: str = "float32",
        layout: Layout = "shared",
        tokens_per_pass: int = 16384,
        progress: Callable[[int, int], None] | None = None,
        engine: Engine | None = None,
    ) -> CachedLogps:
        """log π(y|x) of every completion in `data`: found in the store, or computed now and stored.

        progress: called with (pairs done, pairs to compute) after each pass.
        engine: of several processes, each computes and stores its share of what the main process did not find.

        What a killed process left to do is cut into other passes than the whole would be; values differ by rounding.
        """
        engine = engine or Engine(next(model.parameters()).device)
        name, conditions = fingerprint(model), scoring_conditions(model, precision)
        values = np.zeros((len(data), data.num_completions), np.float32)
        is_missing = np.ones(len(data), bool)
        # In blocks: beside the values, no more than a block's keys and tokens are held, whatever the size of the data.
        blocks = [slice(start, min(start + BLOCK, len(data))) for start in range(0, len(data), BLOCK)]
        num_to_compute = 0
        for block in blocks:
            keys = row_keys(name, data, conditions, block)
            # The main process looks for all: others might see the file a moment later, and would score other rows.
            stored = engine.processes.broadcast_from_main(partial(self.lookup, keys, data.num_completions))
            values[block], is_missing[block] = stored
            num_to_compute += len(set(compress(keys, is_missing[block])))
        num_done = 0

        def report(num: int) -> None:
            nonlocal num_done
            num_done = min(num_done + num, num_to_compute)
            if progress is not None:
                progress(num_done, num_to_compute)

        for block in blocks:
            rows = block.start + np.flatnonzero(is_missing[block])
            if len(rows):
                missing = data.select(rows)
                values[rows] = self._compute(
                    model, missing, row_keys(name, missing, conditions), engine, report,
                    layout=layout, tokens_per_pass=tokens_per_pass, precision=precision,
                )  # fmt: skip
        return CachedLogps(values, len(data) - int(is_missing.sum()), num_to_compute)

    def _compute(
        self, model: nn.Module, data: TokenData, keys: list[bytes], engine: Engine, report: Callable[[int], None],
        **options: Any,
    ) -> np.ndarray:  # fmt: skip
        """Values (N, K) of rows that are not stored, which then they are. A pair that stands several times is computed
        once."""
        row_of = {key: row for row, key in reversed(list(enumerate(keys)))}  # the first row that has it
        rows = np.array(sorted(row_of.values()), np.int64)

        def store(indices: np.ndarray, scored: np.ndarray) -> None:
            for row, value in zip(rows[indices], scored, strict=True):
                if not np.isfinite(value).all():
                    raise FloatingPointError(
                        f"the reference gives log-probs {value.tolist()} for row {int(data.source_rows[row])}; "
                        "its weights are broken, or float16 overflows: try precision bfloat16 or float32"
                    )
            self.write([keys[row] for row in rows[indices]], scored)
            report(len(indices) * engine.processes.count)  # the other processes are about as far

        scored = score(model, data.select(rows), progress=store, engine=engine, **options)
        if engine.processes.count > 1:
            engine.processes.broadcast_from_main(lambda: self.add([keys[row] for row in rows], scored))
        return scored[np.searchsorted(rows, [row_of[key] for key in keys])]

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
