"""What drafting and verifying cost: learned online, in milliseconds.

Verification is parallel, so the cost of a target pass is a curve over its width (new tokens): nearly
flat while the engine is bound by reading weights, rising once it computes. Prefill is the same curve
further out. Each curve is piecewise linear and monotone; an innovation is clamped so that one
preempted pass does not spoil it, and an upper quantile follows by pinball steps for deadlines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
LEAST_MS = 1e-3
DRAFTER_CHANGED = 1.5
"""How far a tree's drafting time may be off what was expected before it is put down to the drafter."""
ODD_BLOCKS = 4
"""Blocks in a row whose drafting was far off to the same side: no accident, the drafter has changed."""
CHANGED_MEMORY = 0.2
"""What is kept of the blocks before such a one."""
NO_ACCIDENT = -0.5
"""By what share a time may fall short by chance: a pass may be preempted and take any time, but none takes
less than half of its time.
"""
_LAST = len(KNOTS) - 1
_GAPS = [high - low for low, high in pairwise(KNOTS)]
_PLACES = [(knot, offset) for knot, gap in enumerate(_GAPS) for offset in range(gap)]
"""Of the widths from 1: the knot at or below, and how many tokens beyond it."""


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


class UpperQuantile:
    """Tracks a quantile of observed ÷ predicted by pinball steps; never below 1."""

    def __init__(self, quantile: float = 0.95, step: float = 0.03) -> None:
        self._quantile = quantile
        self._step = step
        self.ratio = 1.15

    def observe(self, ratio: float) -> None:
        """Up by step·q when exceeded, down by step·(1−q) when not: stationary at the quantile."""
        if ratio > self.ratio:
            self.ratio = min(4.0, self.ratio + self._step * self._quantile)
        else:
            self.ratio = max(1.0, self.ratio - self._step * (1.0 - self._quantile))


class CostCurve:
    """Milliseconds as a piecewise-linear, non-decreasing function of a width in tokens."""

    def __init__(self, values_ms: Sequence[float], gain: float = 0.1, clamp: float = 0.25) -> None:
        self.values = list(values_ms)
        """Milliseconds at ``KNOTS``."""
        self._slopes = _slopes(self.values)
        self._seen = [0] * len(KNOTS)
        self._gain = gain
        self._clamp = clamp
        self.observations = 0

    def at(self, width: float) -> float:
        """Cost of ``width`` tokens, extrapolated by the last segment's slope."""
        if width <= 1:
            return self.values[0]
        index = bisect_right(KNOTS, width, 0, _LAST) - 1
        return self.values[index] + self._slopes[index] * (width - KNOTS[index])

    def run(self, width: int, count: int) -> list[float]:
        """Costs of ``width``, ``width + 1`` … ``width + count`` tokens (``width`` ≥ 1)."""
        values, slopes = self.values, self._slopes
        places = _PLACES[width - 1 : width + count]
        if len(places) <= count:
            # Beyond the last knot its segment goes on.
            beyond = range(max(width, KNOTS[-1]), width + count + 1)
            places += [(_LAST - 1, at - KNOTS[-2]) for at in beyond]
        return [values[knot] + slopes[knot] * offset for knot, offset in places]

    def observe(self, width: float, observed_ms: float) -> None:
        """Move the two neighbouring knots towards an observation.

        The first observations count fully (gain 1/n down to ``gain``) and also rescale knots that
        have never been seen; later ones are clamped to ±25 % of the prediction, unless less than half of it
        shows that the prediction is wrong.
        """
        predicted = self.at(width)
        self.observations += 1
        index = bisect_right(KNOTS, max(width, 1), 0, _LAST)
        low, high = KNOTS[index - 1], KNOTS[index]
        share = min(1.0, max(0.0, (width - low) / (high - low)))
        ratio = observed_ms / predicted - 1.0
        settled = self._seen[index - 1 if share < 0.5 else index] >= 3
        if settled and ratio > NO_ACCIDENT:
            ratio = max(-self._clamp, min(self._clamp, ratio))
        for knot, weight in ((index - 1, 1.0 - share), (index, share)):
            if weight > 0.0:
                self._seen[knot] += 1
                gain = max(self._gain, 1.0 / self._seen[knot])
                step = gain * ratio * weight / (share**2 + (1.0 - share) ** 2)
                self.values[knot] = max(LEAST_MS, self.values[knot] * max(0.1, 1.0 + step))
        if 0 in self._seen:
            rescale = 1.0 + max(self._gain, 1.0 / self.observations) * ratio
            for knot, count in enumerate(self._seen):
                if count == 0:
                    self.values[knot] = max(LEAST_MS, self.values[knot] * rescale)
        self._make_monotone(index if share >= 0.5 else index - 1)
        self._slopes = _slopes(self.values)

    def _make_monotone(self, anchor: int) -> None:
        """The knot just measured is believed; the others give way."""
        values = self.values
        least = most = values[anchor]
        for knot in range(anchor + 1, len(values)):
            if values[knot] < least:
                values[knot] = least
            least = values[knot]
        for knot in range(anchor - 1, -1, -1):
            if values[knot] > most:
                values[knot] = most
            most = values[knot]


def _slopes(values: Sequence[float]) -> list[float]:
    """Of each segment between the knots, in ms per token."""
    return [(high - low) / gap for low, high, gap in zip(values, values[1:], _GAPS, strict=False)]


class ContextSlope:
    """How much dearer a pass gets with each cached context token (attention reads it).

    Normalised LMS on the context's deviation from its mean: what is common to all contexts is the curve's
    to learn, so that the two do not take turns in explaining the same milliseconds.
    """

    def __init__(self, rate: float = 0.05, memory: float = 0.98) -> None:
        self._rate = rate
        self._memory = memory
        self._mean = 0.0
        self._variance = 0.0
        self._seen = 0.0
        self.ms_per_token = 0.0

    def observe(self, context_tokens: float, error_ms: float) -> None:
        """A pass behind this much context took ``error_ms`` longer than predicted."""
        self._seen = self._seen * self._memory + 1.0
        away = context_tokens - self._mean
        self._mean += away / self._seen
        away = context_tokens - self._mean
        self._variance += (away * away - self._variance) / self._seen
        # The floor: contexts that are nearly alike say nothing of a slope.
        scale = away * away + self._variance + (0.1 * self._mean) ** 2 + 1.0
        self.ms_per_token = max(0.0, self.ms_per_token + self._rate * error_ms * away / scale)


class DraftCost:
    """The time to draft a block: a start and so much for each step.

    Waking the drafter, gathering its inputs and the like are paid once a block. Counted into the steps they
    make short blocks look dear, and a policy that drafts short would never learn better. Least squares of
    ms on steps, discounted; the ridge on the start leaves it 0 while all blocks are of one length.
    """

    def __init__(self, step_ms: float, memory: float = 0.98, ridge: float = 0.3) -> None:
        self._memory = memory
        self._ridge = ridge
        self._seen = 0
        self._odd = 0  # blocks in a row that were far slower (faster: below 0) than expected
        self._weight = self._steps = self._squares = self._ms = self._products = 0.0
        self.start_ms = 0.0
        self.step_ms = step_ms
        self.upper = UpperQuantile()

    def expected_ms(self, steps: int) -> float:
        """What drafting a block of ``steps`` ≥ 1 takes."""
        return self.start_ms + steps * self.step_ms

    def observe(self, steps: int, draft_ms: float) -> None:
        """A block of ``steps`` ≥ 1 took so long; from the fourth on clamped to ±25 % of what was expected,
        unless the last few were all further off than that.
        """
        self._seen += 1
        keep = self._memory
        if self._seen > 3:
            expected = self.expected_ms(steps)
            self.upper.observe(draft_ms / expected)
            clamped = max(0.75 * expected, min(1.25 * expected, draft_ms))
            side = (draft_ms > clamped) - (draft_ms < clamped)
            self._odd = self._odd + side if side * self._odd > 0 else side
            if abs(self._odd) >= ODD_BLOCKS:
                keep = CHANGED_MEMORY
            else:
                draft_ms = clamped
        self._weight = self._weight * keep + 1.0
        self._steps = self._steps * keep + steps
        self._squares = self._squares * keep + steps * steps
        self._ms = self._ms * keep + draft_ms
        self._products = self._products * keep + steps * draft_ms
        held = self._weight + self._ridge
        spread = held * self._squares - self._steps * self._steps
        through_zero = self._products / self._squares
        step = (held * self._products - self._steps * self._ms) / spread
        self.step_ms = max(LEAST_MS, min(through_zero, max(0.1 * through_zero, step)))
        self.start_ms = max(0.0, (self._ms - self.step_ms * self._steps) / held)


class TreeCost:
    """What drafting a tree takes beyond a chain of as many steps: a start and so much for each side node.

    The start is learnt from the trees that turned out to be chains, the nodes' share from the others.
    """

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._trees = 0
        self._chains = self._chains_ms = 0.0
        self._ms = self._nodes = 0.0

    @property
    def start_ms(self) -> float:
        """Milliseconds a block, ≥ 0."""
        return max(0.0, self._chains_ms / self._chains) if self._chains else 0.0

    @property
    def node_ms(self) -> float:
        """Milliseconds a side node, ≥ 0; 0 where nothing is known: so it becomes known."""
        return max(0.0, self._ms / self._nodes) if self._nodes else 0.0

    @property
    def known(self) -> bool:
        """Whether some trees have been measured."""
        return self._trees >= 4

    def expected_ms(self, sides: int) -> float:
        """What a tree with so many side nodes takes beyond its steps."""
        return self.start_ms + sides * self.node_ms

    def observe(self, sides: int, beyond_ms: float) -> None:
        """A block with so many took so much longer; from the fourth on at most four times as long as expected
        and a millisecond.
        """
        self._trees = min(self._trees + 1, 4)
        start = self.start_ms
        if not sides:
            if self._chains > 3.0:
                beyond_ms = min(beyond_ms, 4.0 * start + 1.0)
            self._chains_ms = self._chains_ms * self._memory + beyond_ms
            self._chains = self._chains * self._memory + 1.0
            return
        beyond_ms -= start
        if self._nodes > 3.0 * sides:
            beyond_ms = min(beyond_ms, 4.0 * sides * self.node_ms + 1.0)
        self._ms = self._ms * self._memory + beyond_ms
        self._nodes = self._nodes * self._memory + sides


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

    def observe_verify(self, new_tokens: int, context_tokens: int, verify_ms: float) -> None:
        """Learn from one target pass."""
        predicted = self.verify_ms(new_tokens, context_tokens)
        if self.calibrated:
            self.verify_upper.observe(verify_ms / predicted)
        if context_tokens and self._verify.observations >= 3:
            error = max(-0.25, min(0.25, verify_ms / predicted - 1.0)) * predicted
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
