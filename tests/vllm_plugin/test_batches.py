"""The policy in an engine that drafts for its whole batch, a step ahead: recovery and the draft length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from tests.vllm_plugin.stepping import SteppingEngine

from specpilot.control import Controller, ControllerConfig
from specpilot.vllm.config import PROFILE
from specpilot.vllm.pilot import Pilot

BATCH = 8


def engine(
    seed: int = 0, target_ms: Callable[[int], float] | None = None, **config: object
) -> SteppingEngine:
    """A batch of eight; a target pass takes 10 ms and 0.02 a token, a draft forward 0.3 ms."""
    values = {"slo_p95_ms": 1e9, "max_draft": 6, "pass_budget": math.inf, **config}
    controller = Controller(ControllerConfig(**values), profile=PROFILE)  # type: ignore[arg-type]
    return SteppingEngine(
        Pilot(controller),
        batch=BATCH,
        target_ms=target_ms or (lambda width: 10.0 + 0.02 * width),
        draft_ms=lambda length: 0.2 + 0.3 * max(1, length),
        seed=seed,
    )


def share(steps: Sequence[Sequence[int]]) -> float:
    """The share of decode passes that verified drafts."""
    passes = [proposed for step in steps for proposed in step]
    return sum(proposed > 0 for proposed in passes) / len(passes)


def steps_until_regular(served: SteppingEngine, bad_steps: int) -> int:
    """Good drafts, useless ones for so many steps, good ones again: steps until five mostly draft."""
    served.run(60, lambda _: 0.95)
    assert share(served.proposed[-10:]) > 0.6
    served.run(bad_steps, lambda _: 0.0)
    # Over two probes' time: drafting may be taken up for a moment and be dropped again.
    assert share(served.proposed[-20:]) < 0.5
    before = len(served.proposed)
    served.run(60, lambda _: 0.95)
    after = served.proposed[before:]
    return next((at for at in range(len(after) - 5) if share(after[at : at + 5]) > 0.5), len(after))


@pytest.mark.parametrize("budget", [4.0, 6.0, math.inf])
@pytest.mark.parametrize("bad_steps", [40, 60, 97])
@pytest.mark.parametrize("seed", range(4))
def test_speculation_is_back_within_the_bound_of_i6_whatever_shares_a_step(
    budget: float, bad_steps: int, seed: int
) -> None:
    """At most probe_max cycles to a probe, and 16 steps for what comes after it.

    A step is a cycle for each request, and the next draft can only be made a step later: what takes a cycle
    where requests run alone takes a step or two here. A prompt's pass is no cycle that could probe. At B = 4
    and eight in a batch the probes, 64 cycles apart, used to meet requests that ended instead, for ever.
    """
    served = engine(seed, pass_budget=budget)
    cycles = served.pilot.controller.config.probe_max
    decode = 1.0 - 1.0 / budget
    assert steps_until_regular(served, bad_steps) <= cycles / (BATCH * decode) + 16


@pytest.mark.parametrize("batch", [3, 8])
def test_every_probe_that_is_due_finds_its_draft_made(batch: int) -> None:
    served = engine(pass_budget=6.0)
    served.batch = batch
    served.run(60, lambda _: 0.0)
    before, probes = served.undrafted, sum(any(step) for step in served.proposed)
    served.run(100, lambda _: 0.0)
    assert sum(any(step) for step in served.proposed) >= probes + 3
    assert served.undrafted == before


def rate(served: SteppingEngine, acceptance: Callable[[int], float]) -> float:
    """Tokens per ms of engine time, once the costs are learned."""
    served.run(100, acceptance)
    tokens, time_ms = served.emitted, served.engine_ms
    served.run(200, acceptance)
    return (served.emitted - tokens) / (served.engine_ms - time_ms)


@pytest.mark.parametrize(
    ("acceptance", "step_ms"),
    [(lambda n: 0.95 if n % 8 == 0 else 0.4, 1.5), (lambda n: 0.9 if n % 2 else 0.3, 1.5)],
    ids=["one in eight is easy", "every other one is easy"],
)
def test_a_long_draft_that_few_want_is_not_made_for_all(
    acceptance: Callable[[int], float], step_ms: float
) -> None:
    """A draft step takes 1.5 of 10 ms from all: at most a twentieth worse than the best static length.

    With K the longest τ of the batch it was a tenth (one in eight) and a sixth (every other) worse.
    """
    rates = {}
    for static in (None, 0, 1, 2, 3, 4, 6):
        served = engine(1) if static is None else engine(1, mode="off", static_draft=static)
        served.draft_ms = lambda length: 0.5 + step_ms * max(1, length)
        rates[static] = rate(served, acceptance)
    own = rates.pop(None)
    assert own > 0.95 * max(rates.values()), (own, rates)


@pytest.mark.parametrize(("slow_steps", "step_ms"), [(50, 1.5), (50, 4.0), (200, 4.0)])
def test_a_slow_spell_of_the_drafter_is_over_when_it_is_over(slow_steps: int, step_ms: float) -> None:
    """For a while all drafting takes twenty times as long; what the drafter was then seen to take in a step
    without drafts made drafts look free ever after, and a seventh of the tokens per second was lost.
    """
    served = engine(1)
    served.max_tokens = 200
    served.draft_ms = lambda length: 0.2 + step_ms * max(1, length)
    served.run(200, lambda _: 0.3)
    served.draft_ms = lambda length: 20.0 * (0.2 + step_ms * max(1, length))
    served.run(slow_steps, lambda _: 0.3)
    served.draft_ms = lambda length: 0.2 + step_ms * max(1, length)
    served.run(300, lambda _: 0.3)
    assert served.pilot.controller.cost.draft_step_ms > 0.7 * step_ms


def test_a_draft_is_priced_at_the_width_of_the_batch() -> None:
    """Passes are flat up to 16 tokens and cost 1 ms a token beyond: with eight requests drafts do not pay.

    One request's block of seven would be free. Eight blocks of τ + 1 take 10 ms and 8·(τ + 1) − 16 more.
    """

    def target_ms(width: int) -> float:
        return 10.0 + max(0, width - 16) * 1.0

    crowded = engine(target_ms=target_ms)
    crowded.run(200, lambda _: 0.6)
    lone = engine(target_ms=target_ms)
    lone.batch = 1
    lone.run(400, lambda _: 0.6)
    verified = [sum(p for step in one.proposed[-100:] for p in step) for one in (crowded, lone)]
    passes = [sum(len(step) for step in one.proposed[-100:]) for one in (crowded, lone)]
    assert verified[0] / passes[0] < 1.3
    assert verified[1] / passes[1] > 2.0


def test_requests_that_may_not_draft_do_not_keep_the_others_from_it_for_good() -> None:
    """Seven of eight speculate not at all; the eighth is tried now and then, whatever its draft costs."""
    served = engine()
    served.draft_ms = lambda length: 0.5 + 3.0 * max(1, length)
    served.run(200, lambda _: 0.95, lambda number: None if number % 8 == 0 else 0)
    assert 3 <= sum(length > 0 for length in served.lengths[100:]) <= 50
