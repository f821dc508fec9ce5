"""The last phase: the target is frozen, the draft learns to say what the target says.

Part of the text is the target's own (on-policy distillation, arXiv 2310.08461): when the pair is served,
the draft continues text that the target wrote, and greedy text differs from what people write.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from training.corpus import WindowStream, text_prompts
from training.generate import continue_text
from training.steps import (
    Budget,
    apply,
    backward_to,
    computes_bfloat16,
    logits_of,
    make_optimizer,
    soft_target,
    softmax_of,
)

LOG_SECONDS = 30.0


@dataclass(slots=True)
class OwnText:
    """Makes batches of prompts from documents, continued by the target."""

    teacher: Any
    tokenizer: Tokenizer
    documents: Sequence[str]
    context: int
    rng: random.Random
    new: int = 48
    """Tokens that the target writes after each prompt; longer greedy text loops more than it teaches."""
    tokens: int = 3072
    """In a batch, about; prompts in one batch have the same length."""
    sampled_share: float = 0.3
    """Of the batches, sampled at temperature 1; the others are greedy."""

    def batch(self) -> tuple[Tensor, Tensor]:
        """(inputs, the target's logits after each of them)."""
        device = next(self.teacher.parameters()).device
        # Small contexts only leave room for short prompts, in a test for instance.
        longest = max(4, self.context - self.new)
        length = int(math.exp(self.rng.uniform(math.log(min(12, longest)), math.log(longest))))
        count = max(2, self.tokens // (length + self.new))
        prompts = text_prompts(self.tokenizer, self.documents, self.rng, length=length, count=count)
        temperature = 1.0 if self.rng.random() < self.sampled_share else 0.0
        tokens, logits = continue_text(
            self.teacher,
            torch.from_numpy(prompts).to(device),
            self.new,
            temperature=temperature,
            keep_logits=True,
        )
        assert logits is not None
        return tokens[:, :-1], logits


def distil(
    target: Any,
    draft: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    stream: WindowStream,
    budget: Budget,
    *,
    batch: int,
    rate: float,
    label_share: float,
    own_share: float,
    seed: int,
) -> int:
    """Train the draft alone; returns the number of tokens seen.

    The hard label is the target's first choice rather than the text's next token: greedy agreement is what
    is wanted in the end, and the rest of the loss still fits the whole distribution for sampling.
    """
    if budget.fraction >= 1:
        return 0
    device = next(draft.parameters()).device
    # A bfloat16 copy spares autocast's conversion of every weight at every generated token.
    precision = torch.bfloat16 if computes_bfloat16(device.type) else torch.float32
    teacher = copy.deepcopy(target).to(precision).eval()
    rng = random.Random(seed)
    own = OwnText(teacher, tokenizer, documents, stream.size, rng)
    optimizer = make_optimizer(draft)
    seen, logged = 0, time.monotonic()
    agreements: dict[bool, float] = {}
    while budget.fraction < 1:
        is_own = rng.random() < own_share
        if is_own:
            inputs, logits = own.batch()
            weights = torch.ones(inputs.numel(), device=device)
        else:
            windows, learned = stream.batch(batch)
            inputs = torch.from_numpy(windows[:, :-1]).to(device)
            weights = torch.from_numpy(learned).to(device).flatten()
            with torch.no_grad():
                logits = teacher(input_ids=inputs, use_cache=False).logits
        probabilities = softmax_of(logits.flatten(0, 1))
        first = probabilities.argmax(dim=-1)
        draft_logits = logits_of(draft, inputs)
        guess = softmax_of(draft_logits)
        backward_to(draft_logits, guess, soft_target(probabilities, first, label_share=label_share), weights)
        apply(optimizer, draft, budget.rate(rate))
        budget.step += 1
        seen += inputs.numel()
        same = float(((guess.argmax(-1) == first) * weights).sum() / weights.sum())
        agreements[is_own] = 0.9 * agreements.get(is_own, same) + 0.1 * same
        if time.monotonic() - logged >= LOG_SECONDS:
            logged = time.monotonic()
            shown = "  ".join(
                f"agreement on {'own text' if key else 'windows'} {value:.3f}"
                for key, value in sorted(agreements.items())
            )
            print(f"draft {budget.elapsed:6.1f} min  {seen / 1e6:6.3f} M tokens  {shown}", flush=True)
    return seen
