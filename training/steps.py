"""What a training step is made of: schedule, optimizer, and the gradients of both losses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WARM_UP = 0.03
"""Share of the run in which the learning rate rises."""


@dataclass(slots=True)
class Budget:
    """How far a run has got: by wall time, so that it ends when it should on a busy machine, or by steps."""

    minutes: float
    steps: int | None = None
    step: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Minutes since the start."""
        return (time.monotonic() - self.began) / 60

    @property
    def fraction(self) -> float:
        """0 at the start, 1 when the run is over."""
        if self.steps is not None:
            return 1.0 if self.steps == 0 else min(1.0, self.step / self.steps)
        return 1.0 if self.minutes == 0 else min(1.0, self.elapsed / self.minutes)

    def rate(self, peak: float) -> float:
        """Learning rate now: linear warm-up, then linear decay to zero."""
        at = self.fraction
        return peak * min(1.0, (at + 1e-3) / WARM_UP, (1 - at) / (1 - WARM_UP))


def make_optimizer(model: Any, *, decay: float = 0.1) -> torch.optim.AdamW:
    """AdamW; norms are not decayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def apply(optimizer: torch.optim.AdamW, model: Any, rate: float) -> None:
    """One clipped step at this learning rate."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 is quicker than float32: 1.2 times on a CPU that has it, 0.4 on one that has not."""
    return device != "cpu" or bool(torch.cpu._is_avx512_bf16_supported())


def logits_of(model: Any, inputs: Tensor) -> Tensor:
    """Logits, in bfloat16 autocast where that is quicker."""
    device = inputs.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=computes_bfloat16(device)):
        logits: Tensor = model(input_ids=inputs, use_cache=False).logits
    return logits.flatten(0, 1)


def softmax_of(logits: Tensor) -> Tensor:
    """Probabilities in float32, cut from the graph."""
    return torch.softmax(logits.detach().float(), dim=-1)


def cross_entropy(probabilities: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Mean loss over the learned positions, for the log."""
    picked = probabilities.gather(1, labels[:, None])[:, 0].clamp_min(1e-12)
    return float(-(picked.log() * weights).sum() / weights.sum())


def soft_target(teacher: Tensor, labels: Tensor, *, label_share: float) -> Tensor:
    """What the draft should predict: mostly the target's distribution, partly the text's own token."""
    mixed = teacher * (1 - label_share)
    mixed.scatter_add_(1, labels[:, None], torch.full_like(mixed[:, :1], label_share))
    return mixed


def backward_to(logits: Tensor, probabilities: Tensor, wanted: Tensor, weights: Tensor) -> None:
    """Backward pass of the mean cross-entropy against ``wanted``.

    Its gradient is (probabilities - wanted) / n, and the probabilities are there already: with a vocabulary
    this large beside a model this small, going through log-softmax and back would cost a fifth of the step.
    """
    with torch.no_grad():
        gradient = (probabilities - wanted) * (weights / weights.sum().clamp_min(1.0))[:, None]
    logits.backward(gradient.to(logits.dtype))


def backward_to_labels(logits: Tensor, probabilities: Tensor, labels: Tensor, weights: Tensor) -> None:
    """The same against the labels, without writing them out one-hot. Overwrites ``probabilities``."""
    with torch.no_grad():
        probabilities.scatter_add_(1, labels[:, None], torch.full_like(probabilities[:, :1], -1.0))
        probabilities.mul_((weights / weights.sum().clamp_min(1.0))[:, None])
    logits.backward(probabilities.to(logits.dtype))
