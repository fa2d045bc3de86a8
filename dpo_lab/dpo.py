"""DPO on one page: the loss, the log-probabilities, one step, the loop. Plain PyTorch, no trick, none of the package.

Both answers of a pair are rows of their own, padded on the right; the reference is a second model that runs in every
step. `training.train_dpo` computes the same faster and survives a kill; tests hold all its ways against this page.
Rafailov et al. 2023, arXiv 2305.18290. B pairs, R rows of T tokens; log-probs are in nats.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of the prompt, the chosen and the rejected answer. A prompt has at least one token."""


def dpo_loss(policy_logps, reference_logps, beta):
    """-log σ(β·(a - b)), with a and b the log-ratios log π/π_ref of chosen and rejected. Returns (B,). Eq. 7.

    The log-probs are those of chosen and rejected, (B, 2). Where policy and reference are equal the loss is log 2.
    """
    chosen, rejected = (policy_logps - reference_logps).unbind(1)
    return -F.logsigmoid(beta * (chosen - rejected))


def completion_logps(model, pairs):
    """log π(y|x) of both answers of every pair: the sum over the answer's tokens, (B, 2), float32."""
    rows = [torch.tensor([*prompt, *answer]) for prompt, *answers in pairs for answer in answers]
    ids = pad_sequence(rows, batch_first=True).to(model.device)  # (R, T)
    starts = torch.tensor([len(prompt) for prompt, _, _ in pairs]).repeat_interleave(2)  # of the answers, (R,)
    ends = torch.tensor([len(row) for row in rows])
    # Masks come from lengths, never from the pad token: that one often is the end token, which is scored.
    place = torch.arange(ids.shape[1])
    is_token = place < ends[:, None]
    is_answer = is_token & (place >= starts[:, None])
    logits = model(input_ids=ids, attention_mask=is_token.long().to(ids.device)).logits.float()
    # The logits at a place are about the next token, so the first token of a row has none.
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (R, T-1)
    return (logps * is_answer[:, 1:].to(ids.device)).sum(-1).view(-1, 2)


def dpo_step(policy, reference, optimizer, pairs, beta, max_grad_norm=1.0):
    """One step on a batch of pairs. Returns its mean loss and mean margin of the implicit rewards, before the step."""
    with torch.no_grad():
        reference_logps = completion_logps(reference, pairs)
    policy_logps = completion_logps(policy, pairs)
    loss = dpo_loss(policy_logps, reference_logps, beta).mean()  # over pairs: a longer answer does not count for more
    loss.backward()
    clip_grad_norm_(policy.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    rewards = beta * (policy_logps.detach() - reference_logps)
    return loss.item(), (rewards[:, 0] - rewards[:, 1]).mean().item()


def train(policy, reference, pairs, *, beta=0.1, learning_rate=1e-6, batch_size=32, epochs=1, warmup=0.1, seed=0):
    """Train `policy` in place and yield (loss, margin) after every step. `reference` stays as it is.

    The learning rate rises over the share `warmup` of all steps, then falls to zero along a line. Policy and reference
    are scored without dropout, or their ratio would be noise. The defaults suit a large pretrained model; those of
    `DPOConfig` suit the embedded one.
    """
    policy.eval()
    reference.eval()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.0)
    batches = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(pairs))
        batches += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_warmup = min(round(warmup * len(batches)), len(batches) - 1)
    for step, batch in enumerate(batches):
        rising = (step + 1) / (num_warmup + 1)
        falling = 1 - (step - num_warmup) / (len(batches) - num_warmup)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(rising, falling)  # the one that is below 1
        yield dpo_step(policy, reference, optimizer, [pairs[i] for i in batch], beta)
