"""The measured blocks of README.md, filled in from the manifest so that cards and manifest cannot disagree."""

from __future__ import annotations

import json
import re
from typing import Any


def blocks(manifest: dict[str, Any], example: dict[str, Any]) -> dict[str, str]:
    """The blocks of README.md that are measured, not written: name → markdown."""
    settings, model, pairs, found = (manifest[key] for key in ("settings", "model", "pairs", "quality"))
    size = sum(file["bytes"] for path, file in manifest["files"].items() if path.startswith("models/"))
    percent = lambda share: f"{100 * share:.1f} %"
    success = {"safety": "safe conversation", "system": "system prompts", "format": "response formatting",
               "tools": "tool calls"}  # fmt: skip
    rows = {f"success, {title}": (f"success/{job}", percent) for job, title in success.items()}
    rows = {"success, all four jobs": ("success", percent)} | rows | {
        "well formed": ("well_formed", percent), "harmless requests declined": ("over_refusal", percent),
        "mean true reward": ("reward", "{:.2f}".format), "mean length in words": ("words", "{:.1f}".format),
    }  # fmt: skip
    return {
        "row": "```json\n" + spread(example) + "\n```",
        "pairs": table(["", *pairs], [
            ["pairs", *(f"{pairs[split]['pairs']:,}" for split in pairs)],
            *([f"of them {title}", *(f"{pairs[split][job]:,}" for split in pairs)] for job, title in success.items()),
            ["prompts that are among the SFT texts too", *(percent(pairs[split]["prompts_seen"]) for split in pairs)],
            ["labelled the wrong way", *(percent(pairs[split]["labelled_wrong"]) for split in pairs)],
            *([f"expected wrong at label temperature {temperature}",
               *(percent(pairs[split]["wrong_at"][temperature]) for split in pairs)]
              for temperature in next(iter(pairs.values()))["wrong_at"]),
            ["mean true reward, chosen", *(f"{pairs[split]['reward_chosen']:.2f}" for split in pairs)],
            ["mean true reward, rejected", *(f"{pairs[split]['reward_rejected']:.2f}" for split in pairs)],
        ]),
        "model": table(["", ""], [
            ["parameters", f"{model['parameters']:,}"],
            ["size on disk", f"{size / 1e6:.1f} MB, weights in {model['dtype']}"],
            ["layers, width, heads", f"{model['num_hidden_layers']}, {model['hidden_size']}, "
                                     f"{model['num_attention_heads']}"],
            ["inner width of the feed-forward layers", f"{model['intermediate_size']}"],
            ["vocabulary", f"{model['vocab_size']:,} tokens"],
            ["longest context", f"{model['max_position_embeddings']} tokens"],
            ["training texts", f"{manifest['texts']['rows']:,}"],
            ["training", f"{settings['steps']:,} steps of {settings['batch_size']} answers"],
            ["AdamW's peak learning rate", f"{settings['learning_rate']:g}"],
            ["made with", ", ".join(f"{name} {manifest['made_with'][name]}"
                                    for name in ("python", "torch", "transformers", "tokenizers"))],
        ]),
        "quality": table(["", *(f"{split} split" for split in found)], [
            [title, *(shown(found[split][name]) for split in found)] for title, (name, shown) in rows.items()
        ]),
    }  # fmt: skip


def spread(row: dict[str, Any]) -> str:
    """A row as JSON, with each message and each tool on a line of its own."""
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    lines = lambda value: "[\n" + ",\n".join(f"    {dump(entry)}" for entry in value) + "\n  ]"
    fields = (
        f"  {dump(key)}: {lines(value) if isinstance(value, list) else dump(value)}" for key, value in row.items()
    )
    return "{\n" + ",\n".join(fields) + "\n}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows))


def fill(card: str, contents: dict[str, str]) -> str:
    """The card with its blocks `<!-- name --> ... <!-- /name -->` renewed."""
    for name, text in contents.items():
        pattern = rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)"
        card, count = re.subn(pattern, lambda _, text=text: text, card, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"the card must have the block <!-- {name} --> once, it has it {count} times")
    return card
