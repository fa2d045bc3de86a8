"""The pocket world: a small chat world in plain English, in which the true quality of every answer can be computed.

Four jobs, the ones that DPO is used for: safe conversation, system prompts, response formatting and tool calls.
`sample_conversation` asks, `write_answer` answers well or badly, `judge` says how good any answer is and why.
Everything comes from `random.Random`, so a seed gives the same text everywhere. No torch, no tokens.
"""

from __future__ import annotations

from random import Random

from dpo_lab.worlds.pocket.judge import SPECS, judge
from dpo_lab.worlds.pocket.schema import JOBS, Conversation, Job, Split, Verdict
from dpo_lab.worlds.pocket.template import POCKET_CHAT_TEMPLATE
from dpo_lab.worlds.pocket.writer import flaw_names, write_answer

__all__ = [
    "JOBS", "POCKET_CHAT_TEMPLATE", "Conversation", "Verdict", "flaw_names", "judge", "sample_conversation",
    "write_answer",
]  # fmt: skip


def sample_conversation(rng: Random, job: Job | None = None, split: Split = "train") -> Conversation:
    """A conversation that ends where the assistant must speak. None draws the job, each as likely.

    The test split has people, places, things, foods and ways of asking that the train split never uses.
    """
    job = rng.choice(JOBS) if job is None else job
    if job not in SPECS:
        raise ValueError(f"job {job!r} is not known; choose one of {', '.join(JOBS)}")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is not known; choose train or test")
    return SPECS[job].sample(rng, split)
