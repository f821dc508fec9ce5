"""A trace as columns: one numpy array a field, so that a million cycles fit in memory and take seconds.

The file is read line by line, and every value that is used is checked on the way: a column of numbers takes
nothing else, and a line that does not fit is read again with the checks of the schema, for the message.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specpilot.control.types import Binding, StopCause
from specpilot.trace import schema
from specpilot.trace.cycles import OBSERVED
from specpilot.trace.files import TraceReader
from specpilot.trace.schema import TraceHeader

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.signedinteger[Any]]
Bools = npt.NDArray[np.bool_]

COUNTS = (
    "index",
    "prompt_tokens",
    "max_draft",
    "drafted",
    "proposed",
    "accepted",
    "emitted",
    "verified_tokens",
    "context_tokens",
    "batch_size",
    "draft_prefill_tokens",
)
TIMES = ("start_s", "end_s", "draft_ms", "draft_prefill_ms", "verify_ms", "host_ms", "queue_ms")
LISTS = {"confidences": "f", "overlaps": "f", "proposal_q": "f", "sampled": "d"}
"""Lists of a cycle, and how exactly they are kept: the two ends of a token may lie near each other."""
BINDINGS = tuple(str(binding) for binding in Binding)

SKIPPED, UNCOVERED, GAP, NO_BONUS = 1, 2, 4, 8
"""What a cycle shows that no healthy engine can: a token the target rejected was emitted; tokens were emitted
that no pass had covered; accepted positions are not the first ones; a full accept without the bonus token."""


@dataclass(frozen=True, slots=True)
class Lists:
    """A list per cycle, end to end: cycle i's is ``values[offsets[i]:offsets[i + 1]]``."""

    values: Floats
    offsets: Ints

    def lengths(self) -> Ints:
        """How long each list is."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """The observed cycles of a trace in the order in which they ended, and its requests.

    ``request`` numbers the requests that were admitted; per request there is the end's ``cause`` (``""``:
    still open), the latency and whether it met the SLO. ``odd`` holds the bits above. ``ids`` are (proposed
    token, target's own token, accepted?, confidence) of judged draft tokens, where the trace holds them.
    """

    name: str
    header: TraceHeader
    cycles: Mapping[str, npt.NDArray[Any]]
    confidences: Lists
    overlaps: Lists
    proposal_q: Lists
    sampled: Lists
    ids: tuple[Ints, Ints, Bools, Floats]
    causes: tuple[str, ...]
    e2e_ms: Floats
    met_slo: Bools
    passes: Ints
    arrivals: int
    refused: int
    left_out: str | None

    def __getattr__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self.cycles[name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(self.cycles["index"])

    def tells(self, *fields: str) -> bool:
        """Whether the source of the trace knows these fields of a cycle."""
        return not set(fields) & set(self.header.lacks)


class _Columns:
    """What is gathered while reading."""

    def __init__(self) -> None:
        self.counts = {name: array("i") for name in COUNTS}
        self.times = {name: array("d") for name in TIMES}
        self.extra = {name: array("i") for name in ("request", "binding", "odd", "ended")}
        self.lists = {name: array(code) for name, code in LISTS.items()}
        self.lengths = {name: array("i") for name in self.lists}
        self.ids = (array("i"), array("i"), array("b"), array("f"))
        self.open: dict[str, int] = {}
        self.causes: list[str] = []
        self.e2e_ms, self.met_slo, self.passes = array("d"), array("b"), array("i")
        self.arrivals = self.refused = 0

    def admit(self, record: Mapping[str, Any]) -> None:
        self.arrivals += 1
        if record["admitted"] is not True:
            self.refused += 1
            return
        self.open[record["request"]] = len(self.causes)
        self.causes.append("")
        self.e2e_ms.append(math.nan)
        self.met_slo.append(0)
        self.passes.append(0)

    def end(self, record: Mapping[str, Any]) -> None:
        number = self.open.pop(record["request"])
        self.causes[number] = _CAUSES[record["cause"]]
        self.e2e_ms[number] = record["e2e_ms"]
        self.met_slo[number] = record["met_slo"]
        self.passes[number] = record["target_passes"]

    def cycle(self, record: Mapping[str, Any], adders: list[tuple[str, Callable[[Any], None]]]) -> None:
        if record["status"] != OBSERVED:
            return
        for name, add in adders:
            add(record[name])
        extra = self.extra
        extra["request"].append(self.open[record["request"]])
        extra["binding"].append(_BINDING_CODES[record["binding"]])
        extra["ended"].append(record["ended"] is not None)
        for name, values in self.lists.items():
            part = record.get(name)
            if part:
                values.extend(part)
                self.lengths[name].append(len(part))
            else:
                self.lengths[name].append(0)
        extra["odd"].append(_odd(record))
        if record["proposed"] and "proposed_ids" in record and record.get("own_id") is not None:
            self._ids(record)

    def _ids(self, record: Mapping[str, Any]) -> None:
        """The judged tokens of a greedy block: those accepted, and the first one rejected."""
        proposed, accepted = record["proposed_ids"], record["accepted"]
        confidences = record["confidences"]
        first, second, third, fourth = self.ids
        for place in range(min(accepted + 1, len(proposed), len(confidences))):
            first.append(proposed[place])
            second.append(record["own_id"] if place == accepted else proposed[place])
            third.append(place < accepted)
            fourth.append(confidences[place])


_CAUSES = {str(cause): str(cause) for cause in StopCause}
_BINDING_CODES = {name: code for code, name in enumerate(BINDINGS)}


def read_columns(path: Path, *, partial: bool = False) -> TraceColumns:
    """Read a trace.

    Raises:
        ValueError: with the line's number, for anything that is not a whole trace, or one without cycles.
        OSError: if the file cannot be read.
    """
    reader = TraceReader(path, partial)
    columns = _Columns()
    adders = [(name, values.append) for name, values in (columns.counts | columns.times).items()]
    header: TraceHeader | None = None
    for record in reader.objects():
        kind = record.get("kind")
        try:
            if kind == "cycle":
                columns.cycle(record, adders)
            elif kind == "admit":
                columns.admit(record)
            elif kind == "end":
                columns.end(record)
            elif header is None:
                header = TraceHeader.from_json(record)
            else:
                schema.from_json(record)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise _explained(reader, record, error) from None
    if header is None or not columns.counts["index"]:
        raise ValueError(f"{path.name}: there are no cycles in it; record a run with some requests")
    return _finished(path.name, header, columns, reader.left_out)


def _explained(reader: TraceReader, record: Mapping[str, Any], error: Exception) -> ValueError:
    """The schema's message where the schema is broken; else what lines say about each other."""
    try:
        schema.from_json(record)
    except ValueError as told:
        return reader.error(told)
    request = record.get("request")
    if isinstance(error, KeyError) and error.args == (request,):
        return reader.error(
            f"request: {request!r} is not in flight here; an admit line comes before its cycles"
        )
    return reader.error(error)


def _finished(name: str, header: TraceHeader, columns: _Columns, left_out: str | None) -> TraceColumns:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for field, whole in (columns.counts | columns.extra).items():
        arrays[field] = np.frombuffer(whole, dtype=np.int32)
    for field, real in columns.times.items():
        arrays[field] = np.frombuffer(real, dtype=np.float64)
    for field in (*COUNTS, *TIMES[2:]):
        _require(name, arrays[field] >= 0, f"{field} is below 0")
    _require(name, arrays["accepted"] <= arrays["proposed"], "accepted exceeds proposed")
    lists = {
        field: Lists(
            np.frombuffer(values, dtype=LISTS[field]) if values else np.zeros(0, LISTS[field]),
            np.concatenate([[0], np.cumsum(columns.lengths[field], dtype=np.int64)]),
        )
        for field, values in columns.lists.items()
    }
    _require(name, _are_draws(lists["sampled"]), "sampled is no list of four probabilities a token")
    first, second, third, fourth = columns.ids
    return TraceColumns(
        name=name,
        header=header,
        cycles=arrays,
        confidences=lists["confidences"],
        overlaps=lists["overlaps"],
        proposal_q=lists["proposal_q"],
        sampled=lists["sampled"],
        ids=(
            np.array(first, dtype=np.int32),
            np.array(second, dtype=np.int32),
            np.array(third, dtype=np.bool_),
            np.array(fourth, dtype=np.float32),
        ),
        causes=tuple(columns.causes),
        e2e_ms=np.array(columns.e2e_ms, dtype=np.float64),
        met_slo=np.array(columns.met_slo, dtype=np.bool_),
        passes=np.array(columns.passes, dtype=np.int32),
        arrivals=columns.arrivals,
        refused=columns.refused,
        left_out=left_out,
    )


def _are_draws(sampled: Lists) -> Bools:
    """By cycle: four numbers a token, a token's two ends in order (both 0 where p forbids it)."""
    lengths = sampled.lengths()
    good = lengths % 4 == 0
    if good.all():
        low, high, again, _ = sampled.values.reshape(-1, 4).T
        right = (
            (low >= 0.0) & ((low < high) | (high == 0.0)) & (high <= 1.0) & (again >= 0.0) & (again <= 1.0)
        )
        good[np.repeat(np.arange(len(lengths)), lengths // 4)[~right]] = False
    return np.asarray(good)


def _require(name: str, good: Bools, what: str) -> None:
    if not good.all():
        raise ValueError(
            f"{name}: {what} in its cycle {int(np.argmin(good)) + 1}; run `specpilot trace validate` on it "
            "for the line"
        )


def _odd(record: Mapping[str, Any]) -> int:
    """What is impossible in this cycle (bits)."""
    accepted, proposed, emitted = record["accepted"], record["proposed"], record["emitted"]
    beside = record.get("side_accepted", 0)  # nodes of a token tree
    odd = 0
    started = record["begin_call"] is not None
    covered = not accepted + beside or record["verified_tokens"] > accepted + beside
    if emitted > accepted + beside + 1 or (emitted and not started) or not covered:
        odd |= UNCOVERED
    going = record["ended"] is None
    if proposed and accepted == proposed and emitted == accepted and going:
        odd |= NO_BONUS
    places = record.get("accepted_at")
    if places is not None:
        if list(places) != list(range(1, len(places) + 1)):
            odd |= GAP
        else:
            verdicts = record.get("verdicts")
            if verdicts is not None and not all(verdicts[: len(places)]):
                odd |= SKIPPED
    return odd
