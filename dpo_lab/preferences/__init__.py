"""Preference pairs: what they are, how they are read from every usual layout, and how they become token ids.

    files.py        bytes on disk → raw rows, each with its place
    sources.py      a path, folder, Hub id or data set → a stream of raw rows
    raw_rows.py     columns under other names, messages as text, several answers → raw rows of one pair
    messages.py     what a valid turn is; other dialects → ours
    mending.py      text that nobody meant: what stands twice, typed end markers
    layouts.py      where the prompt is and where the answers are
    rows.py         a raw row → a row in our shape, or why not
    reading.py      load_preferences, load_examples, their lists and streams, split_rows
    chat.py         conversations → text, by a chat template
    encoding.py     one tokenizer's start and end tokens
    tokens.py       rows → token ids: border, end token, truncation
    unpaired.py     single answers with a label: pairs taken apart, mismatched answers
    token_data.py   the flat arrays that batches are cut from
    token_cache.py  all of this in one call, for a run; the next run on the same data maps what it saved
    reports.py      what was read, shortened, left out
    inspection.py   data as a model will see it, some rows as tokens
    writing.py      rows in our shape → the layouts of other tools

No torch here, and nothing about models or losses.
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "chat": "DEFAULT_CHAT_TEMPLATE completion_text prompt_text render_prompt",
    "encoding": "end_token_id",
    "inspection": "inspect_data",
    "layouts": "EXAMPLE_LAYOUTS LAYOUTS UNPAIRED_LAYOUTS",
    "reading":
        "flip_labels load_examples load_preferences of_job read_examples read_pairs read_preferences split_rows "
        "stream_examples stream_preferences",
    "reports": "BadRow Place ReadReport TokenReport",
    "token_data": "TokenData TokenRow",
    "tokens": "encode_prompt tokenize_examples tokenize_pairs tokenize_unpaired",
})  # fmt: skip
