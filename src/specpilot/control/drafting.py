"""What drafting costs: the time of a block by its steps, and what a token tree takes beyond a chain."""

from __future__ import annotations

from specpilot.control.curves import CLAMP, LEAST_MS, SETTLED, UpperQuantile

DRAFTER_CHANGED = 1.5
"""How far a tree's drafting time may be off what was expected before it is put down to the drafter."""
ODD_BLOCKS = 4
"""Blocks in a row whose drafting was far off to the same side: no accident, the drafter has changed."""
CHANGED_MEMORY = 0.2
"""What is kept of the blocks before such a one."""


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
        if self._seen > SETTLED:
            expected = self.expected_ms(steps)
            self.upper.observe(draft_ms / expected)
            clamped = max((1.0 - CLAMP) * expected, min((1.0 + CLAMP) * expected, draft_ms))
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
