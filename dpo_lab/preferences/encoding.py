"""One tokenizer at work: what it and its template put before and behind texts, found out once by trying."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_lab.preferences.chat import has_own_template, is_conversation, prompt_messages, render, split_prefill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Forty-two"
_CONTEXT = 4  # tokens of context that a decoder may need to write the next one: a character has at most four bytes


@dataclass(frozen=True)
class Ending:
    """How a completion ends: a turn is rendered with `text` behind it, of which the last `surplus` is cut off."""

    token: int | None
    text: str = ""
    surplus: str = ""


def common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    """How many leading tokens are the same."""
    size = min(len(one), len(other))
    differ = one[:size] != other[:size]
    return int(differ.argmax()) if differ.any() else size


class Encoder:
    """Texts → token ids by one tokenizer, with its start and end tokens where they belong, each once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._heads: dict[str, np.ndarray] = {}

    def ids(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, without any special token added. `verbose=False`: lengths are our own business."""
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]  # type: ignore[union-attr]

    @cached_property
    def start(self) -> np.ndarray:
        """The tokens that the tokenizer puts before a text, such as BOS; of most tokenizers none."""
        bare, full = self.ids(["a"])[0], np.array(self.tokenizer("a")["input_ids"], dtype=np.int32)
        places = [i for i in range(len(full) - len(bare) + 1) if np.array_equal(full[i : i + len(bare)], bare)]
        return full[: places[0]] if places else full[:0]

    def started(self, ids: np.ndarray, *, is_chat: bool) -> np.ndarray:
        """With the start tokens, once: a text may already begin with them, a template of its own has written them."""
        if is_chat and has_own_template(self.tokenizer):
            return ids
        already = common_prefix(ids, self.start) == len(self.start)
        return ids if already else np.concatenate([self.start, ids])

    @cached_property
    def plain_ending(self) -> Ending:
        return Ending(self.tokenizer.eos_token_id)  # type: ignore[arg-type]

    @cached_property
    def chat_ending(self) -> Ending:
        """The first special token with which the template closes an assistant turn; what follows it is cut off.

        Most templates close a turn with a marker and a line end, `<|im_end|>` and a newline: the model is to write the
        marker, and nobody waits for the newline. Where the marker is not tokenizer.eos_token, it is still the only end
        token: earlier turns end with it too, so sampling has to stop there (`end_token_id`). A template without a
        special token at this place gets tokenizer.eos_token behind what it writes.
        """
        text = render([{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}], self.tokenizer)
        if _PROBE not in text:
            raise ValueError("the tokenizer's chat template leaves out what the assistant says, so nothing can be "
                             "learnt; give the tokenizer another template")  # fmt: skip
        text = text[text.rindex(_PROBE) + len(_PROBE) :]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}  # type: ignore[operator]
        for token in self.ids([text])[0].tolist():
            marker = self.tokenizer.convert_ids_to_tokens(token)
            if token in special and isinstance(marker, str) and marker in text:
                return Ending(token, text, text[text.index(marker) + len(marker) :])
        return Ending(self.tokenizer.eos_token_id, text, text[len(text.rstrip()) :])  # type: ignore[arg-type]

    def ending(self, *, is_chat: bool) -> Ending:
        return self.chat_ending if is_chat else self.plain_ending

    def without_surplus(self, text: str, ending: Ending) -> str:
        return text[: len(text) - len(ending.surplus)] if ending.surplus and text.endswith(ending.text) else text

    def ended(self, ids: np.ndarray, ending: Ending) -> np.ndarray:
        """With the end token, once: the template, or the text itself, may have written it."""
        if ending.token is None or (len(ids) and ids[-1] == ending.token):
            return ids
        return np.append(ids, np.int32(ending.token))

    def protected(self, row: Mapping[str, Any], prompt: np.ndarray, lost: int) -> tuple[int, int]:
        """(head, tail): tokens of the prompt that truncation keeps. `lost` more have merged into the completion."""
        if not is_conversation(row):
            head = len(self.start)
            return head, 0 if head else 1  # one token stays, to predict the completion's first
        (messages, begun), tools = split_prefill(prompt_messages(row)), row.get("tools")
        closed, opened = (render(messages, self.tokenizer, tools, open_answer=is_open) for is_open in (False, True))
        header = (opened[len(closed) :] if opened.startswith(closed) else "") + begun
        return common_prefix(prompt, self._head(row)), max(1, len(self.ids([header])[0]) - lost)

    def _head(self, row: Mapping[str, Any]) -> np.ndarray:
        """Tools, system turn and the first turn's header, as tokens: what two unlike first turns have in common."""
        system = [turn for turn in prompt_messages(row)[:1] if turn["role"] == "system"]
        key = json.dumps([system, row.get("tools")], sort_keys=True, default=str)
        if key not in self._heads:
            texts = [
                render([*system, {"role": "user", "content": word}], self.tokenizer, row.get("tools"))
                for word in ("One", "Two")
            ]
            one, other = (self.started(ids, is_chat=True) for ids in self.ids(texts))
            self._heads[key] = one[: common_prefix(one, other)]
        return self._heads[key]


Ids = Sequence[int] | np.ndarray


def token_texts(tokenizer: Any, ids: Ids, *, before: Ids = ()) -> list[str]:
    """What each token of `ids` adds to the text behind the tokens `before`; together they are the whole text.

    A token by itself is not enough: decoders drop a leading space at the start of a text, and one character may be
    several tokens. So each is decoded behind its neighbours.
    """
    sequence = [int(token) for token in (*before[-_CONTEXT:], *ids)]
    start = len(sequence) - len(ids)
    texts = []
    context = max(0, start - _CONTEXT)  # the window begins here; what stands before `start` has been decoded
    for end in range(start, len(sequence)):
        old, new = decode(tokenizer, sequence[context:start]), decode(tokenizer, sequence[context : end + 1])
        is_waiting = new.endswith("\N{REPLACEMENT CHARACTER}") and end + 1 - start < _CONTEXT
        if (is_waiting or len(new) <= len(old)) and end + 1 < len(sequence):
            texts.append("")
            continue
        texts.append(new[len(old) :])
        context, start = start, end + 1
    return texts


def decode(tokenizer: Any, ids: Ids) -> str:
    return tokenizer.decode([*map(int, ids)], skip_special_tokens=False, clean_up_tokenization_spaces=False)


def tokenizer_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """All that decides which ids a tokenizer gives; None where code does, as in slow ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer)
    if backend is None or not kind.__module__.startswith("transformers."):
        return None
    started_with = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if name != "name_or_path" and not name.endswith(("_file", "_files", "_dir", "_hash"))
    }
    return {
        "class": kind.__qualname__,
        "backend": backend.to_str(),
        "special": tokenizer.special_tokens_map,
        "template": getattr(tokenizer, "chat_template", None),
        "settings": started_with,
    }


def end_token_id(tokenizer: PreTrainedTokenizerBase, *, is_chat: bool) -> int | None:
    """The token with which completions of plain text, or of conversations, end: where sampling should stop."""
    return Encoder(tokenizer).ending(is_chat=is_chat).token
