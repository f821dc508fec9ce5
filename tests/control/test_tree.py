"""Trees in the policy: what a node is worth, what is learnt of branches, plans with a tree."""

from __future__ import annotations

import math
import pickle
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control.driving import Engine, cut, serve

from specpilot.control import (
    Controller,
    ControllerConfig,
    CycleOutcome,
    CyclePlan,
    Mode,
    RequestInfo,
    StopCause,
)
from specpilot.control.branching import Branches, Yields
from specpilot.control.cost import CostProfile
from specpilot.control.health import Trials
from specpilot.control.planner import OptimalPlanner
from specpilot.control.solving import Inputs, decide
from specpilot.control.stop import StopRule, sigmoid
from specpilot.control.tree import LookupRule, TreeRule, first_chance
from specpilot.control.types import AcceptanceName

FLAT = CostProfile(0.3, tuple(6.0 + 0.001 * n for n in range(12)))


def test_a_later_choice_is_calibrated_by_its_rank() -> None:
    """By hand: σ(ln 3) = 3/4 for the second choice, σ(−ln 3 + 2 · logit(1/2)) = 1/4 for all later ones."""
    assert [TreeRule().right(rank, 0.3) for rank in (2, 3)] == [0.3, 0.3]
    rule = TreeRule(ranks=((math.log(3.0), 0.0), (-math.log(3.0), 2.0)))
    assert [rule.right(rank, 0.5) for rank in (2, 3, 4)] == pytest.approx([0.75, 0.25, 0.25])


def test_worth_and_price_of_a_node() -> None:
    rule = TreeRule(worth=(1.0, 0.5), node_price=(0.0, 0.1))
    assert [rule.value(depth, 0.4) for depth in (1, 2, 3)] == pytest.approx([0.4, 0.2, 0.2])
    assert [rule.price(node, side=False) for node in (1, 2, 9)] == [0.0, 0.1, 0.1]
    assert (TreeRule().value(5, 0.4), TreeRule().price(7, side=False)) == (0.4, 0.0)
    dear = replace(rule, side_price=0.05)
    assert [dear.price(node, side=True) for node in (1, 2)] == pytest.approx([0.05, 0.15])
    assert dear.price(2, side=False) == 0.1


def test_first_choice_by_the_stop_rule() -> None:
    assert first_chance(StopRule(), 0.7) == pytest.approx(0.7)
    assert first_chance(StopRule(intercept=1.0, slope=2.0), 0.5) == pytest.approx(sigmoid(1.0))


def test_looked_up_text_is_believed_by_its_calibration() -> None:
    rule = LookupRule((0.0, 1.0), 1.0, 8)
    assert rule.chance(1, 0.75) == pytest.approx(0.75)
    assert rule.chance(7, 0.5) == pytest.approx(sigmoid(1.0))


def test_branches_by_hand() -> None:
    branches = Branches(memory=0.5, prior=0.25, weight=4.0)
    assert (branches.rescue, branches.breadth) == (0.25, 2.0)
    branches.observe(failed=True, rescued=True, nodes=12, levels=3)
    assert branches.rescue == pytest.approx((0.5 + 1.0) / (2.0 + 1.0))
    assert branches.breadth == pytest.approx((4.0 + 12.0) / (2.0 + 3.0))
    assert branches.widened([0.4, 1.0]) == pytest.approx([0.4 + 0.6 * 0.5, 1.0])
    before = branches.rescue
    branches.observe(failed=False, rescued=True, nodes=3, levels=3)
    assert branches.rescue == before


def branching(
    seed: int,
    *,
    node_ms: float = 0.0,
    right: float = 0.6,
    right_coupled: float = 0.6,
    rescue: float = 1.0,
) -> Engine:
    """The first choice is right with ``right``, or ``right_coupled`` once the request has gone over to shared
    noise, else the second with ``rescue``.

    A draft step takes 0.3 ms, a pass 7 ms and ``node_ms`` for each node.
    """
    rng = random.Random(seed)
    over: set[str] = set()

    def engine(plan: CyclePlan, cycle: int) -> tuple[CycleOutcome, float]:
        proposed = min(plan.max_draft, 4 if plan.tree is None else plan.tree.model_depth)
        accepted = 0
        if plan.coupled:
            over.add(plan.request_id)
        chance = right_coupled if plan.request_id in over else right
        while accepted < proposed and rng.random() < chance:
            accepted += 1
        branching = plan.tree is not None and plan.tree.branching
        side = max(0, plan.max_nodes - proposed) if branching else 0
        failed = side > 0 and accepted < proposed
        rescued = int(failed and rng.random() < rescue)
        verify_ms = 7.0 + node_ms * (proposed + side)
        outcome = CycleOutcome(
            plan.cycle_id, proposed, proposed, accepted, accepted + rescued + 1,
            tuple([chance] * proposed), 0.3 * proposed, verify_ms=verify_ms,
            verified_tokens=proposed + side + 1, side_proposed=side, side_accepted=rescued,
            side_judged=((2, 0.7, bool(rescued)),) * failed,
            side_worth=(1.0 - chance**proposed) * rescue if side else None,
        )  # fmt: skip
        return outcome, 0.3 * proposed + verify_ms

    return engine


def test_without_nodes_blocks_are_chains() -> None:
    plans = serve(Controller(), 60, branching(1))
    assert all(plan.tree is None and plan.max_nodes == plan.max_draft for plan in plans)


def test_plans_carry_a_tree_that_pickles() -> None:
    config = ControllerConfig(max_nodes=24, lookup_depth=20)
    plans = serve(Controller(config, profile=FLAT), 60, branching(1))
    trees = [plan for plan in plans if plan.tree is not None]
    assert len(trees) > 40
    for plan in trees:
        tree = plan.tree
        assert tree is not None
        assert tree.lookup is not None
        assert tree.model_depth <= plan.max_draft <= plan.max_nodes <= 24
        assert tree.lookup.depth <= plan.max_draft
        assert pickle.loads(pickle.dumps(plan.tree)) == plan.tree


def test_ranks_are_learnt() -> None:
    """Where the second choice is always the right one, it becomes nearly sure."""
    controller = Controller(ControllerConfig(max_nodes=24), profile=FLAT)
    last = serve(controller, 300, branching(1))[-1].tree
    assert last is not None
    assert last.right(2, 0.7) > 1.3 * TreeRule().right(2, 0.7)


@pytest.mark.parametrize(
    ("node_ms", "rescue", "least", "most"),
    [(1.5, 0.0, 0.0, 0.15), (0.01, 0.05, 0.0, 0.15), (0.01, 0.6, 0.8, 1.0)],
    ids=["nodes are dear", "less than a chain loses by it", "trees bring more"],
)
def test_an_unseeded_request_goes_over_to_shared_noise_where_it_pays(
    node_ms: float, rescue: float, least: float, most: float
) -> None:
    """And stays there: nothing leads back (the noise has been looked at)."""
    controller = Controller(ControllerConfig(max_nodes=16), profile=FLAT)
    engine = branching(1, node_ms=node_ms, right_coupled=0.55, rescue=rescue)
    plans = serve(controller, 1200, engine, acceptance="rejection")
    assert least <= sum(plan.coupled for plan in plans[600:]) / 600 <= most
    assert any(plan.coupled for plan in plans[600:])
    assert not all(plan.coupled for plan in plans[600:])
    assert not any(plan.tree is not None and not plan.coupled for plan in plans)
    over: dict[str, bool] = {}
    for plan in plans:
        assert plan.coupled or not over.get(plan.request_id, False)
        over[plan.request_id] = plan.coupled


def test_shadow_mode_gets_past_the_cold_start() -> None:
    """No coupled block is ever run there: the plans recorded are those that could be learnt."""
    config = ControllerConfig(max_nodes=16, mode=Mode.SHADOW, static_draft=3)
    plans = serve(Controller(config, profile=FLAT), 400, branching(1), acceptance="rejection")
    late = [plan.reason.note for plan in plans[200:]]
    assert late.count("cold start") < 0.1 * len(late)
    assert not any(plan.coupled for plan in plans)


def test_who_has_gone_over_stays_so_through_shadow_mode() -> None:
    """The executor's noise is shared from the first coupled plan on, whoever plans the cycles after it."""
    controller = Controller(ControllerConfig(max_nodes=16, pass_budget=8.0), profile=FLAT)
    engine = branching(1, right=0.5, rescue=0.6)
    serve(controller, 600, engine, acceptance="rejection")
    for number in range(40):
        name = f"s{number}"
        controller.admit(RequestInfo(name, 40, 24, slo_ms=1e9, acceptance="rejection"), now=1e3)
        coupled: list[bool] = []
        left = 24
        for mode in ("on", "shadow", "on"):
            controller.mode = mode
            plan = controller.plan([name], now=1e3).cycles[0]
            controller.begin([plan.cycle_id], now=1e3)
            done = cut(engine(plan, 0)[0], left)
            controller.observe([done], now=1e3)
            left -= done.emitted
            coupled.append(plan.coupled)
            if done.ended is not None:
                break
        assert not coupled[0] or coupled[-1] or len(coupled) < 3
        controller.finish(name, StopCause.CANCELLED, now=1e3)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_better_rule_is_found_again(seed: int) -> None:
    """Of the rule that is not used nothing is learnt; its decisions must not outlive what they rest on."""
    controller = Controller(ControllerConfig(max_nodes=16), profile=FLAT)
    engine = branching(seed, node_ms=0.01, right=0.62, right_coupled=0.6, rescue=0.9)
    plans = serve(controller, 8000, engine, acceptance="rejection")
    assert sum(plan.coupled for plan in plans[2000:]) > 0.8 * 6000


@pytest.mark.parametrize("acceptance", ["greedy", "coupled", "deterministic"])
def test_who_judges_trees_has_nowhere_to_go_over_to(acceptance: AcceptanceName) -> None:
    plans = serve(
        Controller(ControllerConfig(max_nodes=16), profile=FLAT), 60, branching(1), acceptance=acceptance
    )
    assert any(plan.tree is not None for plan in plans)
    assert not any(plan.coupled for plan in plans)


def test_trials_by_hand() -> None:
    """Every fourth, then every eighth choice goes against what is better; a change starts it over."""
    trials = Trials(4, 8)
    assert [trials.due(second_better=False) for _ in range(20)] == [n in (3, 11, 19) for n in range(20)]
    assert [trials.due(second_better=True) for _ in range(5)] == [False] * 3 + [True, False]


def test_a_node_is_dear_where_verification_is_not_parallel() -> None:
    """On a busy engine 16 nodes cost θ times what they make the pass longer: 16 ms or 0.16 ms."""
    longer_ms = {}
    for node_ms in (0.01, 1.0):
        plans = serve(Controller(ControllerConfig(max_nodes=16)), 300, branching(1, node_ms=node_ms))
        # The last tree: where nodes are dear, chains are planned beside it.
        plan = [plan for plan in plans if plan.tree is not None][-1]
        assert plan.tree is not None
        longer_ms[node_ms] = sum(plan.tree.node_price[:16]) / plan.reason.numbers["theta"]
    assert longer_ms[0.01] < 4.0  # widths that never occur keep some of the first guess
    assert 8.0 < longer_ms[1.0] < 25.0


def test_the_choice_caps_a_requests_own_draft_length() -> None:
    controller = Controller(ControllerConfig(max_nodes=24, lookup_depth=20), profile=FLAT)
    serve(controller, 40, branching(1))
    controller.admit(RequestInfo("capped", 40, 24, slo_ms=1e9, max_draft=3), now=1e3)
    plan = controller.plan(["capped"], now=1e3).cycles[0]
    assert plan.max_draft <= 3
    controller.admit(RequestInfo("off", 40, 24, slo_ms=1e9, max_draft=0), now=1e3)
    plan = controller.plan(["off"], now=1e3).cycles[0]
    assert (plan.max_draft, plan.tree) == (0, None)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    budget=st.sampled_from([1.0, 1.5, 2.0, 2.7]),
    nodes=st.sampled_from([1, 8, 32]),
    lookup=st.booleans(),
)
def test_the_budget_holds_with_trees(seed: int, budget: float, nodes: int, lookup: bool) -> None:
    """I1: a tree is one pass, however many nodes it has. I7: the same events give the same plans."""
    config = ControllerConfig(pass_budget=budget, max_nodes=nodes, lookup_depth=nodes if lookup else 0)
    controller, again = Controller(config), Controller(config)
    plans = serve(controller, 80, branching(seed))
    assert controller.ledger.passes_started <= budget * controller.counters.arrivals + 1e-9
    assert plans == serve(again, 80, branching(seed))


def test_learnt_branches_survive_a_snapshot() -> None:
    config = ControllerConfig(max_nodes=24, lookup_depth=20)
    one, two = Controller(config, profile=FLAT), Controller(config, profile=FLAT)
    serve(one, 100, branching(2))
    one.admit(RequestInfo("last", 40, 24, slo_ms=1e9), now=1e3)
    one.finish("last", StopCause.CANCELLED, now=1e3)
    for request in list(one._requests):
        one.finish(request, StopCause.CANCELLED, now=1e3)
    two.restore(one.snapshot())
    assert two.snapshot() == one.snapshot()
    two.admit(RequestInfo("next", 40, 24, slo_ms=1e9), now=2e3)
    tree = two.plan(["next"], now=2e3).cycles[0].tree
    assert tree is not None
    assert tree.right(2, 0.7) > TreeRule().right(2, 0.7)


@pytest.mark.parametrize(("nodes", "lookup"), [(-1, 0), (257, 0), (4, 5)])
def test_bad_configurations(nodes: int, lookup: int) -> None:
    with pytest.raises(ValueError, match=r"max_nodes|lookup_depth"):
        ControllerConfig(max_nodes=nodes, lookup_depth=lookup)


def test_forecasts_are_judged_and_corrected_in_later_cycles_only() -> None:
    """With one pass a request nothing is learnt; what is learnt moves no first cycle's decision."""
    controller = Controller(ControllerConfig(max_nodes=16, pass_budget=1.0), profile=FLAT)
    serve(controller, 200, branching(1))
    planner = controller.planner
    assert isinstance(planner, OptimalPlanner)
    known = planner.knowledge
    (context,) = known.contexts.values()
    assert [context.yields.share(branching=kind) for kind in (False, True)] == [1.0, 1.0]
    cost = controller.cost
    inputs = Inputs(known.hazards(context, 8), context, known.end_hazard, cost, 16, known.lookup)
    # Ceiling, wanted, later passes, price, width, behind, shift, matched, beside, sharing.
    first, later = ((8, 20, 1, -10, width, 0, 0, 0, 0, 1) for width in (40, 1))
    before = decide(inputs, first).value, decide(inputs, later).value
    for kind in (False, True):
        for _ in range(40):
            context.yields.observe(branching=kind, brought=0.5, forecast=2.0)
    assert decide(inputs, first).value == before[0]
    assert decide(inputs, later).value < before[1]


def test_what_blocks_bring_corrects_their_kind_only() -> None:
    yields = Yields(memory=0.5, weight=4.0)
    assert yields.share(branching=True) == 1.0
    yields.observe(branching=True, brought=1.0, forecast=3.0)
    # (4·0.5 + 1) ÷ (4·0.5 + 3)
    assert yields.share(branching=True) == pytest.approx(0.6)
    assert yields.share(branching=False) == 1.0
    for _ in range(20):
        yields.observe(branching=False, brought=0.0, forecast=3.0)
    assert yields.share(branching=False) == 0.5  # a floor: such blocks are still made at times
