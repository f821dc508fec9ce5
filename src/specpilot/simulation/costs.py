"""The engine's measured costs: what a draft step, a target pass and a prefill take.

A replay charges these times, so they are measured on the engine that is being replayed (as medians of
interleaved runs, :mod:`specpilot.simulation.measure`), written as JSON and read back. Tables are
interpolated linearly and extended by their last segment's slope.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from specpilot.trace.lines import text_of

VERSION = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A piecewise-linear function: ``ms[i]`` at ``at[i]``, ``at`` strictly ascending.

    Raises:
        ValueError: for no points, lists of different lengths, unordered points or negative times.
    """

    at: tuple[float, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.at or len(self.at) != len(self.ms):
            raise ValueError(f"at: {len(self.at)} points for {len(self.ms)} times; give one time per point")
        if any(b <= a for a, b in pairwise(self.at)):
            raise ValueError(f"at: {list(self.at)} is not strictly ascending; sort the points")
        if not all(math.isfinite(value) and value >= 0.0 for value in self.ms):
            raise ValueError(f"ms: {list(self.ms)} has a time that is not ≥ 0 and finite; give milliseconds")

    def __call__(self, point: float) -> float:
        """The time at ``point``, in ms, never negative; constant below the first point."""
        at, ms = self.at, self.ms
        if point <= at[0] or len(at) == 1:
            return ms[0]
        index = min(bisect_right(at, point), len(at) - 1)
        share = (point - at[index - 1]) / (at[index] - at[index - 1])
        return max(0.0, ms[index - 1] + (ms[index] - ms[index - 1]) * share)

    def scaled(self, factor: float) -> Table:
        """The same points, all times multiplied."""
        return Table(self.at, tuple(ms * factor for ms in self.ms))


@dataclass(frozen=True, slots=True)
class EngineCosts:
    """What one engine takes for one pair, in milliseconds.

    ``draft_step`` is one draft token by cached context, ``draft_start`` what the first of a block takes
    beyond that; ``draft_forward`` a draft pass over many tokens (prefill, its step included); ``verify`` maps
    the width of a target pass (new tokens: block, or prompt and block) to a table by cached context; ``host``
    is a cycle's time outside the models. ``engine`` says what was measured.

    Raises:
        ValueError: if there are no widths or they do not ascend, or for a negative or infinite time.
    """

    draft_step: Table
    draft_forward: Table
    verify: tuple[tuple[float, Table], ...]
    host: float = 0.0
    engine: str = ""
    draft_start: float = 0.0

    def __post_init__(self) -> None:
        widths = [width for width, _ in self.verify]
        if not widths or any(b <= a for a, b in pairwise(widths)):
            raise ValueError(
                f"verify: widths {widths} are not strictly ascending and at least one; sort them"
            )
        for name, ms in (("host", self.host), ("draft_start", self.draft_start)):
            if not (math.isfinite(ms) and ms >= 0.0):
                raise ValueError(f"{name}: {ms} is not ≥ 0 and finite; give milliseconds")

    def verify_ms(self, new_tokens: int, context_tokens: int) -> float:
        """One target pass over ``new_tokens`` behind ``context_tokens`` cached ones."""
        rows = self.verify
        if new_tokens <= rows[0][0] or len(rows) == 1:
            return rows[0][1](context_tokens)
        index = 1
        while index < len(rows) - 1 and rows[index][0] < new_tokens:
            index += 1
        (low, below), (high, above) = rows[index - 1], rows[index]
        share = (new_tokens - low) / (high - low)
        first = below(context_tokens)
        return max(0.0, first + (above(context_tokens) - first) * share)

    def draft_ms(self, steps: int, context_tokens: int) -> float:
        """Drafting a block of ``steps`` ≥ 1 behind so many cached tokens, prefill apart."""
        return self.draft_start + steps * self.draft_step(context_tokens)

    def scaled(self, *, draft: float = 1.0, verify: float = 1.0, host: float | None = None) -> EngineCosts:
        """The same costs with all draft times, all verify times multiplied, and another host time.

        A bare forward pass is not all that a cycle takes; the factors come from cycles that really ran.
        """
        return EngineCosts(
            draft_step=self.draft_step.scaled(draft),
            draft_forward=self.draft_forward.scaled(draft),
            verify=tuple((width, table.scaled(verify)) for width, table in self.verify),
            host=self.host if host is None else host,
            engine=self.engine,
            draft_start=self.draft_start * draft,
        )

    @classmethod
    def from_numbers(
        cls, *, draft_ms: float, verify_ms: float, verify_token_ms: float = 0.0, engine: str = "given"
    ) -> EngineCosts:
        """Costs from three numbers: a draft step, a one-token pass, and each further token of a pass.

        A token of the draft's prefill is charged at the target's rate times draft ÷ verify, which is
        what the same kernels on a smaller model take.

        Raises:
            ValueError: for a negative or infinite time, or a verify time of 0.
        """
        for name, value in (
            ("draft_ms", draft_ms),
            ("verify_ms", verify_ms),
            ("verify_token_ms", verify_token_ms),
        ):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}: {value} is not ≥ 0 and finite; give milliseconds")
        if verify_ms == 0.0:
            raise ValueError("verify_ms: 0 is not > 0; a target pass takes time")
        token_ms = verify_token_ms * draft_ms / verify_ms
        return cls(
            draft_step=Table((0.0,), (draft_ms,)),
            draft_forward=Table((1.0, 1025.0), (draft_ms, draft_ms + 1024.0 * token_ms)),
            verify=(
                (1.0, Table((0.0,), (verify_ms,))),
                (1025.0, Table((0.0,), (verify_ms + 1024.0 * verify_token_ms,))),
            ),
            engine=engine,
        )

    def to_json(self) -> dict[str, Any]:
        """The costs as a JSON object."""
        return {
            "version": VERSION,
            "engine": self.engine,
            "host_ms": self.host,
            "draft_start_ms": self.draft_start,
            "draft_step_ms": asdict(self.draft_step),
            "draft_forward_ms": asdict(self.draft_forward),
            "verify_ms": [{"new_tokens": width, **asdict(table)} for width, table in self.verify],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EngineCosts:
        """Read costs.

        Raises:
            ValueError: naming the field, its value, the allowed range and the remedy.
        """
        if record.get("version") != VERSION:
            raise ValueError(f"version: {record.get('version')!r} is not {VERSION}; record the costs anew")
        rows = record.get("verify_ms")
        if not isinstance(rows, list):
            raise ValueError("verify_ms: there is no list; give objects with new_tokens, at and ms")
        return cls(
            draft_step=_table(record.get("draft_step_ms"), "draft_step_ms"),
            draft_forward=_table(record.get("draft_forward_ms"), "draft_forward_ms"),
            verify=tuple(
                (
                    _number(_mapping(row, f"verify_ms[{index}]").get("new_tokens"), "new_tokens"),
                    _table(row, "verify_ms"),
                )
                for index, row in enumerate(rows)
            ),
            host=_number(record.get("host_ms", 0.0), "host_ms"),
            engine=str(record.get("engine", "")),
            draft_start=_number(record.get("draft_start_ms", 0.0), "draft_start_ms"),
        )


def read_costs(path: Path) -> EngineCosts:
    """Read a file of engine costs.

    Raises:
        ValueError: with the file's name, if it is not one.
        OSError: if it cannot be read.
    """
    with text_of(path):
        text = path.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
        return EngineCosts.from_json(_mapping(record, "costs"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: not JSON ({error.msg}); write it with `specpilot record`") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def write_costs(path: Path, costs: EngineCosts) -> None:
    """Write engine costs as JSON."""
    path.write_text(json.dumps(costs.to_json(), indent=1) + "\n", encoding="utf-8")


def _mapping(value: object, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{field}: {value!r} is not an object; give one with named fields")
    return value


def _number(value: object, field: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{field}: {value!r} is not a number; give one")
    return float(value)


def _numbers(value: object, field: str) -> Sequence[float]:
    if not isinstance(value, list):
        raise ValueError(f"{field}: {value!r} is not a list; give numbers")
    return [_number(item, field) for item in value]


def _table(value: object, field: str) -> Table:
    record = _mapping(value, field)
    return Table(
        tuple(_numbers(record.get("at"), f"{field}.at")), tuple(_numbers(record.get("ms"), f"{field}.ms"))
    )
