"""What each signal is worth: the suite's scenarios with one signal of the policy off at a time.

    python benchmarks/ablation.py [--seeds evaluation|development] [--requests 600] [--signal NAME]
    python benchmarks/ablation.py --trace trace.jsonl --costs costs.json --confirm 40

Each row switches one signal off by patching the estimator behind it (nothing in the product knows of
ablations) and replays the same arrivals; a cell is the change of specpilot's goodput, the least and the
most over the three loads. A signal that costs less than 0.5 % everywhere and guards no invariant has no
reason to stay. Simulated workloads. The worst of 45 rows is one or two per cent by chance alone: with
``--confirm N`` each signal's eight worst rows are run again on N seeds that nothing was seen on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ablating import Ablation, Cell, Results, arguments, arriving, compare, nothing, run

from specpilot.control import ControllerConfig, knowledge, planner
from specpilot.control.acceptance import AcceptanceModel, HazardTable
from specpilot.control.budget import PassPrice
from specpilot.control.calibration import Calibration
from specpilot.control.change import Change
from specpilot.control.contexts import Context
from specpilot.control.cost import CostModel
from specpilot.control.curves import UpperQuantile
from specpilot.control.difficulty import Difficulty
from specpilot.control.ending import EndHazard
from specpilot.control.health import Fallback
from specpilot.control.knowledge import Knowledge
from specpilot.control.latency import DeadlineTracker, TimePrice
from specpilot.control.planner import OptimalPlanner
from specpilot.control.solving import STATIC_DRAFT
from specpilot.simulation.costs import read_costs
from specpilot.simulation.scenarios import SCENARIOS, scenario
from specpilot.simulation.suite import offered
from specpilot.trace import read_agreement

NEVER = 10**9
_learn_difficulty, _price = Knowledge._learn_difficulty, TimePrice.price


def _pooled_positions(self: HazardTable, count: int, *, keep: bool = True) -> list[float]:
    """One α for all positions: accepted ÷ reached over the whole block."""
    reached, accepted = sum(self.reached), sum(self.accepted)
    return [(accepted + self.shrinkage * self.prior) / (reached + self.shrinkage)] * count


def _keep_weights(self: Difficulty, weights: Sequence[float], *args: object) -> list[float]:
    """No request is easier or harder than another."""
    return list(weights)


def _accepts_only(
    self: Knowledge, context: Context, request_id: str, log_odds: Sequence[float], *lengths: int
) -> None:
    """A request's difficulty shows in its accept lengths alone."""
    _learn_difficulty(self, context, request_id, (), *lengths)


def _full_probe(self: OptimalPlanner) -> int:
    return STATIC_DRAFT


def _always_full_price(self: TimePrice, *args: float) -> float:
    return self.busy_rate


def _no_queue(self: TimePrice, waiting: int, left_ms: float, cycle_ms: float = 0.0) -> float:
    return _price(self, 0, left_ms, cycle_ms)


def _reset_upper(self: UpperQuantile, ratio: float) -> None:
    self.ratio = 1.0


def _hinders_nobody(self: TimePrice, cycle_ms: float) -> float:
    return 0.0


def _no_change(self: Change, *args: float) -> bool:
    return False


def _by_itself(self: AcceptanceModel, drafter: str) -> list[int]:
    return []


def _never_fall_back(self: Fallback, *args: object, **kwargs: object) -> bool:
    return False


def _free_pass(self: PassPrice, fill: float) -> float:
    return 0.0


def _free_prefill(self: CostModel, tokens: float) -> float:
    return 0.0


def _one_bucket(prompt_tokens: int) -> int:
    return 0


ABLATIONS: dict[str, Ablation] = {
    "acceptance by position": Ablation(((HazardTable, "hazards", _pooled_positions),)),
    "acceptance by prompt length": Ablation(((knowledge, "bucket_of", _one_bucket),)),
    "draft confidence": Ablation(confidences=False),
    "calibration (α̂ = max q)": Ablation(((Calibration, "observe", nothing),)),
    "open blocks": Ablation(config={"open_block_every": NEVER}, guards="I6 (upward)"),
    "request difficulty": Ablation(
        (
            (Difficulty, "posterior", _keep_weights),
            (Difficulty, "posterior_by_confidence", _keep_weights),
        )
    ),
    "difficulty by confidences": Ablation(((Knowledge, "_learn_difficulty", _accepts_only),)),
    "change detection": Ablation(((Change, "observe", _no_change),), guards="I6 (recovery)"),
    "change over all contexts": Ablation(((AcceptanceModel, "_start_over", _by_itself),)),
    "shrinkage to the pooled table": Ablation(config={"shrinkage": 0.01}),
    "learnt costs": Ablation(
        (
            (CostModel, "observe_draft", nothing),
            (CostModel, "observe_verify", nothing),
            (CostModel, "observe_host", nothing),
        ),
        guards="SLO",
    ),
    "upper quantiles": Ablation(((UpperQuantile, "observe", _reset_upper),), guards="SLO"),
    "draft prefill in the price": Ablation(((CostModel, "draft_prefill_ms", _free_prefill),)),
    "internal deadline": Ablation(((DeadlineTracker, "observe", nothing),), guards="SLO"),
    "θ by load (θ = θ* always)": Ablation(((TimePrice, "price", _always_full_price),)),
    "θ by the queue": Ablation(((TimePrice, "price", _no_queue),), guards="SLO"),
    "θ by utilisation": Ablation(((TimePrice, "utilisation", 0.0),)),
    "θ by SLO misses": Ablation(((TimePrice, "_strain", nothing),), guards="SLO"),
    "θ by whom a cycle would hinder": Ablation(((TimePrice, "hindered", _hinders_nobody),), guards="SLO"),
    "λ (price of a pool pass)": Ablation(((PassPrice, "price", _free_pass),)),
    "finish bonus": Ablation(config={"finish_bonus_tokens": 0.0}, guards="completion"),
    "fallback and its hysteresis": Ablation(((Fallback, "decide", _never_fall_back),), guards="I6"),
    "probes sooner after a good one": Ablation(((Change, "rising", False),), guards="I6 (recovery)"),
    "probe length by price": Ablation(((OptimalPlanner, "_probe_length", _full_probe),)),
    "circuit breaker": Ablation(config={"breaker_faults": NEVER}, guards="I6"),
    "cold start at a static length": Ablation(
        ((planner, "COLD_BLOCKS", 0), (planner, "UNSURE_BLOCKS", 0)), guards="cold start"
    ),
    "length so far (end hazard)": Ablation(((EndHazard, "observe", nothing),)),
}
"""By name; every signal of the policy page's table has a row."""


Recorded = Mapping[str, tuple[Path, Path]]
"""By the name of a row: a recorded agreement trace, and the costs of an engine."""


def measure(cell: Cell, recorded: Recorded = MappingProxyType({})) -> Results:
    """A cell on the suite's scenario, or on a recorded trace."""
    if cell.scenario in recorded:
        trace, measured_costs = recorded[cell.scenario]
        costs, config = read_costs(measured_costs), ControllerConfig()
        requests = arriving(read_agreement(trace), costs, config, cell)
    else:
        one = scenario(cell.scenario)
        costs, config = one.costs, one.config
        requests = offered(one, cell.load, cell.seed, cell.requests)
    off = {signal: ABLATIONS[signal] for signal in cell.signals}
    return compare(off, requests, costs, config, closed_loop=not cell.load)


def main() -> int:
    """Run the ablations and print the table."""
    names = [one.name for one in SCENARIOS]
    parser = arguments(__doc__, ABLATIONS, names, 600)
    parser.add_argument("--trace", type=Path, help="recorded agreement trace: rows of its own")
    parser.add_argument(
        "--costs", type=Path, action="append", default=[], help="an engine's; can be repeated"
    )
    options = parser.parse_args()
    if (options.trace is None) != (not options.costs):
        parser.error("--trace and --costs belong together; `specpilot record` writes both")
    recorded = {
        f"recorded, {read_costs(path).engine or path}": (options.trace, path) for path in options.costs
    }
    run(options, [*recorded, *(options.only or names)], partial(measure, recorded=recorded), ABLATIONS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
