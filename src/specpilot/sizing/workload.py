"""What a plan is made for: requests from an agreement trace, or drawn from a few numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from specpilot.control.contexts import BUCKET_EDGES, bucket_of
from specpilot.sizing.arithmetic import MAX_DRAFT, check
from specpilot.trace.agreement import AgreementTrace

BUCKETS = (
    f"≤ {BUCKET_EDGES[0]}",
    *(f"{low + 1}–{high}" for low, high in pairwise(BUCKET_EDGES)),
    f"> {BUCKET_EDGES[-1]}",
)
"""How the prompt-length buckets are called, shortest first."""


def from_numbers(
    hazards: Sequence[float], prompts: Sequence[int], max_tokens: int, *, count: int, seed: int
) -> list[AgreementTrace]:
    """Traces whose bits are drawn: P(agree) depends on how many agreed in a row before.

    ``hazards[j]`` is that probability after j agreements; the last one holds beyond. Prompt lengths are
    taken in turn.

    Raises:
        ValueError: for a hazard outside 0…1, a prompt length below 1, or no prompts.
    """
    check(hazards)
    if not prompts or min(prompts) < 1:
        raise ValueError(f"prompt_tokens: {list(prompts)} is not a list of counts ≥ 1; give e.g. 200")
    rng = random.Random(seed)
    traces = []
    for index in range(count):
        bits: list[int] = []
        run = 0
        for _ in range(max_tokens):
            bit = int(rng.random() < hazards[min(run, len(hazards) - 1)])
            bits.append(bit)
            run = run + 1 if bit else 0
        prompt = prompts[index % len(prompts)]
        traces.append(AgreementTrace(f"drawn-{index}", prompt, tuple(bits), ended="max_tokens"))
    return traces


def hazards_by_length(traces: Sequence[AgreementTrace]) -> dict[int, tuple[float, ...]]:
    """P(agree | all before in the block agreed) by position, by prompt-length bucket.

    Every output position counts as a place where a block may start. A position that was reached fewer
    than 20 times takes its predecessor's value; unknown bits end a block.
    """
    reached: dict[int, list[int]] = {}
    agreed: dict[int, list[int]] = {}
    for trace in traces:
        bucket = bucket_of(trace.prompt_tokens)
        seen = reached.setdefault(bucket, [0] * MAX_DRAFT)
        good = agreed.setdefault(bucket, [0] * MAX_DRAFT)
        for start in range(len(trace.agree)):
            for place, bit in enumerate(trace.agree[start : start + MAX_DRAFT]):
                if bit is None:
                    break
                seen[place] += 1
                good[place] += bit
                if not bit:
                    break
    return {bucket: _rates(reached[bucket], agreed[bucket]) for bucket in sorted(reached)}


def _rates(reached: Sequence[int], agreed: Sequence[int]) -> tuple[float, ...]:
    rates: list[float] = []
    for seen, good in zip(reached, agreed, strict=True):
        if rates and seen < 20:
            rates.append(rates[-1])
        else:
            rates.append(good / seen if seen else 0.0)
    return tuple(rates)


def shifted(traces: Sequence[AgreementTrace], share: float, seed: int) -> list[AgreementTrace]:
    """The traces with better or worse acceptance: that share of the rejections agrees, or the reverse.

    Args:
        traces: without unknown bits.
        share: > 0 turns so many of the rejections into agreements, < 0 so many agreements into rejections.
        seed: of which ones.
    """
    turned = 0 if share > 0.0 else 1
    result = []
    for trace in traces:
        rng = random.Random(f"{seed}:{trace.request}")
        bits = tuple(
            1 - bit if bit is not None and bit == turned and rng.random() < abs(share) else bit
            for bit in trace.agree
        )
        result.append(replace(trace, agree=bits))
    return result


def share_of(traces: Sequence[AgreementTrace]) -> Mapping[int, float]:
    """Each bucket's share of the traces."""
    counts: dict[int, int] = {}
    for trace in traces:
        bucket = bucket_of(trace.prompt_tokens)
        counts[bucket] = counts.get(bucket, 0) + 1
    return {bucket: count / len(traces) for bucket, count in sorted(counts.items())}
