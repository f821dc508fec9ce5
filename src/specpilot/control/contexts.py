"""A context, which is a source of drafts on one prompt-length bucket, and what is kept for it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log

from specpilot.control.branching import Branches, Forks, Yields
from specpilot.control.calibration import Calibration
from specpilot.control.difficulty import Residuals
from specpilot.control.health import Backoff, Fallback, Trials
from specpilot.control.horizon import Decision
from specpilot.control.tree import LookupRule

BUCKET_EDGES = (64, 256, 512)
"""Prompt-length buckets: ≤ 64, 65–256, 257–512, > 512 tokens."""
LEARNING_BLOCKS = 32
"""A context's first blocks, after each of which what a tree's rules hold of calibrations is refreshed."""
DECISION_CYCLES = 64
"""Cycles of a context for which a decision is kept, at most: estimates that rest on tens of observations
hardly move in between, and a change of phase throws decisions away at once. One that rests on few is kept for
a quarter as many cycles as there were blocks."""
RULE_CYCLES = 8
"""Cycles after which it is, later on."""
TREE_TRIALS = (8, 64)
"""Blocks after which a tree is tried where chains are better: at first, and at most."""

Key = tuple[int, int, int, int, int, int, int, int, int, int]
"""What a decision depends on: (ceiling on τ, tokens wanted, later passes, 10 · log θ, tokens not cached by
target, by draft, 4 · shift, tokens matched by looked-up text, tokens of others in the pass, requests in
it)."""


@lru_cache(4096)
def grid(tokens: int) -> int:
    """A width on a grid of a fifth, exact up to 8."""
    return tokens if tokens <= 8 else round(exp(round(log(tokens) * 5.0) / 5.0))


def coarse(count: int) -> int:
    """A count rounded down to one of four steps between powers of two, exact up to 8 (below 0 as well)."""
    step = max(0, abs(count).bit_length() - 3)
    return count >> step << step


def bucket_of(prompt_tokens: int) -> int:
    """The prompt-length bucket, 0…3."""
    return bisect_left(BUCKET_EDGES, prompt_tokens)


@dataclass(slots=True)
class Context:
    """A source of drafts on one prompt-length bucket: its decisions by what they depend on, kept for a few
    cycles.

    A *source* is a drafter under a rule of acceptance; ``trees``: the rule can judge them; ``optional``:
    there are requests that may do without that rule.
    """

    source: str
    bucket: int
    trees: bool
    fallback: Fallback
    calibration: Calibration
    trials: Trials  # of shared noise, where the context's requests may go over to it
    optional: bool = False
    blocks: int = 0
    has_confidence: bool = True
    age: int = 0  # cycles observed
    decisions: dict[Key, Decision] = field(default_factory=dict)
    forecasts: dict[Key, Decision] = field(default_factory=dict)  # apart: to ask changes no plan
    residuals: Residuals = field(default_factory=Residuals)
    branches: Branches = field(default_factory=Branches)
    yields: Yields = field(default_factory=Yields)
    forks: Forks = field(default_factory=Forks)
    tree_trials: Backoff = field(default_factory=lambda: Backoff(*TREE_TRIALS))
    ranks: tuple[tuple[float, float], ...] = ()
    lookup: LookupRule | None = None

    def forget_decisions(self) -> None:
        """Something that decisions rest on has changed."""
        self.decisions.clear()
        self.forecasts.clear()
        self.forget_rules()

    def keep(self, decision: Decision) -> Decision:
        """Note until when a decision just made is kept."""
        decision.until = self.age + min(DECISION_CYCLES, 1 + self.blocks // 4)
        return decision

    def grow_older(self) -> None:
        """One more cycle of this context has been observed."""
        self.age += 1
        if self.blocks <= LEARNING_BLOCKS or self.age % RULE_CYCLES == 0:
            self.forget_rules()
            if self.age % DECISION_CYCLES == 0:
                for kept in (self.decisions, self.forecasts):
                    for key in [key for key, decision in kept.items() if decision.until <= self.age]:
                        del kept[key]

    def forget_rules(self) -> None:
        """Calibrations have moved."""
        self.ranks = ()
        self.lookup = None
