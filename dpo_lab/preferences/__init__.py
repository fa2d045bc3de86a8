"""Preference pairs: what they are, how they are read from every usual layout, and how they become token ids.

    files.py      bytes on disk → raw rows, each with its place
    sources.py    a path, folder, Hub id or data set → a stream of raw rows
    messages.py   what a valid turn is; other dialects → ours
    layouts.py    where the prompt is and where the answers are
    rows.py       a raw row → a row in our shape, or why not
    reading.py    load_preferences, load_examples, stream_preferences, split_rows
    chat.py       conversations → text, by a chat template
    encoding.py   one tokenizer's start and end tokens
    tokens.py     rows → token ids: border, end token, truncation
    token_data.py the flat arrays that batches are cut from; token_files.py keeps them on a disk
    prepare.py    all of this in one call, for a run; what it made is mapped by the next run on the same data
    reports.py    what was read, shortened, left out
    labels/       pairs of one's own: a book of choices, export, agreement

No torch here, and nothing about models or losses.
"""

from dpo_lab.preferences.chat import DEFAULT_CHAT_TEMPLATE, completion_text, prompt_text, render_prompt
from dpo_lab.preferences.encoding import end_token_id
from dpo_lab.preferences.layouts import EXAMPLE_LAYOUTS, LAYOUTS
from dpo_lab.preferences.reading import (
    load_examples,
    load_preferences,
    read_examples,
    read_preferences,
    split_rows,
    stream_examples,
    stream_preferences,
)
from dpo_lab.preferences.reports import BadRow, Place, ReadReport, TokenReport
from dpo_lab.preferences.token_data import TokenData, TokenRow
from dpo_lab.preferences.tokens import encode_prompt, tokenize_examples, tokenize_pairs

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "EXAMPLE_LAYOUTS",
    "LAYOUTS",
    "BadRow",
    "Place",
    "ReadReport",
    "TokenData",
    "TokenReport",
    "TokenRow",
    "completion_text",
    "encode_prompt",
    "end_token_id",
    "load_examples",
    "load_preferences",
    "prompt_text",
    "read_examples",
    "read_preferences",
    "render_prompt",
    "split_rows",
    "stream_examples",
    "stream_preferences",
    "tokenize_examples",
    "tokenize_pairs",
]
