"""What drafting and verifying cost: learned online, in milliseconds.

Verification is parallel, so the cost of a target pass is a curve over its width (new tokens): nearly
flat while the engine is bound by reading weights, rising once it computes. Prefill is the same curve
further out (:mod:`~specpilot.control.curves`). What drafting costs is in :mod:`~specpilot.control.drafting`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from specpilot.control.curves import CLAMP, KNOTS, SETTLED, ContextSlope, CostCurve, UpperQuantile
from specpilot.control.drafting import DRAFTER_CHANGED, DraftCost, TreeCost


@dataclass(frozen=True, slots=True)
class CostProfile:
    """First guess of the costs, replaced by what is measured.

    ``verify_ms`` and ``draft_prefill_ms`` are given at the widths ``KNOTS``.
    """

    draft_step_ms: float = 0.4
    verify_ms: tuple[float, ...] = (6.0, 6.1, 6.3, 7.0, 9.0, 13.0, 22.0, 42.0, 85.0, 180.0, 400.0, 900.0)
    draft_prefill_ms: tuple[float, ...] = (0.4, 0.4, 0.45, 0.5, 0.7, 1.2, 2.1, 4.0, 8.0, 16.0, 36.0, 80.0)

    def __post_init__(self) -> None:
        if not self.draft_step_ms > 0.0:
            raise ValueError(f"draft_step_ms: {self.draft_step_ms} is not > 0; give milliseconds")
        for name, curve in (("verify_ms", self.verify_ms), ("draft_prefill_ms", self.draft_prefill_ms)):
            if len(curve) != len(KNOTS) or any(b < a for a, b in pairwise(curve)) or curve[0] <= 0.0:
                raise ValueError(
                    f"{name}: {curve} is not {len(KNOTS)} rising positive values; one for each of {KNOTS}"
                )


PassTimes = tuple[float, float, float, float, float]
"""What a pass takes by the upper quantiles, in ms: (first, later, token, step, verify).

``first`` is the pass at hand with nothing drafted, ``later`` a pass after it (each with a block's start),
``token`` each drafted token with its verification. ``step`` is a draft step alone and ``verify`` the
target's pass over the longest block. (A plain tuple: an object takes a microsecond of every decision.)
"""


class CostModel:
    """Draft step, draft prefill and target pass of one engine.

    A target pass is a curve over its width plus a slope over the cached context.
    """

    def __init__(self, profile: CostProfile | None = None) -> None:
        profile = profile or CostProfile()
        self._draft = DraftCost(profile.draft_step_ms)
        self._verify = CostCurve(profile.verify_ms)
        self._draft_prefill = CostCurve(profile.draft_prefill_ms)
        self._context = ContextSlope()
        self.host_ms = 0.0
        self._tree_host_ms = 0.0  # beyond that, where a tree was asked for
        self._trees = TreeCost()
        self.verify_upper = UpperQuantile()
        self.calibrated = False
        """Whether enough passes were measured to refuse work on the strength of a prediction."""

    @property
    def draft_start_ms(self) -> float:
        """What a block costs the drafter before its first step."""
        return self._draft.start_ms

    @property
    def draft_step_ms(self) -> float:
        """What each drafted token costs."""
        return self._draft.step_ms

    @property
    def side_ms(self) -> float:
        """What each node beside the draft's first choices costs the drafter: a wider step, more choices."""
        return self._trees.node_ms

    @property
    def tree_ms(self) -> float:
        """What a block costs the drafter and the host because a tree was asked for, whatever grows."""
        return self._trees.start_ms + self._tree_host_ms

    @property
    def draft_upper(self) -> UpperQuantile:
        """Drafting's observed ÷ expected times."""
        return self._draft.upper

    def verify_ms(self, new_tokens: float, context_tokens: float = 0.0) -> float:
        """Expected time of one target pass of this width behind this much cached context."""
        return self._verify.at(new_tokens) + self._context.ms_per_token * context_tokens

    def measured(self, new_tokens: float) -> bool:
        """Whether target passes about as wide have been measured."""
        return self._verify.measured(new_tokens)

    def pass_times(
        self,
        draft: int,
        uncached: int,
        behind: int,
        context: int,
        plain_ms: float | None = None,
        beside: int = 0,
        sharing: int = 1,
    ) -> PassTimes:
        """What a pass of at most ``draft`` ≥ 1 drafted tokens takes by the upper quantiles.

        Args:
            draft: τ at most.
            uncached: context tokens that the target has not cached.
            behind: context tokens that the draft has not cached.
            context: all context tokens.
            plain_ms: ``verify_ms`` of the pass with nothing drafted, where it is known already.
            beside: context tokens of the others in the pass that are not cached.
            sharing: requests in the pass; each is taken to draft alike, and all wait for all of it.
        """
        drafting, verify = self._draft, self._verify
        upper = self.verify_upper.ratio
        drafting_upper = drafting.upper.ratio
        step = drafting.step_ms * drafting_upper
        start = drafting.start_ms * drafting_upper + self.host_ms
        per_token = self._context.ms_per_token
        behind_cache = per_token * (context - uncached)
        width = uncached + beside
        plain = verify.at(width) + behind_cache if plain_ms is None else plain_ms
        full = verify.at(width + sharing * draft) + behind_cache
        first = plain if behind <= 1 else plain + self._draft_prefill.at(behind - 1)
        return (
            first * upper + start,
            (verify.at(sharing) + per_token * context) * upper + start,
            step + (full - plain) / draft * upper,
            step,
            full * upper,
        )

    def verify_run_ms(self, new_tokens: int, count: int, beside: int = 0, sharing: int = 1) -> list[float]:
        """A request's part in passes with ``new_tokens`` … ``new_tokens + count`` tokens of its own, in ms.

        No cached context is counted. Of a pass that ``sharing`` requests share, with ``beside`` tokens of
        the others, a request bears as much as it brings tokens; each further token of its block is taken to
        be one in everybody's block, borne by all alike. So a draft is priced at the width of the passes that
        it will be verified in, where the curve may be steeper or flatter than at the width of one request.
        """
        if sharing <= 1:
            return self._verify.run(new_tokens, count)
        width = beside + new_tokens
        times = [self._verify.at(width + sharing * more) for more in range(count + 1)]
        own = times[0] * new_tokens / width
        return [own + (time - times[0]) / sharing for time in times]

    def draft_prefill_ms(self, tokens: float) -> float:
        """Expected time for the draft's cache to catch up with this many tokens (0 for none)."""
        return self._draft_prefill.at(tokens) if tokens > 0 else 0.0

    def drafting_ms(self, tokens: float, steps: int) -> float:
        """Expected time to draft a chain of ``steps`` ≥ 1 once the draft has caught up with ``tokens``."""
        return self.draft_prefill_ms(tokens) + self.draft_start_ms + steps * self.draft_step_ms

    def observe_verify(self, new_tokens: int, context_tokens: int, verify_ms: float) -> None:
        """Learn from one target pass."""
        predicted = self.verify_ms(new_tokens, context_tokens)
        if self.calibrated:
            self.verify_upper.observe(verify_ms / predicted)
        if context_tokens and self._verify.observations >= SETTLED:
            error = max(-CLAMP, min(CLAMP, verify_ms / predicted - 1.0)) * predicted
            self._context.observe(context_tokens, error)
        context_ms = self._context.ms_per_token * context_tokens
        self._verify.observe(new_tokens, max(0.1 * verify_ms, verify_ms - context_ms))
        self.calibrated = self._verify.observations >= 8

    def observe_draft(
        self,
        steps: int,
        draft_ms: float,
        prefill_tokens: int,
        prefill_ms: float,
        *,
        sides: int | None = None,
    ) -> None:
        """Learn from one block's drafting; ``sides``, where a tree was asked for: the nodes beside the
        draft's first choices, in it and in those that were drafted with it.
        """
        if steps and sides is not None:
            chain_ms = self._draft.expected_ms(steps)
            if self._trees.known:
                ratio = draft_ms / (chain_ms + self._trees.expected_ms(sides))
                # So far off the drafter itself has changed, which chains alone would show late.
                if not 1.0 / DRAFTER_CHANGED < ratio < DRAFTER_CHANGED:
                    self._draft.observe(steps, ratio * chain_ms)
            self._trees.observe(sides, draft_ms - chain_ms)
        elif steps:
            self._draft.observe(steps, draft_ms)
        if prefill_tokens and prefill_ms > 0.0:
            self._draft_prefill.observe(prefill_tokens, prefill_ms)

    def observe_host(self, host_ms: float, *, tree: bool = False) -> None:
        """Learn the cycle's time outside the models; ``tree``: one was asked for."""
        if tree:
            more = min(host_ms, 4.0 * (self.host_ms + self._tree_host_ms) + 1.0) - self.host_ms
            self._tree_host_ms += 0.1 * (max(0.0, more) - self._tree_host_ms)
        else:
            self.host_ms += 0.1 * (min(host_ms, 4.0 * self.host_ms + 1.0) - self.host_ms)
