"""What the planner has learned of drafters, and how it learns from a cycle.

What is learned of acceptance is kept by *source*, which is a drafter under a rule of acceptance, and by
prompt-length bucket: under noise that is shared the same draft model is accepted less often than by
rejection, and its confidence says more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpilot.control.acceptance import MAX_POSITIONS, AcceptanceModel
from specpilot.control.calibration import Calibration, PlacedCalibration
from specpilot.control.config import ControllerConfig
from specpilot.control.contexts import Context, bucket_of, grid
from specpilot.control.difficulty import Difficulty, residuals_of
from specpilot.control.ending import EndHazard
from specpilot.control.health import Fallback, Trials
from specpilot.control.horizon import Decision
from specpilot.control.planning import CycleView
from specpilot.control.stop import StopRule, sigmoid
from specpilot.control.types import AcceptanceName, CycleOutcome

LEARNED = ("acceptance", "difficulty", "calibrations", "ranks", "lookup", "contexts", "end_hazard")
RULE_TRIALS = (16, 32)
"""Requests after which the worse of two rules of acceptance is tried: at first, and at most."""


@dataclass(slots=True)
class Asked:
    """How the block of a cycle was asked for: as a probe of this fallback, or open, and then with the rule
    that would have stopped it.
    """

    probing: Fallback | None = None
    closed_rule: StopRule | None = None


class Knowledge:
    """The estimates, by name those of :data:`LEARNED`, and what is known of single requests."""

    def __init__(self, config: ControllerConfig) -> None:
        self._config = config
        self.acceptance = AcceptanceModel(
            config.prior_acceptance, config.discount, config.shrinkage, config.open_block_every
        )
        self.difficulty: dict[str, Difficulty] = {}
        self.calibrations: dict[str, Calibration] = {}
        self.contexts: dict[tuple[str, int], Context] = {}
        self.ranks: dict[str, PlacedCalibration] = {}
        self.lookup = PlacedCalibration()
        """Whether looked-up text is right, by the length of the match."""
        self.end_hazard = EndHazard()
        self.posteriors: dict[str, list[float]] = {}
        """By request that has drafted: P(easier, as usual, harder)."""
        self.matches: dict[str, int] = {}
        """By request whose looked-up text was right so far: tokens that it has matched."""

    def context(
        self, drafter: str, acceptance: AcceptanceName, prompt_tokens: int, *, coupled: bool = False
    ) -> Context:
        """Where the estimates for such a request are, made where there are none; ``coupled``: for one that
        goes over to shared noise.
        """
        rule = "coupled" if coupled else acceptance
        source, bucket = place = _place(drafter, rule, prompt_tokens)
        context = self.contexts.get(place)
        if context is None:
            context = self.contexts[place] = Context(
                source,
                bucket,
                rule != "rejection",
                Fallback(self._config.probe_first, self._config.probe_max),
                self.calibrations.setdefault(source, Calibration()),
                Trials(*RULE_TRIALS),
            )
        context.optional = context.optional or coupled
        return context

    def known_context(self, drafter: str, acceptance: AcceptanceName, prompt_tokens: int) -> Context | None:
        """The same, or None where there are no estimates yet; nothing is changed by asking."""
        return self.contexts.get(_place(drafter, acceptance, prompt_tokens))

    def hazards(self, context: Context, count: int, *, keep: bool = True) -> list[float]:
        """h_1 … h_count; without ``keep`` nothing is changed by asking."""
        return self.acceptance.table(context.source, context.bucket).hazards(count, keep=keep)

    def shift(self, context: Context, posterior: Sequence[float]) -> float:
        """How much easier such a request is than others so far, in logit units."""
        return self._difficulty(context.source).shift(posterior)

    def ranks_of(self, source: str) -> PlacedCalibration:
        """Whether a draft's second, third … choice is right."""
        return self.ranks.setdefault(source, PlacedCalibration())

    def observe(
        self,
        context: Context,
        view: CycleView,
        outcome: CycleOutcome,
        asked: Asked,
        decision: Decision | None,
    ) -> bool:
        """Learn from a cycle; whether its context has changed, so that what was learned before is void.

        ``decision`` is the request's last one.
        """
        source, bucket = context.source, context.bucket
        self.end_hazard.observe(
            outcome.emitted, outcome.ended is not None and outcome.ended.value in ("eos", "stop")
        )
        context.grow_older()
        counted_on = view.request_id in self.matches
        if outcome.lookup_judged is not None:
            self.learn_lookup(view.request_id, bucket, outcome.lookup_judged)
        drafted = outcome.drafted if outcome.drafter in (None, view.drafter) else 0
        if asked.probing and not drafted and not outcome.draft_fault:
            asked.probing.retry()  # the engine had no draft for it (vLLM drafts a step ahead)
        if not drafted or outcome.draft_fault:
            return False
        context.has_confidence = bool(outcome.confidences)
        # A block that ended the output inside itself was verified only up to there.
        proposed = outcome.proposed if outcome.ended is None else min(outcome.proposed, outcome.emitted)
        accepted = min(outcome.accepted, proposed)
        calibration = context.calibration
        calibration.blocks += 1
        dropped = None
        cut_at = None
        log_odds: list[float] = []
        if outcome.confidences:
            log_odds = calibration.log_odds(outcome.confidences)
            if len(log_odds) > outcome.proposed and outcome.ended is None:
                dropped = sigmoid(log_odds[-1])
            if asked.closed_rule:
                cut_at = _cut(asked.closed_rule, outcome.confidences)
            for position in range(1, min(accepted + 1, proposed) + 1):
                confidence = outcome.confidences[position - 1]
                calibration.observe(confidence, position <= accepted)
        if outcome.side_proposed:
            self.learn_branches(context, outcome, failed=accepted < proposed)
        # What looked-up text is counted on for is no part of the forecast; what it brings besides is welcome.
        plain = not (counted_on or asked.probing or asked.closed_rule or outcome.ended)
        if decision and decision.forecast > 0.0 and plain and view.new_context_tokens == 1:
            brought = outcome.emitted - 1.0
            context.yields.observe(branching=decision.branching, brought=brought, forecast=decision.forecast)
        if proposed:
            self._learn_difficulty(context, view.request_id, log_odds, accepted, proposed)
        changed = self.acceptance.observe(source, bucket, accepted, proposed, cut_at, dropped)
        if changed:
            for (name, place), other in self.contexts.items():
                if name == source and place in changed:
                    other.forget_decisions()
            self._hurry_probes(source)
            return True
        if asked.probing:
            # All that is learnt in fallback: what was decided without it does not stand.
            context.forget_decisions()
            if self.acceptance.rising(source, bucket):
                context.fallback.hurry()
        return False

    def learn_branches(self, context: Context, outcome: CycleOutcome, *, failed: bool) -> None:
        """Learn from a tree's nodes beside its main chain."""
        ranks = self.ranks_of(context.source)
        for rank, share, right in outcome.side_judged:
            ranks.observe(share, right, rank - 1)
        context.branches.observe(
            failed=failed,
            rescued=outcome.side_accepted > 0,
            nodes=outcome.proposed + outcome.side_proposed,
            levels=outcome.drafted,
        )

    def learn_lookup(self, request_id: str, bucket: int, judged: tuple[float, int, int]) -> None:
        """Whether it was proposed or not: the verified path says what it would have been worth."""
        confidence, right, seen = judged
        for position in range(1, seen + 1):
            self.lookup.observe(confidence, position <= right, position, bucket)
        self.matches.pop(request_id, None)
        if right == seen:
            self.matches[request_id] = grid(round(confidence / (1.0 - confidence)) + right)

    def _hurry_probes(self, source: str) -> None:
        """What ends one context's bad times may end those of the source's others."""
        for (name, _), context in self.contexts.items():
            if name == source and context.fallback.active:
                context.fallback.hurry()

    def _difficulty(self, source: str) -> Difficulty:
        found = self.difficulty.get(source)
        if found is None:
            found = self.difficulty[source] = Difficulty()
        return found

    def _learn_difficulty(
        self, context: Context, request_id: str, log_odds: Sequence[float], accepted: int, proposed: int
    ) -> None:
        """Learn what a block says of its request."""
        difficulty = self._difficulty(context.source)
        prior = self.posteriors.get(request_id, difficulty.weights)
        known = min(max(proposed, len(log_odds)), MAX_POSITIONS)
        hazards = self.hazards(context, known)
        if log_odds:
            residuals = residuals_of(log_odds, hazards)
            away, variance = context.residuals.centred(residuals), context.residuals.variance
            slope = context.calibration.slope
            posterior = difficulty.posterior_by_confidence(
                prior, away, variance, log_odds, accepted, proposed, slope
            )
            context.residuals.observe(residuals)
        else:
            posterior = difficulty.posterior(prior, hazards, accepted, proposed)
        self.posteriors[request_id] = posterior
        difficulty.learn(posterior)

    def finished(self, request_id: str) -> None:
        """Forget what belongs to the request alone."""
        self.posteriors.pop(request_id, None)
        self.matches.pop(request_id, None)

    def learned(self) -> dict[str, object]:
        """The estimates by name, for a snapshot: what belongs to no single request."""
        return {name: getattr(self, name) for name in LEARNED}

    def restore(self, learned: Mapping[str, Any]) -> None:
        """Take up estimates that :meth:`learned` gave in another process."""
        for name in LEARNED:
            setattr(self, name, learned[name])


def _place(drafter: str, rule: AcceptanceName, prompt_tokens: int) -> tuple[str, int]:
    """(source, bucket): the name of a drafter's drafts as a rule judges them, and the prompt's length."""
    return drafter if rule == "greedy" else f"{drafter}/{rule}", bucket_of(prompt_tokens)


def _cut(rule: StopRule, confidences: Sequence[float]) -> int | None:
    """The first position that ``rule`` would not have computed, had the block not been open."""
    rule.start()
    for position, confidence in enumerate(confidences, 1):
        if not rule.draft_on(position, 0.0):
            return position
        if not rule.keep(position, confidence):
            return position + 1
    return None
