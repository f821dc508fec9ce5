"""What the live executor tells a trace beyond the counts, on a whole run of a small engine."""

from __future__ import annotations

import pytest
from benchmarks.faulty_engine import Setup, run

from specpilot.trace import CycleRecord


def _cycles(temperature: float) -> list[CycleRecord]:
    _, records = run(Setup(seed=4, requests=25, temperature=temperature, policy="static-4"))
    return [record for record in records if isinstance(record, CycleRecord)]


def test_greedy_verdicts_are_the_target_s_own_choices() -> None:
    seen = 0
    for cycle in _cycles(0.0):
        told = cycle.evidence
        assert told.temperature == 0.0
        assert told.overlaps is None
        assert told.emitted_verdicts == (1,) * cycle.emitted
        if not cycle.proposed:
            assert told.verdicts is None
            continue
        assert told.verdicts is not None
        assert len(told.verdicts) == cycle.proposed
        leading = (*told.verdicts, 0).index(0)
        assert told.accepted_at == tuple(range(1, leading + 1))
        assert cycle.accepted == min(leading, cycle.emitted)
        assert told.proposed_ids is not None
        assert told.own_id is not None
        assert told.emitted_ids == (*told.proposed_ids[:leading], told.own_id)[: cycle.emitted]
        seen += 1
    assert seen > 40


def test_overlaps_are_the_acceptance_probabilities_of_judged_tokens() -> None:
    """Seeded: the mean of about 200 judged tokens is within five standard errors of Σ min(p, q), or this
    fails with odds of 6e-7 on another seed.
    """
    promised = happened = variance = 0.0
    beyond = 0
    for cycle in _cycles(0.8):
        told = cycle.evidence
        assert told.verdicts is None
        assert told.emitted_verdicts is None
        if not cycle.proposed:
            continue
        assert told.overlaps is not None
        assert told.accepted_at is not None
        # Of a block in which the output ended what lies beyond was not judged.
        assert len(told.overlaps) == min(len(told.accepted_at) + 1, cycle.proposed, cycle.emitted)
        beyond += len(told.accepted_at) > cycle.accepted
        assert told.proposal_q is not None
        assert all(
            q <= top * (1.0 + 1e-4) for q, top in zip(told.proposal_q, cycle.confidences, strict=False)
        )
        promised += sum(told.overlaps)
        happened += cycle.accepted
        variance += sum(value * (1.0 - value) for value in told.overlaps)
    assert promised > 100.0
    assert beyond, "no output ended inside a block with more of it accepted"
    assert happened == pytest.approx(promised, abs=5.0 * variance**0.5)
