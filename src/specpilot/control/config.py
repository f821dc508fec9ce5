"""The controller's configuration: one frozen object, validated when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum
from numbers import Integral, Real


def is_number(value: object, kind: type[Integral] | type[Real]) -> bool:
    """Whether it is one of this kind; numpy's numbers are, True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


class Mode(StrEnum):
    """Who chooses τ. The pass ledger and the deadlines hold in all three."""

    OFF = "off"
    """A static τ; the planner is not asked and does not learn."""
    SHADOW = "shadow"
    """A static τ; the planner plans, learns and is recorded, but does not decide."""
    ON = "on"
    """The planner."""


TREE_NODES = 64
"""``max_nodes`` where token trees are used and nobody says how large."""
TREE_LOOKUP = 24
"""``lookup_depth``, likewise."""
NO_SLO_MS = 3_600_000.0
"""An end-to-end latency that nothing misses: for runs without that promise."""
PROMISES = (
    "pass_budget",
    "slo_p95_ms",
    "burst",
    "max_draft",
    "tenant_pool_cap",
    "mode",
    "static_draft",
    "max_batch",
    "max_nodes",
    "lookup_depth",
    "give_way",
)
"""Fields that say what to do and not how to learn: a snapshot may be taken up under other ones."""


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What the operator promises, and the constants of the policy.

    The promises are the first three, ``mode`` and ``static_draft`` say who chooses τ; the rest were
    tuned on the development seeds of the scenario suite and rarely need a change.

    Raises:
        ValueError: naming the field, its value, the allowed range and the remedy.
    """

    pass_budget: float = 2.0
    """B: target forward passes per admitted request, on average (``inf``: none)."""
    slo_p95_ms: float = 250.0
    """End-to-end latency SLO, from scheduled arrival."""
    burst: int = 64
    """Most passes the shared pool may hold."""
    max_draft: int = 16
    """Most tokens drafted in one cycle (τ's cap)."""
    tenant_pool_cap: int | None = None
    """Most pool passes a tenant may draw beyond what it put in."""
    miss_target: float = 0.03
    """Share of requests that may miss the SLO before the internal deadline is tightened."""
    prior_acceptance: float = 0.65
    """Acceptance assumed at every position before anything is known."""
    discount: float = 0.985
    """Per-observation discount of the acceptance counts of one context."""
    shrinkage: float = 10.0
    """Weight (in observations) of the pooled estimate in a context's own."""
    open_block_every: int = 16
    """Every so many-th block of a context ignores the confidence stop; four times as seldom where that
    costs more: where time is dear, and where it takes the place of a tree."""
    breaker_faults: int = 3
    """Drafter faults in a row that open the circuit breaker."""
    probe_first: int = 4
    """Cycles of fallback before the first probe of a context."""
    probe_max: int = 64
    """Most cycles of fallback between two probes of a context (bounds recovery, I6)."""
    finish_bonus_tokens: float = 1.0
    """What finishing a suggestion is worth beyond its tokens, when bidding for a pool pass."""
    mode: Mode = Mode.ON
    """Who chooses τ at the start; :attr:`Controller.mode` switches it while running."""
    static_draft: int = 4
    """τ in the modes ``off`` and ``shadow`` (0: plain decoding)."""
    max_batch: int = 1
    """Most requests that share one target pass of the engine: work in flight is that much sooner done."""
    max_nodes: int = 0
    """Most nodes of a token tree; 0: blocks are chains."""
    lookup_depth: int = 0
    """Most tokens that are taken from looked-up text beside the draft model's; needs ``max_nodes``. 0:
    none."""
    give_way: bool = False
    """Under pressure a request that has something to show ends (cause ``policy``) where its next pass is
    worth less than the time it takes from those who wait. More arrivals meet the SLO; a request is then
    sure of one pass, not of ⌊B⌋ (I2)."""

    def __post_init__(self) -> None:
        for item in fields(self):
            self._check_type(item.name, str(item.type))
        self._require(
            "pass_budget", self.pass_budget >= 1.0, "≥ 1", "a request needs at least one target pass"
        )
        self._require("slo_p95_ms", 0.0 < self.slo_p95_ms < math.inf, "> 0 and finite", "give milliseconds")
        self._require("burst", self.burst >= 0, "≥ 0", "use 0 to keep no pool")
        self._require("max_draft", 0 <= self.max_draft <= 32, "0…32", "use 0 to switch speculation off")
        self._require(
            "miss_target", 0.0 < self.miss_target < 0.5, "in (0, 0.5)", "0.03 leaves room under a p95"
        )
        self._require("prior_acceptance", 0.0 < self.prior_acceptance < 1.0, "in (0, 1)", "0.65 is typical")
        self._require(
            "discount", 0.5 <= self.discount < 1.0, "in [0.5, 1)", "0.985 remembers about 67 blocks"
        )
        self._require("shrinkage", self.shrinkage > 0.0, "> 0", "10 is typical")
        self._require("open_block_every", self.open_block_every >= 2, "≥ 2", "16 is typical")
        self._require("breaker_faults", self.breaker_faults >= 1, "≥ 1", "3 is typical")
        self._require("probe_first", self.probe_first >= 1, "≥ 1", "4 is typical")
        self._require("probe_max", self.probe_max >= self.probe_first, "≥ probe_first", "64 is typical")
        self._require("finish_bonus_tokens", self.finish_bonus_tokens >= 0.0, "≥ 0", "1 is typical")
        self._require("mode", self.mode in tuple(Mode), "off, shadow or on", "use on")
        self._require("static_draft", 0 <= self.static_draft <= 32, "0…32", "4 is typical")
        self._require("max_batch", self.max_batch >= 1, "≥ 1", "use 1 for one request at a time")
        self._require("max_nodes", 0 <= self.max_nodes <= 256, "0…256", "use 0 for chains; 64 is typical")
        self._require("lookup_depth", 0 <= self.lookup_depth <= 256, "0…256", "use 0 for none; 24 is typical")
        self._require(
            "lookup_depth",
            self.lookup_depth <= self.max_nodes,
            "0…max_nodes",
            f"max_nodes is {self.max_nodes}; give --max-nodes {max(32, self.lookup_depth)}",
        )
        if self.tenant_pool_cap is not None:
            self._require("tenant_pool_cap", self.tenant_pool_cap >= 0, "≥ 0", "leave it out for no cap")

    def constants(self, planner: str) -> dict[str, object]:
        """What is learned depends on: the planner's name and all fields but the :data:`PROMISES`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in PROMISES}
        return {"planner": planner, **values}

    def _check_type(self, name: str, kind: str) -> None:
        """Refuse a value of another type than the field's."""
        value = getattr(self, name)
        if kind.startswith("int"):
            ok = is_number(value, Integral) or (value is None and kind.endswith("None"))
            self._require(name, ok, "a whole number", "give a count")
        elif kind == "float":
            self._require(name, is_number(value, Real), "a number", "give one")
        elif kind == "bool":
            self._require(name, isinstance(value, bool), "True or False", "give one of the two")

    def _require(self, name: str, ok: bool, allowed: str, remedy: str) -> None:
        if not ok:
            raise ValueError(f"{name}: {getattr(self, name)!r} is not {allowed}; {remedy}")
