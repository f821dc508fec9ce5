"""The agreement trace, version 1: per request, where the draft agrees with the target.

Under greedy decoding with a token-level autoregressive draft and exact KV caches, whether the draft's
token at position i of the target's continuation equals the target's is a fixed bit: it does not depend
on where blocks begin. One teacher-forced pass of both models over a finished generation records the
bits, and any chain policy can then be replayed exactly (:mod:`specpilot.simulation.replay`).

One JSON object a line::

    {"version": 1, "request": str, "prompt_tokens": int, "agree": [0|1|null, …],
     "confidence": […]?, "rank": […]?, "margin_target": […]?, "margin_draft": […]?, "drafter": str?,
     "ended": "eos"|"max_tokens"|null?, "loop_from": int|null?, "label": str?,
     "shares": [[…], …]?, "lookup": [[float, int], …]?}

All lists have one entry per output position, EOS included. ``null`` in ``agree`` means "not known".
``confidence`` is the draft's max q, ``rank`` the place of the target's token in q (0: the draft's first
choice), margins are top-1 minus top-2 logits. ``shares`` has, per position, the draft's second, third …
choice's probability among those not ranked before it; ``lookup`` has [confidence, right]: of the text that
prompt lookup would go on with (confidence 0: nothing matches), how many leading tokens are the target's.
``ended`` says why the generation is no longer than it is (absent: cut). ``loop_from`` is the first output
position after a 4-gram has repeated three times. What follows ``drafter`` is an addition to the format; a
reader may do without them, and unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpilot.trace import lines

VERSION = 1
NEAR_TIE_MARGIN = 1e-3
"""A top-2 logit gap below this may fall either way with another kernel or batch shape."""
ENDINGS = ("eos", "max_tokens")
_LISTS = ("confidence", "rank", "margin_target", "margin_draft")


@dataclass(frozen=True, slots=True)
class AgreementTrace:
    """One request's agreement bits and what was measured beside them, per output position.

    Raises:
        ValueError: for an empty request id, no positions, a list of the wrong length, or a value out
            of its range.
    """

    request: str
    prompt_tokens: int
    agree: tuple[int | None, ...]
    confidence: tuple[float, ...] | None = None
    rank: tuple[int, ...] | None = None
    margin_target: tuple[float, ...] | None = None
    margin_draft: tuple[float, ...] | None = None
    drafter: str | None = None
    ended: str | None = None
    loop_from: int | None = None
    label: str | None = None
    shares: tuple[tuple[float, ...], ...] | None = None
    lookup: tuple[tuple[float, int], ...] | None = None

    def __post_init__(self) -> None:
        if not self.request:
            raise ValueError("request: '' is empty; give each request a name")
        if self.prompt_tokens < 0:
            raise ValueError(f"prompt_tokens: {self.prompt_tokens} is not ≥ 0; give a count")
        if not self.agree:
            raise ValueError("agree: the list is empty; leave out requests with no output")
        for index, bit in enumerate(self.agree):
            if bit not in (0, 1, None) or isinstance(bit, bool):
                raise ValueError(f"agree[{index}]: {bit!r} is not 0, 1 or null; use null for 'not known'")
        for name in (*_LISTS, "shares", "lookup"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.agree):
                raise ValueError(
                    f"{name}: {len(values)} values for {len(self.agree)} positions; give one per position"
                )
        for index, value in enumerate(self.confidence or ()):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"confidence[{index}]: {value} is not in 0…1; it is a probability (max q)")
        if self.ended is not None and self.ended not in ENDINGS:
            raise ValueError(
                f"ended: {self.ended!r} is not one of {', '.join(ENDINGS)} or null; use null where cut"
            )
        if self.loop_from is not None and not 0 <= self.loop_from <= len(self.agree):
            raise ValueError(
                f"loop_from: {self.loop_from} is not in 0…{len(self.agree)}; it is an output position"
            )

    @property
    def unknown(self) -> int:
        """How many bits are not known."""
        return sum(bit is None for bit in self.agree)

    def near_ties(self, length: int) -> int:
        """Positions among the first ``length`` at which the target's choice was nearly a tie."""
        return sum(margin < NEAR_TIE_MARGIN for margin in (self.margin_target or ())[:length])

    def loop_tokens(self, length: int) -> int:
        """How many of the first ``length`` output tokens lie in a loop."""
        return 0 if self.loop_from is None else max(0, length - self.loop_from)

    def to_json(self) -> dict[str, Any]:
        """The trace line as a JSON object; optional fields only where they are known."""
        record: dict[str, Any] = {
            "version": VERSION,
            "request": self.request,
            "prompt_tokens": self.prompt_tokens,
            "agree": list(self.agree),
        }
        for name in _LISTS:
            values = getattr(self, name)
            if values is not None:
                record[name] = list(values) if name == "rank" else [round(value, 6) for value in values]
        if self.shares is not None:
            record["shares"] = [[round(share, 6) for share in row] for row in self.shares]
        if self.lookup is not None:
            record["lookup"] = [[round(confidence, 6), right] for confidence, right in self.lookup]
        for name in ("drafter", "ended", "loop_from", "label"):
            if getattr(self, name) is not None:
                record[name] = getattr(self, name)
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> AgreementTrace:
        """Read one trace line.

        Raises:
            ValueError: naming the field, its value, the allowed range and the remedy.
        """
        if record.get("kind") == "trace":
            raise ValueError(
                "kind: 'trace' is a trace of cycles, not an agreement trace; read it with "
                "`specpilot diagnose`, or make an agreement trace with `specpilot record`"
            )
        lines.check_version(record, VERSION, "agreement trace")
        agree = record.get("agree")
        if not isinstance(agree, list):
            raise ValueError("agree: there is no list; give 0, 1 or null per output position")
        ranks = lines.numbers(record, "rank", low=0)
        loop_from = None if record.get("loop_from") is None else lines.count(record, "loop_from")
        return cls(
            request=lines.text(record, "request"),
            prompt_tokens=lines.count(record, "prompt_tokens"),
            agree=tuple(agree),
            confidence=lines.numbers(record, "confidence", low=0.0, high=1.0),
            rank=None if ranks is None else tuple(int(rank) for rank in ranks),
            margin_target=lines.numbers(record, "margin_target"),
            margin_draft=lines.numbers(record, "margin_draft"),
            drafter=lines.optional_text(record, "drafter"),
            ended=lines.optional_text(record, "ended"),
            loop_from=loop_from,
            label=lines.optional_text(record, "label"),
            shares=lines.rows(record, "shares", high=1.0),
            lookup=_lookup(lines.rows(record, "lookup")),
        )


def _lookup(rows: tuple[tuple[float, ...], ...] | None) -> tuple[tuple[float, int], ...] | None:
    for index, row in enumerate(rows or ()):
        if len(row) != 2 or not 0.0 <= row[0] < 1.0 or not row[1].is_integer():
            raise ValueError(f"lookup[{index}]: {list(row)} is not [confidence in [0, 1), count]; correct it")
    return None if rows is None else tuple((row[0], int(row[1])) for row in rows)


def loop_start(token_ids: Iterable[int], size: int = 4, times: int = 3) -> int | None:
    """The first output position after a 4-gram has occurred for the third time; ``None`` if none has.

    Degenerate greedy text repeats itself, and repeated text is easy to draft: counting it as useful
    output would reward a policy for a broken model.
    """
    seen: dict[tuple[int, ...], int] = {}
    window: tuple[int, ...] = ()
    for position, token in enumerate(token_ids):
        window = (*window[-(size - 1) :], token)
        if len(window) == size:
            seen[window] = seen.get(window, 0) + 1
            if seen[window] == times:
                return position + 1
    return None


def read_agreement(path: Path) -> list[AgreementTrace]:
    """Read a whole agreement trace file.

    Raises:
        ValueError: with the line's number for a bad record, a request that occurs twice, or no records.
        OSError: if the file cannot be read.
    """
    traces: list[AgreementTrace] = []
    seen: set[str] = set()
    for trace in lines.read_lines(path, AgreementTrace.from_json):
        if trace.request in seen:
            raise ValueError(f"{path.name}: request {trace.request!r} occurs twice; names must be unique")
        seen.add(trace.request)
        traces.append(trace)
    if not traces:
        raise ValueError(f"{path.name}: no records; record some with `specpilot record`")
    return traces


def write_agreement(path: Path, traces: Iterable[AgreementTrace]) -> int:
    """Write a trace file; returns the number of requests."""
    return lines.write_lines(path, (trace.to_json() for trace in traces))
