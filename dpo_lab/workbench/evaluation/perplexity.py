"""Does a model still know plain text, and how likely does it find good answers? Nats per token and perplexity.

Perplexity is exp(nats per token); the ratio to the reference's, exp(difference), says how much the model lost: 1 is
nothing. Intervals are block bootstraps: tokens of one block (512 tokens of text, or one answer) are drawn together.
"""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import numpy as np
from torch import nn

from dpo_lab.logprobs import score
from dpo_lab.metrics import scored_lengths
from dpo_lab.models.inside import inner_model
from dpo_lab.preferences.encoding import Encoder
from dpo_lab.preferences.token_data import TokenData
from dpo_lab.workbench.evaluation.intervals import ratio


def perplexity_of(
    model: nn.Module, data: TokenData,
    *, reference: nn.Module | None = None, precision: str = "float32", tokens_per_pass: int = 16384, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Nats per token and perplexity of the completions of `data` (K = 1: blocks of text, or answers), as JSON.

    reference: adds its perplexity, and the ratio model/reference on the same tokens, drawn together.
    """
    if data.num_completions != 1 or not len(data):
        raise ValueError(
            f"perplexity needs rows of one completion, at least one row, got {len(data)} of {data.num_completions}; "
            "make them with text_blocks or tokenize_examples"
        )
    tokens = scored_lengths(data)[:, 0]
    nats_of = lambda one: -score(one, data, precision=precision, tokens_per_pass=tokens_per_pass)[:, 0].astype(float)
    nats = nats_of(model)
    found: dict[str, Any] = {
        "nats_per_token": ratio(nats, tokens, seed=seed),
        "perplexity": ratio(nats, tokens, of=np.exp, seed=seed),
    }
    if reference is not None:
        frozen = nats_of(reference)
        found["reference_perplexity"] = ratio(frozen, tokens, of=np.exp, seed=seed)
        found["ratio_to_reference"] = ratio(nats - frozen, tokens, of=np.exp, seed=seed)
    return found | {"num_tokens": int(tokens.sum()), "num_blocks": len(data)}


def text_blocks(
    text: str, tokenizer: Any, *, block: int = 512, num_tokens: int | None = 20_000, model: nn.Module | None = None
) -> TokenData:
    """The first `num_tokens` tokens of a text in blocks, each read for itself; None takes all of it.

    A block's first token is scored only where the tokenizer puts a start token before it. A model that was made for
    fewer than `block` positions gets blocks of as many.
    """
    if block < 2:
        raise ValueError(f"block must be at least 2 tokens, got {block}; 512 is usual")
    encoder = Encoder(tokenizer)
    limit = getattr(inner_model(model).config, "max_position_embeddings", None) if model is not None else None
    size = min(block, limit or block) - len(encoder.start)
    ids = encoder.ids([text])[0][:num_tokens]
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    parts = [part for part in parts if len(part) + len(encoder.start) > 1]  # else there is nothing to predict it from
    if not parts:
        raise ValueError(f"the text has {len(ids)} tokens, and perplexity needs at least 2; give a longer one")
    return TokenData.from_rows((encoder.start, (part,)) for part in parts)


def text_facts(text: str, tokenizer: Any, num_tokens: int | None = 20_000) -> dict[str, Any]:
    """What identifies the measured text: the SHA-256 of all of it, and the share of its tokens the tokenizer lacks."""
    ids = Encoder(tokenizer).ids([text])[0][:num_tokens]
    unknown = tokenizer.unk_token_id
    return {
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "unknown_tokens": 0.0 if unknown is None else float((ids == unknown).mean()),
    }


def standard_text() -> tuple[str, str]:
    """(name, text): the prose of the Python language reference, which comes with every Python (PSF licence).

    Paragraphs of at least 20 words that are no code, in the order of their topics. It changes a little with Python's
    version, so results compare where the SHA-256 is the same.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ValueError("this Python came without its documentation (pydoc_data); give a text of your own") from error
    everything = [part for name in sorted(topics) for part in topics[name].split("\n\n")]
    prose = [" ".join(part.split()) for part in everything if part and not part[0].isspace()]
    prose = dict.fromkeys(part for part in prose if len(part.split()) >= 20)
    return f"reference of Python {platform.python_version()}", "\n\n".join(prose)
