"""Replay of trees and looked-up text: by hand, against live runs, in the simulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from specpilot.control import ControllerConfig, CycleOutcome, CyclePlan, StopCause, StopRule
from specpilot.control.tree import LookupRule, TreeRule
from specpilot.control.types import Binding, Reason
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.request import DecodingRequest
from specpilot.drafters.lookup import LookupDrafter
from specpilot.drafters.model import ModelDrafter
from specpilot.simulation.costs import EngineCosts
from specpilot.simulation.drive import serve
from specpilot.simulation.observed import ObservedController
from specpilot.simulation.policies import replay_policy
from specpilot.simulation.record import Recorder
from specpilot.simulation.replay import ReplayRequest, TraceExecutor
from specpilot.simulation.scenarios import scenario
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController, decode
from specpilot.trace.agreement import AgreementTrace

COSTS = EngineCosts.from_numbers(draft_ms=1.0, verify_ms=5.0, verify_token_ms=0.5)
TRACE = AgreementTrace(
    "t",
    10,
    agree=(1, 0, 1, 0, 0, 1),
    confidence=(0.6,) * 6,
    rank=(0, 1, 0, 4, 9, 0),
    shares=((0.5, 0.5, 0.5, 0.5),) * 6,
    lookup=((0.0, 0), (0.75, 3), (0.75, 2), (0.75, 1), (0.0, 0), (0.0, 0)),
    ended="max_tokens",
)


def plan(depth: int, nodes: int, rule: TreeRule) -> CyclePlan:
    return CyclePlan(1, "r", depth, nodes, StopRule(), math.inf, False, Reason(Binding.MAX), tree=rule)


def executor(trace: AgreementTrace = TRACE) -> TraceExecutor:
    made = TraceExecutor({"r": ReplayRequest("r", trace, 24)}, COSTS)
    made.open("r")
    return made


def test_a_tree_by_hand() -> None:
    """Two levels with all choices: the first is right, the second choice at position 2, so both are
    accepted.
    """
    done = executor().run([plan(2, 64, TreeRule(width=6))])[0]
    assert (done.proposed, done.accepted, done.side_accepted, done.emitted) == (2, 1, 1, 3)
    assert done.drafted == 2
    assert done.side_proposed == 5 + 5 * 5 - 2
    assert done.side_judged == ((2, 0.5, True),)
    # Prompt of 10 and 30 nodes: 5 ms and 0.5 ms for each further token.
    assert done.verify_ms == pytest.approx(5.0 + 0.5 * 39)


def test_looked_up_text_by_hand() -> None:
    made = executor()
    made.seek("r", 1)
    sure = TreeRule(lookup=LookupRule((9.0,), 0.0, 2), first_at=0.5)
    done = made.run([plan(4, 16, sure)])[0]
    # Two of the three right tokens are taken, and the draft model is not asked.
    assert (done.drafter, done.proposed, done.accepted, done.emitted) == ("lookup", 2, 2, 3)
    assert done.lookup_judged == (0.75, 2, 2)
    assert done.draft_ms == 0.0


def test_the_output_ends_inside_a_tree() -> None:
    made = executor(_cut(2))
    done = made.run([plan(4, 64, TreeRule())])[0]
    assert done.emitted == 2
    assert done.ended is StopCause.MAX_TOKENS
    assert done.accepted + done.side_accepted <= 2


def test_nothing_is_drafted_behind_the_end() -> None:
    """As live: the draft's EOS ends its path, whatever else the tree tries."""
    trace = replace(_cut(3), agree=(1, 1, 1), rank=(0, 0, 0), ended="eos")
    done = executor(trace).run([plan(8, 8, TreeRule(width=1, branching=False))])[0]
    assert (done.drafted, done.proposed, done.accepted, done.emitted) == (3, 3, 3, 3)
    assert done.ended is StopCause.EOS
    cut = replace(trace, ended=None)
    assert executor(cut).run([plan(8, 8, TreeRule(width=1, branching=False))])[0].drafted > 3


def _cut(length: int) -> AgreementTrace:
    return AgreementTrace(
        "t", 10, (1,) * length, (0.9,) * length, (0,) * length, shares=((0.5,) * 4,) * length,
        lookup=((0.0, 0),) * length, ended="max_tokens",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_exhaustive_trees_equal_live(seed: int) -> None:
    """With room for every choice at both levels nothing competes: the replay is exact, cycle by cycle."""
    target = ScriptedLM(seed=seed, scale=2.0)
    draft = target.variant(noise=1.0)
    request = DecodingRequest("r", [1, 2, 3], 30, eos_token_ids=target.eos_token_ids)
    controller = StaticController(2, nodes=64)
    decode(ModelTarget(target), ModelDrafter(draft), [request], controller)
    trace = Recorder(target, draft).record("t", [1, 2, 3], 30).trace
    made = TraceExecutor({"r": ReplayRequest("r", trace, 30)}, COSTS)
    made.open("r")
    start = 0
    for cycle in request.details:
        made.seek("r", start)
        done = made.run([plan(2, 64, TreeRule())])[0]
        assert (done.accepted + done.side_accepted, done.emitted) == (len(cycle.accepted), len(cycle.emitted))
        start += len(cycle.emitted)
    assert start == len(trace.agree)


def test_recorded_look_ups_are_what_the_drafter_would_propose() -> None:
    target = ScriptedLM(5, order=1, seed=2, scale=3.0)
    prompt = [1, 2, 3, 1, 2]
    recording = Recorder(target, target.variant(noise=0.5)).record("t", prompt, 20)
    drafter = LookupDrafter(target.vocab_size)
    drafter.open("r", prompt)
    output = list(recording.token_ids)
    assert recording.trace.lookup is not None
    for position, (confidence, right) in enumerate(recording.trace.lookup):
        found, sure = drafter.find("r", [*prompt, *output[:position]], 40)
        assert confidence == sure
        assert found[:right] == output[position : position + right]
        assert (
            right == len(found) or found[right : right + 1] != output[position + right : position + right + 1]
        )


def test_trees_in_the_simulator() -> None:
    """More tokens a pass than chains, still within the budget; chains are the same with choices drawn."""
    plain = scenario("steady")
    chosen = replace(plain, choices=True)
    one, other = plain.requests(150, 1), chosen.requests(150, 1)
    assert [r.trace.agree for r in one] == [r.trace.agree for r in other]
    chains = replay_policy("specpilot", one, plain.costs, closed_loop=True).result
    same = replay_policy("specpilot", other, plain.costs, closed_loop=True).result
    assert chains.tokens_per_pass == same.tokens_per_pass
    config = ControllerConfig(max_nodes=24)
    trees = replay_policy("specpilot", other, plain.costs, config, closed_loop=True).result
    assert trees.tokens_per_pass > 1.15 * chains.tokens_per_pass
    assert trees.goodput_tokens_per_s > chains.goodput_tokens_per_s
    assert trees.budget_violations == 0
    bound = replay_policy("oracle-tree", other, plain.costs, config, closed_loop=True).result
    assert bound.goodput_tokens_per_s > trees.goodput_tokens_per_s


def test_a_trace_without_choices_is_refused_for_trees() -> None:
    requests = scenario("steady").requests(5, 1)
    with pytest.raises(ValueError, match="shares"):
        replay_policy("specpilot", requests, COSTS, ControllerConfig(max_nodes=8))


def test_trees_come_back_after_a_spell_in_which_the_draft_was_slow() -> None:
    """In 60 of 500 requests a draft step takes a hundred times as long. Trees are given up for it; what they
    cost is measured again while chains are better, or nobody would see that the spell is over.
    """
    one = replace(scenario("steady-cheap-draft"), choices=True)
    requests = one.requests(500, seed=2)
    places = {request.request_id: place for place, request in enumerate(requests)}
    branching: list[tuple[int, bool]] = []

    class Slowed(TraceExecutor):
        def run(self, plans: Sequence[CyclePlan]) -> list[CycleOutcome]:
            place = places[plans[0].request_id]
            branching.append((place, plans[0].tree is not None and plans[0].tree.branching))
            slow = 100.0 if 200 <= place < 260 else 1.0
            return [replace(done, draft_ms=slow * done.draft_ms) for done in super().run(plans)]

    controller = ObservedController(replace(one.config, slo_p95_ms=1e7, max_nodes=64))
    made = Slowed({request.request_id: request for request in requests}, one.costs)
    serve(controller, made, requests, VirtualClock(), closed_loop=True)

    def share(first: int, end: int) -> float:
        kinds = [kind for place, kind in branching if first <= place < end]
        return sum(kinds) / len(kinds)

    assert share(100, 200) > 0.5
    assert share(230, 260) < 0.2
    assert share(400, 500) > 0.5
