"""What a controller has learned, as bytes: written by one process, taken up by the next.

The estimators form a small graph (contexts share a calibration, tables share a parent), so objects are
numbered and written once, as JSON: nothing is executed on reading, unlike a pickle. Reading is strict: a
snapshot of another version, with an unknown class, a missing attribute or a value of another type is refused
as a whole. Clocks, open requests and the ledger are left out: a new process has its own.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from specpilot.control.acceptance import AcceptanceModel, Change, HazardTable
from specpilot.control.branching import Branches, Forks, Yields
from specpilot.control.budget import PassPrice
from specpilot.control.calibration import Calibration, Offset
from specpilot.control.contexts import Context
from specpilot.control.cost import CostModel
from specpilot.control.curves import KNOTS, ContextSlope, CostCurve, UpperQuantile
from specpilot.control.difficulty import Difficulty, Residuals
from specpilot.control.drafting import DraftCost, TreeCost
from specpilot.control.ending import EndHazard
from specpilot.control.health import Backoff, Breaker, Fallback, Trials
from specpilot.control.latency import DeadlineTracker, TimePrice

VERSION = 9

BLANK: dict[str, Callable[[], object]] = {
    "AcceptanceModel": lambda: AcceptanceModel(0.5, 0.5, 1.0, 2),
    "Branches": Branches,
    "Backoff": lambda: Backoff(1, 1),
    "Breaker": lambda: Breaker(1, 1, 1),
    "Calibration": Calibration,
    "Change": Change,
    "Context": lambda: Context("", 0, True, Fallback(1, 1), Calibration(), Trials(1, 1)),
    "ContextSlope": ContextSlope,
    "CostCurve": lambda: CostCurve([1.0] * len(KNOTS)),
    "CostModel": CostModel,
    "DeadlineTracker": DeadlineTracker,
    "Difficulty": Difficulty,
    "DraftCost": lambda: DraftCost(1.0),
    "EndHazard": EndHazard,
    "Fallback": lambda: Fallback(1, 1),
    "Forks": Forks,
    "HazardTable": lambda: HazardTable(0.5, 0.5, 1.0),
    "Offset": Offset,
    "PassPrice": PassPrice,
    "Residuals": Residuals,
    "TimePrice": TimePrice,
    "TreeCost": TreeCost,
    "Trials": lambda: Trials(1, 1),
    "UpperQuantile": UpperQuantile,
    "Yields": Yields,
}
"""The classes that a snapshot may hold, each with a way to make one that is then filled in."""

TRANSIENT = {
    "PassPrice": ("_last",),
    "TimePrice": ("_last_s", "pressing"),
    "Context": ("decisions", "forecasts", "intercepts", "slope", "ranks", "lookup"),
}
"""Attributes that are not carried over: a clock's or ledger's reading, and what is derived from the rest."""


class _Writer:
    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}

    def write(self, value: object) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple | deque):
            return {type(value).__name__: [self.write(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[self.write(key), self.write(item)] for key, item in value.items()]}
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self.objects)
            name = type(value).__name__
            if name not in BLANK:
                raise TypeError(f"{name}: not a class that a snapshot holds; add it to BLANK")
            self.objects.append({})
            attributes = {key: self.write(item) for key, item in _attributes(value).items()}
            self.objects[number] = {"class": name, "attributes": attributes}
        return {"object": number}


class _Reader:
    def __init__(self, records: list[Any]) -> None:
        self._records = records
        self._objects = [self._blank(index, record) for index, record in enumerate(records)]
        for index, record in enumerate(records):
            self._fill(index, record["attributes"])

    def read(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"snapshot: {where}={value} is not finite; start without this snapshot")
            return value
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            if kind == "object" and isinstance(content, int) and 0 <= content < len(self._objects):
                return self._objects[content]
            if kind == "dict" and isinstance(content, list):
                return {self.read(key, where): self.read(item, where) for key, item in content}
            if kind in ("list", "tuple", "deque") and isinstance(content, list):
                items = [self.read(item, where) for item in content]
                return {"list": items, "tuple": tuple(items), "deque": deque(items)}[kind]
        raise ValueError(f"snapshot: {where} holds {str(value)[:60]!r}; start without this snapshot")

    def _blank(self, index: int, record: Any) -> object:
        try:
            return BLANK[record["class"]]()
        except (KeyError, TypeError):
            raise ValueError(
                f"snapshot: objects[{index}] is of no known class; start without this snapshot"
            ) from None

    def _fill(self, index: int, attributes: Mapping[str, Any]) -> None:
        target = self._objects[index]
        name = type(target).__name__
        before = _attributes(target)
        if set(attributes) != set(before):
            odd = sorted(set(attributes) ^ set(before))
            raise ValueError(
                f"snapshot: {name} has other attributes here ({', '.join(odd)}); it was written by another "
                "version: start without it"
            )
        for key, raw in attributes.items():
            value = self.read(raw, f"{name}.{key}")
            if before[key] is not None and not _alike(before[key], value):
                raise ValueError(
                    f"snapshot: {name}.{key}={str(value)[:60]!r} is not of type "
                    f"{type(before[key]).__name__}; start without this snapshot"
                )
            held = before[key]
            if isinstance(value, deque) and isinstance(held, deque):
                value = deque(value, held.maxlen)
            setattr(target, key, value)


def _attributes(value: object) -> dict[str, object]:
    """What a snapshot holds of an object: all its attributes but the transient ones."""
    names = getattr(type(value), "__dataclass_fields__", None) or vars(value)
    skipped = TRANSIENT.get(type(value).__name__, ())
    return {name: getattr(value, name) for name in names if name not in skipped}


def _alike(before: object, value: object) -> bool:
    if isinstance(before, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(before) is type(value)


def dump(parts: Mapping[str, object], constants: Mapping[str, object]) -> bytes:
    """Estimators by name, and the constants they were learned under, as UTF-8 JSON."""
    writer = _Writer()
    root = {name: writer.write(part) for name, part in parts.items()}
    document = {
        "version": VERSION,
        "constants": dict(constants),
        "parts": root,
        "objects": writer.objects,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def load(data: bytes, constants: Mapping[str, object]) -> dict[str, Any]:
    """The estimators of a snapshot by name.

    Raises:
        ValueError: if it is malformed, of another version, or learned under other constants.
    """
    try:
        document = json.loads(data)
        version, parts, objects = document["version"], document["parts"], document["objects"]
        written = document["constants"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"snapshot: not readable ({error!r}); start without it") from None
    if version != VERSION:
        raise ValueError(f"snapshot: version {version!r} is not {VERSION}; start without it")
    for name, value in constants.items():
        if written.get(name) != value:
            raise ValueError(
                f"snapshot: learned with {name}={written.get(name)!r}, now it is {value!r}; set it back or "
                "start without the snapshot"
            )
    try:
        reader = _Reader(objects)
        return {name: reader.read(part, name) for name, part in parts.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"snapshot: malformed ({error!r}); start without it") from None


def check_kinds(expected: Mapping[str, object], parts: Mapping[str, object]) -> None:
    """Whether a snapshot's parts are those of this controller and planner.

    Raises:
        ValueError: naming the part that is missing, superfluous or of another class.
    """
    for name in sorted(set(expected) | set(parts)):
        wanted, found = expected.get(name), parts.get(name)
        if type(wanted) is not type(found):
            raise ValueError(
                f"snapshot: {name} is {type(found).__name__}, not {type(wanted).__name__}; it is of another "
                "planner or damaged: start without it"
            )


def adopt(target: object, source: object) -> None:
    """Give ``target``, which others hold a reference to, everything that ``source`` has learned."""
    for name, value in _attributes(source).items():
        setattr(target, name, value)
