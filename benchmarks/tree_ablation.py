"""What each signal for token trees and looked-up text is worth: one off at a time, as benchmarks/ablation.py.

    specpilot record trace.jsonl --costs costs.json
    python benchmarks/tree_ablation.py --trace trace.jsonl --costs costs.json [--requests 300] [--signal NAME]

Scenarios of the suite with the draft's further choices drawn, and a recorded agreement trace of the bundled
pair with the costs measured beside it: all of its prompts; all of them with draft passes over several nodes
as dear as live, for the costs of bare forward passes leave out what a tree's step does in Python
(benchmarks/draft_step.py); and its rewrites alone, where looked-up text is most of the output, with two
passes a request and with four (a match is known only once something is emitted: with two passes nothing
comes after it). The rows of "nothing" change a prior by a hundredth or two: what they move is chance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ablating import Ablation, Cell, Results, arguments, arriving, compare, nothing, run

from specpilot.control import planner, solving, timing, treeplan
from specpilot.control.branching import Branches, Yields
from specpilot.control.calibration import PlacedCalibration
from specpilot.control.config import TREE_LOOKUP, TREE_NODES, ControllerConfig
from specpilot.control.contexts import Context, Key
from specpilot.control.cost import CostModel
from specpilot.control.horizon import Decision
from specpilot.control.knowledge import Knowledge
from specpilot.control.planner import COLD_BLOCKS, OptimalPlanner
from specpilot.control.planning import Choice, CycleView
from specpilot.control.solving import Inputs
from specpilot.control.stop import StopRule
from specpilot.control.types import CycleOutcome, Reason
from specpilot.simulation.costs import EngineCosts, Table, read_costs
from specpilot.simulation.replay import ReplayRequest
from specpilot.simulation.scenarios import VERSION, scenario
from specpilot.simulation.suite import offered
from specpilot.trace import read_agreement

SCENARIOS = ("steady", "steady-cheap-draft", "long-prompt-collapse", "slow-draft", "compute-bound", "B=1")
RECORDED = ("recorded", "recorded, dear steps", "rewrites", "rewrites, B=4")
DEAR_NODE = 0.22
"""What each further node of a draft step costs, in steps: three nodes took 1.44 times one (docs/trees.md)."""
WIDEST = 6
"""Nodes of a draft step at most (TreeRule.width)."""

_solve, _decide, _fitting_nodes = solving._solve, solving.decide, timing.fitting_nodes
_branch, _learn_branches = OptimalPlanner._branch, Knowledge.learn_branches
_learn_lookup = Knowledge.learn_lookup


class _OneForecast:
    """Of the two forecasts of a tree's worth takes the same one always."""

    def __init__(self, *, branching: bool) -> None:
        self._branching = branching
        self._solved: list[Decision] = []

    def solve(self, *args: Any, **kwargs: Any) -> Decision:
        self._solved.append(_solve(*args, **kwargs))
        return self._solved[-1]

    def decide(self, known: Inputs, key: Key) -> Decision:
        self._solved.clear()
        better = _decide(known, key)
        chain, tree, *_ = self._solved
        wanted = tree if self._branching else chain
        wanted.branching = self._branching
        wanted.node_price, wanted.side_price = better.node_price, better.side_price
        return wanted

    def patches(self) -> tuple[tuple[Any, str, Any], ...]:
        return (solving, "_solve", self.solve), (planner, "decide", self.decide)


def _chains_only(self: OptimalPlanner, *args: Any, branching: bool, **kwargs: Any) -> Choice:
    return _branch(self, *args, branching=False, **kwargs)


def _always_a_tree(self: OptimalPlanner, context: Context, theta: float) -> bool:
    return True


def _cold_chains(
    self: OptimalPlanner, view: CycleView, context: Context, *args: Any, branching: bool, **kwargs: Any
) -> Choice:
    """A drafter's first blocks are chains, as without trees."""
    warm = context.calibration.blocks >= COLD_BLOCKS
    return _branch(self, view, context, *args, branching=branching and warm, **kwargs)


def _open_trees(
    self: OptimalPlanner,
    view: CycleView,
    context: Context,
    decision: Decision,
    *args: Any,
    branching: bool,
    is_open: bool = False,
) -> Choice:
    """An open block branches as well."""
    return _branch(self, view, context, decision, *args, branching=branching or is_open, is_open=is_open)


def _ranks_believed(self: Knowledge, context: Context, outcome: CycleOutcome, *, failed: bool) -> None:
    """The draft's share of a further choice is its chance."""
    _learn_branches(self, context, replace(outcome, side_judged=()), failed=failed)


def _not_widened(self: Branches, hazards: Sequence[float]) -> list[float]:
    return list(hazards)


def _as_forecast(self: Yields, *, branching: bool) -> float:
    return 1.0


def _free_nodes(known: Inputs, key: Key) -> Decision:
    decision = _decide(known, key)
    decision.node_price = ()
    return decision


def _equal_depths(known: Inputs, key: Key) -> Decision:
    """A token is worth 1 wherever it is."""
    decision = _decide(known, key)
    decision.worth = ()
    return decision


def _all_steps(known: Inputs, key: Key) -> Decision:
    """A tree's steps go on to its depth while there are nodes to expand."""
    decision = _decide(known, key)
    if decision.branching:
        decision.draft_at = ()
    return decision


def _always_asked(known: Inputs, key: Key) -> Decision:
    """The draft model makes its first step however sure what is looked up is."""
    decision = _decide(known, key)
    decision.first_at = 0.0
    return decision


def _nodes_whatever_time(cost: CostModel, view: CycleView, depth: int) -> tuple[int, float]:
    _, verify_ms = _fitting_nodes(cost, view, depth)
    return max(depth, view.max_nodes), verify_ms


class _Unlearning(PlacedCalibration):
    """A match of n tokens goes on with n ÷ (n + 1), as at the start."""

    observe = nothing


class _OneChance(PlacedCalibration):
    """Learnt by position only: the length of the match says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = 0.0

    def observe(self, confidence: float, accepted: bool, position: int = 1, bucket: int = 0) -> None:
        super().observe(0.5, accepted, position, bucket)


def _lookup_by(kind: type[PlacedCalibration]) -> Any:
    """Looked-up text is calibrated by another class, from its first cycle on."""

    def learn(self: Knowledge, request_id: str, bucket: int, judged: tuple[float, int, int]) -> None:
        if not isinstance(self.lookup, kind):
            self.lookup = kind()
        _learn_lookup(self, request_id, bucket, judged)

    return learn


def _nothing_found(known: Inputs, matched: int, count: int) -> list[float]:
    return [0.0] * (count + 1)


def _plain_fallback(self: OptimalPlanner, *args: Any) -> Choice:
    reason: Reason = args[-2]
    bid: float = args[-1]
    return Choice(0, StopRule(), reason, bid)


_CHAIN, _TREE = _OneForecast(branching=False), _OneForecast(branching=True)
ABLATIONS: dict[str, Ablation] = {
    "trees (always a chain)": Ablation((*_CHAIN.patches(), (OptimalPlanner, "_branch", _chains_only))),
    "chains (always a tree)": Ablation(((OptimalPlanner, "_forks", _always_a_tree),)),
    "a tree's own forecast": Ablation(_CHAIN.patches()),
    "a chain's forecast": Ablation(_TREE.patches()),
    "both kinds in turn at the start": Ablation(((OptimalPlanner, "_branch", _cold_chains),)),
    "open blocks are chains": Ablation(((OptimalPlanner, "_branch", _open_trees),)),
    "rank calibration": Ablation(((Knowledge, "learn_branches", _ranks_believed),)),
    "rescue by side branches (widened hazards)": Ablation(((Branches, "widened", _not_widened),)),
    "nodes per level (breadth)": Ablation(((Branches, "breadth", 1.0),)),
    "rescue and breadth learnt": Ablation(((Branches, "observe", nothing),)),
    "yields": Ablation(((Yields, "share", _as_forecast),)),
    "node price (nodes are free)": Ablation(((planner, "decide", _free_nodes),)),
    "worth of a node by depth": Ablation(((planner, "decide", _equal_depths),)),
    "draft steps while they pay": Ablation(((planner, "decide", _all_steps),)),
    "what side nodes cost the drafter": Ablation(((CostModel, "side_ms", 0.0),)),
    "nodes by the time left": Ablation(((treeplan, "fitting_nodes", _nodes_whatever_time),), guards="SLO"),
    "looked-up text": Ablation(config={"lookup_depth": 0}, lookup=True),
    "calibration of looked-up text": Ablation(
        ((Knowledge, "learn_lookup", _lookup_by(_Unlearning)),), lookup=True
    ),
    "length of the match": Ablation(((Knowledge, "learn_lookup", _lookup_by(_OneChance)),), lookup=True),
    "looked-up text in the forecast": Ablation(((solving, "_looked_up", _nothing_found),), lookup=True),
    "first step by what is looked up": Ablation(((planner, "decide", _always_asked),), lookup=True),
    "looked-up text in fallback": Ablation(((OptimalPlanner, "_fall_back", _plain_fallback),), lookup=True),
    "nothing (prior 0.64)": Ablation(config={"prior_acceptance": 0.64}),
    "nothing (prior 0.66)": Ablation(config={"prior_acceptance": 0.66}),
    "nothing (prior 0.67)": Ablation(config={"prior_acceptance": 0.67}),
}
"""By name; every signal that only trees or looked-up text have."""
CHANCE = tuple(name for name in ABLATIONS if name.startswith("nothing"))


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the recorded trace and its costs are."""

    trace: Path
    costs: Path


def measure(cell: Cell, recorded: Recorded | None = None) -> Results:
    """A cell on a scenario with further choices, or on the recorded trace."""
    if cell.scenario in RECORDED and recorded is not None:
        requests, costs, config = replayed(cell, recorded)
    else:
        one = scenario(cell.scenario)
        one = replace(one, choices=True, config=replace(one.config, max_nodes=TREE_NODES))
        costs, config = one.costs, one.config
        requests = offered(one, cell.load, cell.seed, cell.requests)
    off = {
        signal: ABLATIONS[signal]
        for signal in cell.signals
        if config.lookup_depth or not ABLATIONS[signal].lookup
    }
    return compare(off, requests, costs, config, closed_loop=not cell.load)


def replayed(cell: Cell, recorded: Recorded) -> tuple[list[ReplayRequest], EngineCosts, ControllerConfig]:
    """Requests from the recorded trace as they arrive, the engine's costs and the promises."""
    costs = read_costs(recorded.costs)
    if cell.scenario == "recorded, dear steps":
        costs = dear_steps(costs)
    traces = read_agreement(recorded.trace)
    if cell.scenario.startswith("rewrites"):
        traces = [trace for trace in traces if trace.request.startswith("rewrite")] or traces
    budget = 4.0 if cell.scenario.endswith("B=4") else 2.0
    config = ControllerConfig(pass_budget=budget, max_nodes=TREE_NODES, lookup_depth=TREE_LOOKUP)
    return arriving(traces, costs, config, cell), costs, config


def dear_steps(costs: EngineCosts) -> EngineCosts:
    """The costs with each further node of a draft step dearer by :data:`DEAR_NODE` steps, up to
    :data:`WIDEST` nodes; what is wider (a prefill) is dearer by as much as those.
    """
    table = costs.draft_forward
    widths = sorted({*map(float, range(1, WIDEST + 1)), *table.at})
    step = table(1.0)
    ms = [table(width) + DEAR_NODE * step * (min(width, WIDEST) - 1.0) for width in widths]
    return replace(costs, draft_forward=Table(tuple(widths), tuple(ms)))


def main() -> int:
    """Run the ablations and print the table."""
    parser = arguments(__doc__, ABLATIONS, SCENARIOS + RECORDED, 300)
    parser.add_argument("--trace", type=Path, help="recorded agreement trace; without it scenarios only")
    parser.add_argument("--costs", type=Path, help="the costs recorded with it")
    options = parser.parse_args()
    if (options.trace is None) != (options.costs is None):
        parser.error("--trace and --costs belong together; `specpilot record` writes both")
    recorded = Recorded(options.trace, options.costs) if options.trace else None
    names = options.only or (SCENARIOS + RECORDED if recorded else SCENARIOS)
    if recorded is None and set(names) & set(RECORDED):
        parser.error("--only: a recorded workload needs --trace and --costs")
    suite = f"Scenario suite version {VERSION} with further choices, {TREE_NODES} nodes"
    run(options, names, partial(measure, recorded=recorded), ABLATIONS, CHANCE, suite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
