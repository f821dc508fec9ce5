"""One request of a trace, cycle by cycle.

    python examples/cycle_by_cycle.py TRACE [REQUEST]

Without a request: the first one with at least three cycles, or the first one.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from specpilot.trace import AdmitRecord, CycleRecord, EndRecord, StopRecord, read_trace


def lines(path: Path, wanted: str | None = None) -> list[str]:
    """The request's life, one line an event."""
    lives: dict[str, list[object]] = defaultdict(list)
    for record in read_trace(path):
        if isinstance(record, AdmitRecord | CycleRecord | StopRecord | EndRecord):
            lives[record.request].append(record)
    if wanted is None:
        long = (name for name, life in lives.items() if sum(isinstance(r, CycleRecord) for r in life) >= 3)
        wanted = next(long, next(iter(lives)))
    if wanted not in lives:
        raise SystemExit(f"{path.name}: there is no request {wanted!r}")
    return [_line(record) for record in lives[wanted]]


def _line(record: object) -> str:
    if isinstance(record, AdmitRecord):
        answer = "admitted" if record.admitted else f"refused: {record.reason}"
        return f"{record.request}: {record.prompt_tokens} prompt tokens, {record.max_tokens} wanted, {answer}"
    if isinstance(record, CycleRecord):
        sure = " ".join(f"{value:.2f}" for value in record.confidences)
        drafting = record.draft_ms + record.draft_prefill_ms
        # A record does not say whether the path through a tree ended at a leaf.
        own = "a token of the target" if record.own and record.side_proposed else record.own or "nothing"
        parts = [
            f"cycle {record.index}: at most {record.max_draft} ({record.binding})",
            f"drafted {record.drafted} [{sure}]",
            f"proposed {_with_tree(record.proposed, record.side_proposed)}, "
            f"accepted {_with_tree(record.accepted, record.side_accepted)}, then {own}",
            f"waited {record.queue_ms:.1f}, draft {drafting:.1f}, pass {record.verify_ms:.1f} over "
            f"{record.verified_tokens} tokens, host {record.host_ms:.1f} ms",
        ]
        return "; ".join([*parts, "a pass from the pool"] if record.from_pool else parts)
    if isinstance(record, StopRecord):
        return f"stop: {record.cause}, bound by {record.binding}"
    assert isinstance(record, EndRecord)
    return (
        f"end: {record.cause}, {record.emitted_tokens} tokens from {record.target_passes} passes in "
        f"{record.e2e_ms:.0f} ms"
    )


def _with_tree(chain: int, beside: int) -> str:
    """Tokens of the main chain, and those of the tree beside it."""
    return f"{chain} + {beside}" if beside else str(chain)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("request", nargs="?")
    given = parser.parse_args()
    try:
        print("\n".join(lines(given.trace, given.request)))
    except (OSError, ValueError) as error:
        parser.error(str(error))
