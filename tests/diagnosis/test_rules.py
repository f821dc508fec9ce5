"""Rules on traces made by hand, where each number can be checked on paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specpilot.control.types import Binding, StopCause
from specpilot.diagnosis import CAUSES, diagnose, read_columns
from specpilot.diagnosis.compare import compare
from specpilot.diagnosis.findings import Diagnosis
from specpilot.diagnosis.speed import fit, hazards
from specpilot.trace import (
    AdmitRecord,
    CycleEvidence,
    CycleRecord,
    EndRecord,
    LedgerState,
    TraceHeader,
    TraceRecord,
    write_trace,
)

Change = Callable[[CycleRecord, int], CycleRecord]


def records(
    requests: int = 120, cycles: int = 5, change: Change = lambda record, _: record, budget_cut: float = 0.0
) -> list[TraceRecord]:
    """A healthy engine: τ = 4, acceptance 0.8 a position in a fixed pattern, 10 ms passes, 1 ms steps."""
    rng = np.random.default_rng(5)
    result: list[TraceRecord] = []
    call = number = 0
    now = 0.0
    for request in range(requests):
        name = f"r{request}"
        call += 1
        result.append(AdmitRecord(call, now, name, now, 60, 64))
        emitted = 0
        arrived = now
        for index in range(cycles):
            call += 3
            number += 1
            right = rng.random(4) < 0.8
            accepted = 4 if right.all() else int(np.argmin(right))
            start = now
            width = (60 if index == 0 else 1) + 4
            verify = 10.0 + 0.1 * (width - 1)
            record = CycleRecord(
                name, index, start, start, 60, 4, False, Binding.MAX, 4, 4, accepted, accepted + 1, 4.0, 0.0,
                verify, 0.2, width, 0 if index == 0 else 60 + emitted, LedgerState(request + 1, number, 0.0),
                confidences=(0.8, 0.8, 0.8, 0.8), cycle=number, planned_s=start, max_nodes=4,
                plan_call=call - 2, begin_call=call - 1, end_call=call,
            )  # fmt: skip
            record = change(record, number)
            spent = record.draft_ms + record.verify_ms + record.host_ms
            now = start + spent / 1000.0
            record = replace(record, end_s=now)
            emitted += record.emitted
            result.append(record)
        call += 1
        cause = StopCause.BUDGET if request < budget_cut * requests else StopCause.MAX_TOKENS
        e2e = (now - arrived) * 1000.0
        result.append(EndRecord(call, now, name, cause, emitted, cycles, 0, cycles, e2e, True))
        now += 0.1
    return result


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Diagnosis]:
    """Diagnose records by way of a file."""

    def run(part: Sequence[TraceRecord], header: TraceHeader | None = None) -> Diagnosis:
        path = tmp_path / "t.jsonl"
        write_trace(path, header or TraceHeader("test"), part)
        return diagnose(read_columns(path))

    return run


def test_the_healthy_engine_is_healthy(judge: Callable[..., Diagnosis]) -> None:
    found = judge(records())
    assert found.primary is None
    assert [finding.cause for finding in found.findings] == ["healthy"]
    result = found.to_json()
    assert set(result) >= {"findings", "primary"}
    assert result["findings"][0]["cause"] in CAUSES


def _plain(record: CycleRecord) -> CycleRecord:
    """The same cycle with nothing drafted: 10 ms."""
    return replace(
        record, drafted=0, proposed=0, accepted=0, emitted=1, draft_ms=0.0, verify_ms=10.0,
        verified_tokens=1, confidences=(), max_draft=0,
    )  # fmt: skip


def test_the_speed_model_is_what_the_trace_was_made_of(judge: Callable[..., Diagnosis]) -> None:
    # A plain cycle now and then shows the pass over one token: 10 ms; 0.1 ms for each further one.
    def plain(record: CycleRecord, number: int) -> CycleRecord:
        return _plain(record) if number % 5 == 3 else record

    found = judge(records(change=plain))
    model = found.model
    assert model.draft_ms == pytest.approx(1.0)
    assert model.pass_ms == pytest.approx(10.0, abs=1e-6)
    assert model.token_ms == pytest.approx(0.1, abs=1e-6)
    hazard, reached = hazards(found.trace, longest=4)
    assert reached[0] == sum(r.proposed > 0 for r in records(change=plain) if isinstance(r, CycleRecord))
    assert np.all(np.abs(hazard - 0.8) < 0.1)
    # τ = 2 at S = h, h²: (1 + S1 + S2) tokens in 2 + 10 + 0.2 + host + prefill ms.
    s1, s2 = model.survival[:2]
    assert model.rate_at(2) == pytest.approx((1 + s1 + s2) / (12.2 + model.host_ms + model.fixed_ms))


@pytest.mark.parametrize("sharing", [1, 4])
def test_a_slow_draft_is_found_where_passes_are_shared_too(
    sharing: int, judge: Callable[..., Diagnosis]
) -> None:
    """A step takes half a pass, for one request as for four together: each bears a part of both."""

    def change(record: CycleRecord, number: int) -> CycleRecord:
        record = replace(record, draft_ms=20.0, batch_size=sharing)
        return _plain(record) if number % 5 == 3 else record

    found = judge(records(change=change))
    assert found.primary == "slow_draft"
    assert found.model.pass_ms == pytest.approx(10.0 / sharing)
    assert found.model.rate / found.model.plain == pytest.approx(1.212, abs=0.01)


def test_who_shares_a_pass_waits_for_its_longest_block(judge: Callable[..., Diagnosis]) -> None:
    """Four share each pass of 10 ms; one of them drafts for 20 ms. So a cycle's part is 7.5 ms, not 3.75."""

    def change(record: CycleRecord, number: int) -> CycleRecord:
        record = replace(
            record, batch_size=4, verify_ms=10.0, host_ms=0.0, verified_tokens=5, context_tokens=80
        )
        if number % 4 == 0:
            return replace(record, draft_ms=20.0)
        return replace(
            record, drafted=0, proposed=0, accepted=0, emitted=1, draft_ms=0.0, verified_tokens=1,
            confidences=(), max_draft=0,
        )  # fmt: skip

    part = [
        replace(record, end_s=0.03 * ((record.cycle + 3) // 4)) if isinstance(record, CycleRecord) else record
        for record in records(change=change)
    ]
    assert judge(part).model.cycle_ms == pytest.approx(7.5)


def _emits_more(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, emitted=record.emitted + 1) if number == 17 else record


def _without_pass(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, verified_tokens=0) if number == 17 and record.accepted else record


def _rejected_token(record: CycleRecord, number: int) -> CycleRecord:
    told = CycleEvidence(accepted_at=(1, 2), verdicts=(1, 0, 1, 1))
    return replace(record, accepted=2, emitted=3, evidence=told) if number == 17 else record


def _gap(record: CycleRecord, number: int) -> CycleRecord:
    told = CycleEvidence(accepted_at=(1, 3), verdicts=(1, 0, 1, 0))
    return replace(record, accepted=2, emitted=3, evidence=told) if number == 17 else record


def _no_bonus(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, emitted=4) if record.accepted == 4 else record


def _serial(record: CycleRecord, number: int) -> CycleRecord:
    width = 1 if number % 4 == 0 else 5
    record = replace(record, verified_tokens=width, verify_ms=10.0 * width)
    if width == 1:
        return replace(record, drafted=0, proposed=0, accepted=0, emitted=1, confidences=())
    return record


def _slow_draft(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, draft_ms=4 * 6.0)


def _busy_host(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, host_ms=9.0)


def _weak(record: CycleRecord, number: int) -> CycleRecord:
    accepted = int(number % 7 == 0)
    return replace(record, accepted=accepted, emitted=accepted + 1, confidences=(0.3, 0.3, 0.3, 0.3))


def _never(record: CycleRecord, number: int) -> CycleRecord:
    return replace(record, accepted=0, emitted=1)


def _short(record: CycleRecord, number: int) -> CycleRecord:
    return replace(
        record, drafted=1, proposed=1, accepted=1, emitted=2, draft_ms=1.0, verified_tokens=2,
        verify_ms=10.0, confidences=(0.9,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_emits_more, "unverified_emission"),
        (_without_pass, "unverified_emission"),
        (_rejected_token, "unverified_emission"),
        (_gap, "non_prefix_accept"),
        (_no_bonus, "missing_bonus_token"),
        (_serial, "verify_not_parallel"),
        (_slow_draft, "slow_draft"),
        (_busy_host, "host_overhead"),
        (_weak, "weak_draft"),
        (_never, "tokenizer_mismatch"),
        (_short, "under_drafting"),
    ],
)
def test_each_signature_is_found(change: Change, cause: str, judge: Callable[..., Diagnosis]) -> None:
    assert judge(records(change=change)).primary == cause


def test_requests_cut_by_the_budget(judge: Callable[..., Diagnosis]) -> None:
    found = judge(records(budget_cut=0.4))
    assert found.primary == "budget_bound"
    assert found.findings[0].evidence["cut_by_the_budget"] == pytest.approx(0.4)


def test_sampling_identities(judge: Callable[..., Diagnosis]) -> None:
    """Tokens accepted with probability 0.8: an overlap of 0.8 is right, one of 0.95 is not."""

    def told(overlap: float) -> Change:
        def change(record: CycleRecord, number: int) -> CycleRecord:
            judged = min(record.accepted + 1, 4)
            # q's likeliest token (0.6) is drawn in three cycles of five.
            top = 0.6 if number % 5 < 3 else 0.2
            evidence = CycleEvidence(1.0, overlaps=(overlap,) * judged, proposal_q=(top,) * 4)
            return replace(record, evidence=evidence, confidences=(0.6,) * 4)

        return change

    assert judge(records(change=told(0.8))).primary is None
    found = judge(records(change=told(0.95)))
    assert found.primary == "sampling_mismatch"
    assert found.findings[0].evidence["acceptance_less_overlap"] == pytest.approx(-0.15, abs=0.04)


def test_a_rule_does_not_judge_what_the_trace_cannot_tell(judge: Callable[..., Diagnosis]) -> None:
    found = judge(records(change=_busy_host), TraceHeader("import", lacks=("host_ms",)))
    assert "host_overhead" not in [finding.cause for finding in found.findings]
    assert found.not_told == ("host_ms",)


def _timeless(record: CycleRecord) -> CycleRecord:
    return replace(record, draft_ms=0.0, verify_ms=0.0, host_ms=0.0, confidences=())


def test_a_trace_without_times_is_judged_by_its_counts(judge: Callable[..., Diagnosis]) -> None:
    """An imported log of proposed and accepted tokens alone."""
    header = TraceHeader("import", lacks=("draft_ms", "verify_ms", "host_ms", "queue_ms", "confidences"))
    good = judge(records(change=lambda record, _: _timeless(record)), header)
    assert good.primary is None
    assert "pass_ms_at_one_token" not in good.to_json()["metrics"]
    weak = judge(records(change=lambda record, number: _timeless(_weak(record, number))), header)
    assert weak.primary == "weak_draft"


def test_the_parts_of_a_change_add_up(judge: Callable[..., Diagnosis], tmp_path: Path) -> None:
    before, after = judge(records()), judge(records(change=_busy_host))
    found = compare(before, after)
    assert found.new == ("host_overhead",)
    assert compare(after, before).gone == ("host_overhead",)
    assert found.changes[0].name == "host_ms_per_cycle"
    whole = 1.0 / after.model.rate - 1.0 / before.model.rate
    assert sum(c.ms_per_token or 0.0 for c in found.changes) == pytest.approx(whole)


def test_a_trace_without_cycles_is_refused(judge: Callable[..., Diagnosis]) -> None:
    with pytest.raises(ValueError, match="there are no cycles in it"):
        judge([AdmitRecord(1, 0.0, "a", 0.0, 10, 8)])


def test_fit_is_the_model_of_the_diagnosis(judge: Callable[..., Diagnosis]) -> None:
    found = judge(records())
    assert fit(found.trace).rate == found.model.rate


@pytest.mark.parametrize(
    ("places", "fixed_ms"),
    [
        ((0,), 40 * 19.6 / 200),  # each prefill has a pass of its own
        ((0, 0), 20 * 19.6 / 200),  # two prefills share a pass
        ((0, 4), 20 * 19.6 / 200),  # every other prefill shares one with another request's last block
    ],
)
def test_what_a_prefill_adds_to_a_shared_pass_counts_once(
    judge: Callable[..., Diagnosis], places: tuple[int, ...], fixed_ms: float
) -> None:
    """40 requests of 5 cycles; a pass takes 10.4 ms, one with a prefill 30: 19.6 more."""
    part = records(40)
    shared_s: dict[int, float] = {}
    for at, record in enumerate(part):
        if not isinstance(record, CycleRecord):
            continue
        number = int(record.request[1:])
        pair, member = divmod(number, len(places))
        if record.index == places[member]:
            start_s = shared_s.setdefault(pair, record.start_s)
            part[at] = replace(record, start_s=start_s, verify_ms=30.0, batch_size=len(places))
        elif record.index == 0:
            part[at] = replace(record, verify_ms=10.4)
    model = judge(part).model
    assert model.pass_ms == pytest.approx(10.4)
    assert model.fixed_ms == pytest.approx(fixed_ms)
