"""Rules for engines that are slow: each names the one part whose mending would help, and by how much.

A rule has a signature (a ratio that a healthy engine keeps below a stated limit) and a gain: tokens per
engine time with that part as good as a healthy one's, everything else as measured, over tokens per engine
time now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from specpilot.diagnosis import speed
from specpilot.diagnosis.columns import BINDINGS, TraceColumns
from specpilot.diagnosis.speed import GOOD_HAZARD, GOOD_HOST, GOOD_STEP, LONGEST, SpeedModel

Evidence = dict[str, float]

LEAST_GAIN = 1.12
"""What mending must bring before it is worth a finding."""
CLEAR_GAIN = 1.3
WEAK_HAZARD = 0.45
SLOW_STEP = 0.3
SERIAL_SLOPE = 0.2
BUSY_HOST = 0.2
LATE_SHARE = 0.5
CUT_SHARE = 0.25
DECAYED = 0.72
"""A healthy pair's first-token acceptance; draft step ÷ plain pass; further token ÷ plain pass; host share;
waiting ÷ latency; share of requests cut by the budget; acceptance on long contexts ÷ on short ones."""


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A rule's find; ``margin`` is how far beyond its limit the signature is (1: at the limit)."""

    evidence: Evidence
    gain: float
    margin: float


def weak_draft(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Few drafts are right, wherever they stand: acceptance binds, not cost."""
    found, reached = speed.hazards(trace, longest=1)
    if reached[0] < 40:
        return None
    good = np.cumprod(np.full(LONGEST, GOOD_HAZARD))
    gain = model.best(good)[1] / max(model.best()[1], 1e-9)
    if found[0] >= WEAK_HAZARD or gain < LEAST_GAIN:
        return None
    evidence = {
        "first_token_acceptance": float(found[0]),
        "drafted_cycles": float(reached[0]),
        "tokens_per_pass": model.tokens,
        "gain_with_a_good_draft": gain,
    }
    return Bottleneck(evidence, gain, WEAK_HAZARD / max(float(found[0]), 0.01))


def long_context_decay(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Acceptance falls with the context's length: the draft reads less far than the target."""
    context = trace.context_tokens + np.maximum(trace.verified_tokens - trace.proposed, 0)
    asked = trace.proposed > 0
    if asked.sum() < 200:
        return None
    bucket = np.floor(np.log2(np.maximum(context, 1))).astype(int)
    levels: list[tuple[int, float, float, float]] = []
    for value in np.unique(bucket[asked]):
        mask = asked & (bucket == value)
        # All judged tokens, so that the comparison is not of one position alone.
        judged = np.minimum(trace.accepted[mask] + 1, trace.proposed[mask]).sum()
        right = trace.accepted[mask].sum()
        if mask.sum() >= 40:
            rate = float(right) / float(judged)
            levels.append(
                (int(value), rate, math.sqrt(max(rate * (1 - rate), 1e-4) / float(judged)), float(judged))
            )
    if len(levels) < 2:
        return None
    short, long = levels[0], levels[-1]
    top = max(levels[: max(1, len(levels) // 2)], key=lambda level: level[1])
    ratio = long[1] / max(top[1], 1e-9)
    z = (top[1] - long[1]) / math.hypot(top[2], long[2])
    if ratio > DECAYED or z < 4.0 or top[1] < WEAK_HAZARD:
        return None
    good = np.cumprod(np.full(LONGEST, min(top[1], 0.97)))
    gain = max(LEAST_GAIN, model.best(good)[1] / max(model.rate, 1e-9))
    evidence = {
        "acceptance_short": top[1],
        "acceptance_long": long[1],
        "short_context_tokens": float(2 ** short[0]),
        "long_context_tokens": float(2 ** long[0]),
        "z": z,
        "gain_without_decay": gain,
    }
    return Bottleneck(evidence, gain, DECAYED / max(ratio, 0.01))


def over_drafting(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Blocks are longer than what is accepted pays for: most of them is discarded, and was not believed
    in.
    """
    drafting = trace.drafted > 0
    if drafting.sum() < 40:
        return None
    drafted = float(trace.drafted[drafting].mean())
    discarded = 1.0 - float(trace.accepted.sum()) / float(trace.drafted.sum())
    best, rate = model.best()
    gain = rate / max(model.rate, 1e-9)
    ends = trace.confidences.offsets[1:][trace.confidences.lengths() > 0] - 1
    cut = float(np.median(trace.confidences.values[ends])) if len(ends) else math.nan
    if discarded < 0.5 or drafted < best + 2 or gain < LEAST_GAIN:
        return None
    reach = float(model.survival[min(LONGEST, max(1, round(drafted))) - 1])
    if reach > 0.3:
        return None
    evidence = {
        "drafted_per_block": drafted,
        "discarded_share": discarded,
        "best_fixed_length": float(best),
        "block_accepted_to_its_end": reach,
        "gain_at_best_length": gain,
    }
    if not math.isnan(cut):
        evidence["median_confidence_at_the_cut"] = cut
    return Bottleneck(evidence, gain, gain / LEAST_GAIN)


def under_drafting(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Most blocks are accepted whole: longer ones would be too, for less time per token."""
    drafting = trace.proposed > 0
    if drafting.sum() < 40 or _plain_share(trace) > 0.5:
        return None
    whole = float((trace.accepted[drafting] == trace.proposed[drafting]).mean())
    length = float(trace.proposed[drafting].mean())
    best, rate = model.best()
    gain = rate / max(model.rate, 1e-9)
    # The model knows no end of the output, where blocks must be short: the gain has to be clear.
    if whole < 0.6 or best < length + 2 or gain < CLEAR_GAIN:
        return None
    evidence = {
        "proposed_per_block": length,
        "accepted_whole": whole,
        "best_fixed_length": float(best),
        "gain_at_best_length": gain,
    }
    return Bottleneck(evidence, gain, gain / CLEAR_GAIN)


def slow_draft(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """A draft step costs too large a part of a target pass, so that even good drafts do not pay."""
    if model.assumed or (trace.drafted > 0).sum() < 20 or not trace.tells("draft_ms"):
        return None
    ratio = model.draft_ms / max(model.pass_ms, 1e-9)
    gain = model.best(draft_ms=GOOD_STEP * model.pass_ms)[1] / max(model.rate, 1e-9)
    if ratio < SLOW_STEP or gain < LEAST_GAIN:
        return None
    evidence = {
        "draft_step_ms": model.draft_ms,
        "plain_pass_ms": model.pass_ms,
        "step_over_pass": ratio,
        "gain_with_a_fast_draft": gain,
    }
    return Bottleneck(evidence, gain, ratio / SLOW_STEP)


def verify_not_parallel(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """A pass takes longer in proportion to its width: positions are verified one after the other."""
    if model.widths < 2 or not trace.tells("verify_ms", "verified_tokens"):
        return None
    narrow = speed.decoding(trace) & speed.usable(trace)
    slope = model.token_ms / max(model.pass_ms, 1e-9)
    width = trace.verified_tokens[narrow]
    saved = float((model.token_ms * np.maximum(width - 1, 0)).sum())
    spent = float(len(trace) * model.cycle_ms)
    gain = spent / max(spent - saved, 0.05 * spent)
    # A policy that sees the slope drafts less: what parallel passes would allow counts.
    free = SpeedModel(
        model.draft_ms, model.pass_ms, 0.0, model.host_ms, model.fixed_ms, model.survival,
        model.widths, model.rate, model.cycle_ms, model.tokens,
    )  # fmt: skip
    gain = max(gain, free.best()[1] / max(model.rate, 1e-9))
    if slope < SERIAL_SLOPE or gain < LEAST_GAIN:
        return None
    evidence = {
        "pass_ms_at_one_token": model.pass_ms,
        "ms_for_each_further_token": model.token_ms,
        "slope_over_pass": slope,
        "gain_if_parallel": gain,
    }
    return Bottleneck(evidence, gain, slope / SERIAL_SLOPE)


def host_overhead(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Time goes into neither model: scheduling, copies, detokenising, the interpreter."""
    if model.assumed or not trace.tells("host_ms"):
        return None
    share = model.host_ms / max(model.cycle_ms, 1e-9)
    gain = model.cycle_ms / max(model.cycle_ms - model.host_ms + GOOD_HOST * model.pass_ms, 1e-9)
    if share < BUSY_HOST or gain < LEAST_GAIN:
        return None
    evidence = {
        "host_ms_per_cycle": model.host_ms,
        "cycle_ms": model.cycle_ms,
        "host_share": share,
        "gain": gain,
    }
    return Bottleneck(evidence, gain, share / BUSY_HOST)


def fallback_stuck(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Plain decoding goes on although the probes are accepted and drafting would pay."""
    late = np.arange(len(trace)) >= len(trace) // 4
    plain = float((trace.drafted[late] == 0).mean())
    fallback = np.isin(trace.binding, [BINDINGS.index("draft_cost"), BINDINGS.index("breaker")])
    chosen = float((fallback & (trace.drafted == 0))[late].mean())
    found, reached = speed.hazards(trace, longest=1)
    best, rate = model.best()
    gain = rate / max(model.rate, 1e-9)
    if plain < 0.6 or chosen < 0.3 or reached[0] < 20 or found[0] < 0.5 or gain < 1.15 or best < 2:
        return None
    evidence = {
        "plain_share": plain,
        "probes_accepted": float(found[0]),
        "drafted_cycles": float(reached[0]),
        "best_fixed_length": float(best),
        "gain_at_best_length": gain,
    }
    return Bottleneck(evidence, gain, gain / 1.15)


def queueing(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Requests spend their time waiting: more arrives than the engine can serve."""
    ended = ~np.isnan(trace.e2e_ms)
    if model.assumed or ended.sum() < 20 or not trace.tells("queue_ms"):
        return None
    waited = float(trace.queue_ms.sum())
    latency = float(trace.e2e_ms[ended].sum())
    share = min(1.0, waited / max(latency, 1e-9))
    span_ms = (float(trace.end_s.max()) - float(trace.start_s.min())) * 1000.0
    busy = model.cycle_ms * len(trace) / max(span_ms, 1e-9)
    refused = trace.refused / max(1, trace.arrivals)
    if share < LATE_SHARE or busy < 0.85:
        return None
    evidence = {
        "queue_share_of_latency": share,
        "utilisation": busy,
        "mean_latency_ms": latency / float(ended.sum()),
        "refused_share": refused,
        "missed_slo_share": float((~trace.met_slo[ended]).mean()),
    }
    return Bottleneck(evidence, 1.0 / max(1.0 - share, 0.05), share / LATE_SHARE)


def budget_bound(trace: TraceColumns, model: SpeedModel) -> Bottleneck | None:
    """Requests end because their target passes are spent, not because they are done."""
    causes = [cause for cause in trace.causes if cause]
    if len(causes) < 20:
        return None
    cut = causes.count("budget") / len(causes)
    if cut < CUT_SHARE:
        return None
    evidence = {
        "cut_by_the_budget": cut,
        "passes_per_request": float(trace.passes.mean()),
        "tokens_per_pass": model.tokens,
    }
    return Bottleneck(evidence, 1.0 + cut, cut / CUT_SHARE)


def _plain_share(trace: TraceColumns) -> float:
    return float((trace.drafted == 0).mean())
