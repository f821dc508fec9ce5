"""Running requests without a policy, and the reference that greedy output is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from specpilot.control.calls import ControllerLike
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import RunResult, ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.drafters.base import Drafter
from specpilot.models.base import CausalLM, ForwardItem
from specpilot.targets.base import Target


def decode(
    target: Target,
    drafter: Drafter | None,
    requests: Sequence[DecodingRequest],
    controller: ControllerLike,
    max_batch: int = 1,
) -> RunResult:
    """Run the requests to their end; their outputs and cycles are then on them."""
    executor = LiveExecutor(target, drafter, keep_details=True)
    loop = ServeLoop(controller, executor, VirtualClock(), max_batch)
    for request in requests:
        executor.add(request)
    return loop.run([request.info(arrival_s=0.0) for request in requests])


def plain_greedy(model: CausalLM, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """The model's own greedy output (EOS included), each token from a fresh pass over everything before.

    Slow on purpose: with no cache there is nothing to roll back and nothing to get wrong.
    """
    context = list(prompt)
    while len(context) - len(prompt) < max_tokens:
        item = ForwardItem(model.new_cache(), context, logits_from=len(context) - 1)
        context.append(int(model.forward([item])[0][0].argmax()))
        if context[-1] in model.eos_token_ids:
            break
    return context[len(prompt) :]
