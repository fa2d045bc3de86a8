"""The same numbers, faster or on many devices. One door for training: `Engine`.

engine.py        what a training needs to know: passes, whole weights, checkpoints
paths.py         which fast ways give a model's own values
attention.py     attention over shared rows; block_attention.py in blocks, for a GPU
output_layer.py  log-probs of targets, without the logits of every token
two_halves.py    two halves of a pass at once, on a CPU
processes.py     several processes that train one model; shards.py splits its weights over them
sampler.py       answers, token by token; key_store.py keeps what a model needs to go on
compiling.py     parts of a model, compiled in place
"""

from dpo_lab import face

__getattr__, __dir__ = face(__name__, {"engine": "Engine"})
