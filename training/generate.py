"""Batched continuation with a KV cache, keeping the logits that it computes on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def continue_text(
    model: Any, prompts: Tensor, count: int, *, temperature: float = 0.0, keep_logits: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(prompts with ``count`` new tokens, logits that predict all of these but the first).

    Prompts have one length, (batch, length): no padding. Temperature 0 is greedy. Generation goes on after
    an end-of-text token; the caller cuts there where it matters.
    """
    tokens = prompts
    inputs, cache = prompts, None
    kept: list[Tensor] = []
    with torch.no_grad():
        for step in range(count):
            # Without a use for them, the logits of a long prompt are not worth their memory.
            last_only = {} if keep_logits or step else {"logits_to_keep": 1}
            answer = model(input_ids=inputs, past_key_values=cache, use_cache=True, **last_only)
            cache = answer.past_key_values
            if keep_logits:
                kept.append(answer.logits)
            last = answer.logits[:, -1].float()
            if temperature > 0:
                inputs = torch.multinomial(torch.softmax(last / temperature, dim=-1), 1)
            else:
                inputs = last.argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, inputs], dim=1)
    return tokens, torch.cat(kept, dim=1) if keep_logits else None
