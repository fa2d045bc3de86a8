"""Policies: loaded and saved (`loading`, `gguf`), checked (`checks`), looked into (`inside`), adapted (`lora`)."""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {
    "gguf": "origin_of",
    "inside": "bfloat16_gain num_parameters pick_device",
    "loading": "load_policy save_policy",
})  # fmt: skip
