"""What can be wrong with a model's folder, its weights and its tokenizer, each with a message that explains it."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from dpo_lab.models.inside import inner_model

logger = logging.getLogger("dpo_lab")

MOST_PARTS = 10_000
"""Layers, heads or experts of a model; the largest have hundreds. Building more would go on for ever."""
PARTS = re.compile(r"num_(hidden_)?layers|n_layers?|n_head|num_(attention|key_value)_heads|(num|n)_\w*experts")
TEMPLATE_SECONDS = 5.0
"""For a conversation of two turns, which takes a template a thousandth of a second."""


def check_source(name: str) -> None:
    path = Path(name)
    if not name.strip():
        raise ValueError(
            "the name of the model is empty; give a folder, a Hub id (owner/name), 'embedded' or 'smollm2'"
        )
    if path.is_dir():
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ValueError(
                f"{name} holds a LoRA adapter without its base model, and a policy needs one whole model, for with the "
                "adapter off it would be another reference; merge the two first: dpo-lab merge ADAPTER --output FOLDER"
            )
        if not (path / "config.json").is_file():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            raise ValueError(
                f"{name} is a folder but no model: config.json is missing (it holds {held}); "
                "give a folder that save_pretrained wrote, such as RUN/model, or a .gguf file"
            )
        weights = list(path.glob("*.safetensors"))
        if not weights:
            pickled = [entry.name for entry in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
            what = f"only pickled weights ({', '.join(pickled)}), which can run code" if pickled else "no weights"
            raise ValueError(f"{name} holds {what}; convert them to safetensors with save_pretrained")
        for file in (path / "config.json", *weights):
            file.open("rb").close()  # safetensors says of a file that may not be read that it isn't there
        _check_parts(path / "config.json")
        for index in path.glob("*.safetensors.index.json"):
            _check_shards(index)
        return
    if path.is_file():
        raise ValueError(f"{name} is a file; a model is a folder with config.json, safetensors and a tokenizer, "
                         "or a .gguf file")  # fmt: skip
    if path.suffix.lower() == ".gguf":
        raise ValueError(f"no file at {name!r}; check the path of the .gguf file")
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if looks_like_path:
        raise ValueError(
            f"no model folder at {name!r}; check the path, or give a Hub id (owner/name), 'embedded' or 'smollm2'"
        )


def _check_parts(config: Path) -> None:
    try:
        found = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return  # loading explains it
    for part in (found, *(found.values() if isinstance(found, dict) else ())):
        for name, value in part.items() if isinstance(part, dict) else ():
            if PARTS.fullmatch(name) and isinstance(value, int) and value > MOST_PARTS:
                raise ValueError(f"{config} says {name} = {value}, and no model has more than {MOST_PARTS:,}; get "
                                 "config.json again from where the model came")  # fmt: skip


class _Late(Exception):
    pass


def check_template(tokenizer: Any, name: str) -> None:
    """Refuse a chat template that does not end: it is a program, and its loops can be within each other."""
    thread, interrupt = ctypes.c_ulong(threading.get_ident()), ctypes.pythonapi.PyThreadState_SetAsyncExc
    timer = threading.Timer(TEMPLATE_SECONDS, interrupt, (thread, ctypes.py_object(_Late)))
    timer.start()
    try:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tokenizer.apply_chat_template(turns, tokenize=False)
    except _Late:
        raise ValueError(f"the chat template of {name} goes on for more than {TEMPLATE_SECONDS:g} seconds over two "
                         "short turns; mend it, or get it again from where the model came") from None  # fmt: skip
    except Exception:  # it may want other turns than these; the rows will show it
        pass
    finally:
        timer.cancel()
        timer.join()


def _check_shards(index: Path) -> None:
    """A model in several files names them in an index; none of them may lie elsewhere."""
    try:
        shards = {str(shard) for shard in json.loads(index.read_bytes())["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged ({error}); copy it again from where it came") from None
    for shard in sorted(shards):
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}, which lies outside of its folder; get the model again")


def check_weights(name: str, found: Any) -> None:
    """Refuse what transformers would make up: a weight without a value in the file starts at random."""
    listed = {kind: _listed(found[f"{kind}_keys"]) for kind in ("missing", "mismatched", "unexpected")}
    for kind, what in (("missing", "are missing"), ("mismatched", "have another shape than its config.json says")):
        if listed[kind]:
            raise ValueError(
                f"{name} is not a whole causal language model: the weights {listed[kind]} {what} and would start at "
                "random; copy weights and config.json again from one place"
            )
    if listed["unexpected"]:
        logger.warning("%s holds weights that its config.json has no use for: %s", name, listed["unexpected"])


def _listed(keys: Any) -> str:
    names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def explain_loading(name: str, what: str) -> Iterator[None]:
    """Load in silence; a failed download or a broken folder becomes a ValueError with a remedy."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        raise _explained(name, what, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, as for a regular expression that it can't read
            raise
        raise ValueError(f"the {what} in {name} is damaged ({error}); copy it again from where it came") from error


@contextmanager
def explain_saving(folder: Path, remedy: str) -> Iterator[None]:
    """Save in silence; what cannot be written becomes an OSError with a remedy."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):  # the tokenizers' own
            raise
        raise OSError(f"the model cannot be written to {folder} ({error}); {remedy}") from error


def _explained(name: str, what: str, error: Exception) -> ValueError:
    text = f"{type(error).__name__}: {error}"
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in text:
        return ValueError(f"{name} brings Python code of its own; read it, then allow it with trust_remote_code=True")
    if "Unrecognized configuration class" in text:
        kind = re.search(r"(\w+)'>", text)
        return ValueError(f"{name} ({kind[1] if kind else 'its configuration'}) is no causal language model, which "
                          "predicts a text from left to right; give one that AutoModelForCausalLM loads")  # fmt: skip
    if Path(name).is_dir():
        if "backend tokenizer" in text:
            return ValueError(f"{name} holds no tokenizer; save the model's own there with tokenizer.save_pretrained")
        if isinstance(error, json.JSONDecodeError) or "JSON" in text or "HeaderToo" in text or "deserializ" in text:
            return ValueError(f"the {what} in {name} is damaged ({first}); copy it again from where it came")
        return ValueError(f"the {what} in {name} cannot be loaded: {first}")
    if Path(name).is_file():
        return ValueError(f"the {what} in {name} cannot be read ({first}); copy it again from where it came, or take a "
                          "file of an architecture that transformers reads")  # fmt: skip
    if "gated" in text.lower() or "401" in text or "403" in text:
        return ValueError(f"{name} is gated or private; accept its terms on the Hub and log in with `hf auth login`")
    if "404" in text or "RepositoryNotFound" in text or "is not a valid model identifier" in text:
        return ValueError(f"the Hub has no model {name!r}; check the spelling, or give a folder")
    return ValueError(
        f"the {what} {name!r} is no folder here and cannot be fetched from the Hub ({first}); "
        "go online once, or download it and give its folder"
    )


def check_tokenizer(model: nn.Module, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer whose ids the model has no embedding for."""
    rows = inner_model(model).get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ValueError(
            f"the tokenizer of {name} does not fit its model: it gives ids up to {largest}, the model has {rows} "
            "embeddings; use the tokenizer that the model was trained with"
        )
    if getattr(model.config, "pad_token_id", None) is None:  # Gemma 3 and 4 with their other parts have no such field
        model.config.pad_token_id = tokenizer.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its progress bars and loading reports; what matters in them is logged here."""
    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
