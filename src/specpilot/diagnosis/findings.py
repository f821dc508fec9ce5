"""From a trace to findings: all rules, ranked, one primary cause.

Order: what makes output wrong comes first, then what makes drafts wrong, then a policy that does not draft,
then bottlenecks by the gain their mending would bring. A finding that another one explains ranks behind it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specpilot.diagnosis import bottlenecks, correctness, sampling, speed
from specpilot.diagnosis.bottlenecks import Bottleneck
from specpilot.diagnosis.columns import TraceColumns
from specpilot.diagnosis.correctness import Signature
from specpilot.diagnosis.rescore import CONFIRMED, REFUTED, Rescored
from specpilot.diagnosis.speed import SpeedModel

HEALTHY = "healthy"
REMEDIES: dict[str, str] = {
    "unverified_emission": (
        "Emit nothing beyond the pass that verified it: accepted tokens and one token of the target. "
        "Check paths that skip or reuse a pass (caches, early exit, time-outs). Output is wrong until "
        "then."
    ),
    "non_prefix_accept": (
        "Cut the block at its first rejected token; tokens behind it were drafted after a wrong one. "
        "Output is wrong until then."
    ),
    "missing_bonus_token": (
        "After a full accept append the target's own token, and feed it (with the last drafted one) "
        "to the draft before the next block."
    ),
    "tokenizer_mismatch": (
        "Compare the two tokenizers: ids, special tokens, merges (`specpilot audit`). Use a draft of "
        "the target's family, or map the ids."
    ),
    "kv_misalignment": (
        "Check the draft's cache after a rejection: it must be cut to the accepted tokens, with "
        "positions to match. Compare with a draft whose cache is rebuilt in every cycle."
    ),
    "sampling_mismatch": (
        "Apply the request's temperature, top-k and top-p to the draft as to the target, and pass on "
        "the very distribution that each token was drawn from. What is emitted must be the target's own "
        "draw (or an accepted one), under noise that no other position has."
    ),
    "fallback_stuck": (
        "Let accepted probes end the fallback; check the breaker, max_draft and the probes' interval, "
        "and that the mode is on."
    ),
    "weak_draft": (
        "Use a draft closer to the target (same family, distilled on its output), prompt lookup for "
        "copied text, or none at all: `specpilot plan` compares."
    ),
    "long_context_decay": (
        "Give the draft a context as long as the target's, check its position scaling, or draft less "
        "on long prompts (the policy does so by itself)."
    ),
    "over_drafting": (
        "Draft less: lower the fixed length, or let confidence stop the block (specpilot's policy)."
    ),
    "under_drafting": "Draft more: raise the fixed length or max_draft, or let the policy choose.",
    "slow_draft": (
        "Make the draft step cheaper: a smaller model, a compiled graph, the same device as the "
        "target, fewer host round trips per step."
    ),
    "verify_not_parallel": (
        "Verify the block in one pass: check for a loop over positions, an attention kernel without "
        "multi-token queries, or a batch that is compute-bound already."
    ),
    "host_overhead": (
        "Profile what runs between the passes: detokenising, logging, copies, locks, the scheduler."
    ),
    "queueing": ("Add replicas or shed load: more arrives than is served. A shorter cycle helps second."),
    "budget_bound": (
        "Raise the pass budget, ask for fewer tokens, or get more tokens per pass (`specpilot plan` "
        "says what is feasible)."
    ),
    HEALTHY: "Nothing to mend.",
}
CAUSES = tuple(REMEDIES)


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, the numbers that show it, what to do, and how sure it is (0…1)."""

    cause: str
    confidence: float
    evidence: Mapping[str, float]
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """The finding as a JSON object."""
        return {
            "cause": self.cause,
            "confidence": round(self.confidence, 3),
            "evidence": {name: _rounded(value) for name, value in self.evidence.items()},
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings, the primary one first; a healthy trace has one, ``healthy``."""

    trace: TraceColumns
    model: SpeedModel
    findings: tuple[Finding, ...]
    not_told: tuple[str, ...] = field(default=())
    """Fields that the trace's source cannot tell; rules that need them were not asked."""
    rescored: Rescored | None = None
    """What the draft model says with a fresh cache, where it was asked."""

    @property
    def primary(self) -> str | None:
        """The primary cause; ``None`` if the trace is healthy."""
        return None if self.findings[0].cause == HEALTHY else self.findings[0].cause

    def to_json(self) -> dict[str, Any]:
        """The command line's result."""
        return {
            "trace": self.trace.name,
            "findings": [finding.to_json() for finding in self.findings],
            "primary": self.primary,
            "metrics": {name: _rounded(value) for name, value in metrics(self.trace, self.model).items()},
            "not_told": list(self.not_told),
            "left_out": self.trace.left_out,
            **({} if self.rescored is None else {"rescored": self.rescored.to_json()}),
        }


def diagnose(trace: TraceColumns, rescored: Rescored | None = None) -> Diagnosis:
    """Ask every rule and rank what they find.

    Args:
        trace: the cycles.
        rescored: of the same trace; decides whether the draft's cache was wrong, whatever the rules suspect.
    """
    model = speed.fit(trace)
    shifted, unfed = correctness.cache_shift(trace)
    if rescored is not None:
        shifted = _decided(rescored, "kv_misalignment", shifted)
        unfed = _decided(rescored, "missing_bonus_token", unfed)
    wrong: list[tuple[str, Signature | None]] = [
        ("unverified_emission", correctness.unverified_emission(trace)),
        ("non_prefix_accept", correctness.non_prefix_accept(trace)),
        ("missing_bonus_token", correctness.lost_bonus(trace) or unfed),
        ("tokenizer_mismatch", correctness.tokenizer_mismatch(trace)),
        ("sampling_mismatch", sampling.sampling_mismatch(trace)),
        ("kv_misalignment", shifted),
    ]
    findings = [
        Finding(cause, found.confidence, found.evidence, REMEDIES[cause])
        for cause, found in wrong
        if found is not None
    ]
    slow = _slow(trace, model)
    if slow and slow[0].cause == "long_context_decay" and findings and _mild_shift(findings[0]):
        # Long contexts are cropped more often, and accept less for a reason of their own.
        findings = [slow.pop(0), *findings]
    findings += slow
    if not findings:
        findings = [Finding(HEALTHY, _health(trace), metrics(trace, model), REMEDIES[HEALTHY])]
    return Diagnosis(trace, model, tuple(findings), trace.header.lacks, rescored)


def _decided(rescored: Rescored, cause: str, suspected: Signature | None) -> Signature | None:
    """A fresh cache's word counts for more than statistics: it confirms, clears, or leaves it open."""
    verdict = rescored.verdict(cause)
    if verdict == REFUTED:
        return None
    if verdict != CONFIRMED:
        return suspected
    known = {} if suspected is None else dict(suspected.evidence)
    return Signature(known | rescored.evidence(cause), correctness.FIRM)


MILD_SHIFT = 0.25
"""A loss after a crop that falling acceptance on long contexts can feign."""


def _mild_shift(finding: Finding) -> bool:
    if finding.cause != "kv_misalignment" or "rescored_requests" in finding.evidence:
        return False
    return finding.evidence["loss_after_crop"] < MILD_SHIFT


def _slow(trace: TraceColumns, model: SpeedModel) -> list[Finding]:
    rules = {
        "fallback_stuck": bottlenecks.fallback_stuck,
        "slow_draft": bottlenecks.slow_draft,
        "verify_not_parallel": bottlenecks.verify_not_parallel,
        "host_overhead": bottlenecks.host_overhead,
        "long_context_decay": bottlenecks.long_context_decay,
        "weak_draft": bottlenecks.weak_draft,
        "over_drafting": bottlenecks.over_drafting,
        "under_drafting": bottlenecks.under_drafting,
        "queueing": bottlenecks.queueing,
        "budget_bound": bottlenecks.budget_bound,
    }
    found: dict[str, Bottleneck] = {}
    for cause, rule in rules.items():
        bottleneck = rule(trace, model)
        if bottleneck is not None:
            found[cause] = bottleneck
    ranked = sorted(found, key=lambda cause: -_rank(cause, found))
    return [
        Finding(cause, _sure(found[cause].margin), found[cause].evidence, REMEDIES[cause]) for cause in ranked
    ]


EXPLAINED_BY = {
    "weak_draft": ("long_context_decay",),
    "over_drafting": ("long_context_decay", "weak_draft", "budget_bound"),
    "under_drafting": ("host_overhead", "verify_not_parallel", "fallback_stuck"),
    "slow_draft": (),
    "fallback_stuck": ("long_context_decay", "slow_draft", "verify_not_parallel", "host_overhead"),
    "queueing": (
        "weak_draft",
        "long_context_decay",
        "slow_draft",
        "verify_not_parallel",
        "host_overhead",
        "fallback_stuck",
    ),
    "budget_bound": (
        "weak_draft",
        "long_context_decay",
        "under_drafting",
        "fallback_stuck",
        "slow_draft",
        "verify_not_parallel",
        "host_overhead",
        "queueing",
    ),
}
"""A finding ranks behind one that brings it about."""


def _rank(cause: str, found: Mapping[str, Bottleneck]) -> float:
    explained = any(other in found for other in EXPLAINED_BY.get(cause, ()))
    return found[cause].gain - (1000.0 if explained else 0.0)


def metrics(trace: TraceColumns, model: SpeedModel) -> dict[str, float]:
    """The numbers that describe a trace, for a healthy verdict and for comparisons."""
    drafted = max(1, int(trace.drafted.sum()))
    cycles = len(trace)
    hazard, reached = speed.hazards(trace, longest=1)
    values = {
        "cycles": float(cycles),
        "requests": float(len(trace.causes)),
        "tokens_per_pass": model.tokens,
        "ms_per_token": 1.0 / max(model.rate, 1e-12),
        "first_token_acceptance": float(hazard[0]) if reached[0] else math.nan,
        "drafted_per_cycle": drafted / cycles if trace.drafted.any() else 0.0,
        "discarded_share": 1.0 - float(trace.accepted.sum()) / drafted if trace.drafted.any() else 0.0,
        "plain_share": float((trace.drafted == 0).mean()),
        "draft_step_ms": model.draft_ms,
        "pass_ms_at_one_token": model.pass_ms,
        "ms_for_each_further_token": model.token_ms,
        "host_ms_per_cycle": model.host_ms,
        "prefill_ms_per_cycle": model.fixed_ms,
        "queue_ms_per_request": float(trace.queue_ms.sum()) / max(1, len(trace.causes)),
        "speed_up_over_plain": model.rate / model.plain,
    }
    if model.assumed:
        timed = [name for name in values if "ms" in name.split("_") or name.startswith("speed_up")]
        values = {name: value for name, value in values.items() if name not in timed}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _sure(margin: float) -> float:
    """A confidence from how far a signature is beyond its limit: 0.6 at the limit, 0.95 at twice it."""
    return min(0.97, 1.0 - 0.4 * math.exp(-2.1 * max(0.0, margin - 1.0)))


def _health(trace: TraceColumns) -> float:
    """Little data says little."""
    return round(min(0.97, 0.5 + 0.47 * min(1.0, len(trace) / 500.0)), 3)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
