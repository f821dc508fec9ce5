"""What a controller has learned, as bytes: written by one process, taken up by the next.

The estimators form a small graph (contexts share a calibration, tables share a parent), so objects are
numbered and written once, as JSON: nothing is executed on reading, unlike a pickle. Reading is strict: a
snapshot of another version, with an unknown class, a missing attribute or a value of another type or length
is refused as a whole, and so is one whose parts do not fit each other. Clocks, open requests and the ledger
are left out: a new process has its own.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from specpilot.control.acceptance import MAX_WEIGHT, AcceptanceModel, HazardTable
from specpilot.control.branching import Branches, Forks, Yields
from specpilot.control.budget import BIDS, PassPrice
from specpilot.control.calibration import Calibration, Offset, PlacedCalibration
from specpilot.control.change import Change
from specpilot.control.contexts import Context
from specpilot.control.cost import CostModel
from specpilot.control.curves import KNOTS, ContextSlope, CostCurve, UpperQuantile
from specpilot.control.difficulty import Difficulty, Residuals
from specpilot.control.drafting import DraftCost, TreeCost
from specpilot.control.ending import EndHazard
from specpilot.control.health import Backoff, Breaker, Fallback, Trials
from specpilot.control.latency import SLACKS, DeadlineTracker, TimePrice
from specpilot.control.window import Window

VERSION = 14
MOST = 1e300
"""Largest number that is taken: all that is learned stays far below."""
AFRESH = "start without this snapshot"

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
    "PlacedCalibration": PlacedCalibration,
    "Residuals": Residuals,
    "TimePrice": TimePrice,
    "TreeCost": TreeCost,
    "Trials": lambda: Trials(1, 1),
    "UpperQuantile": UpperQuantile,
    "Window": lambda: Window(1),
    "Yields": Yields,
}
"""The classes that a snapshot may hold, each with a way to make one that is then filled in."""

TRANSIENT = {
    "PassPrice": ("_last",),
    "TimePrice": ("_last_s", "pressing"),
    "Context": ("decisions", "forecasts", "ranks", "lookup"),
}
"""Attributes that are not carried over: a clock's or ledger's reading, and what is derived from the rest."""

CONTENTS: dict[str, dict[str, Any]] = {
    "AcceptanceModel": {
        "_pooled": dict[str, HazardTable],
        "_tables": dict[tuple[str, int], HazardTable],
        "_changes": dict[tuple[str, int], Change],
        "_common": dict[str, Change],
    },
    "Change": {"recent": deque[tuple[int, list[tuple[int, float, float]]]]},
    "HazardTable": {
        "parent": HazardTable | None,
        "accepted": list[float],
        "reached": list[float],
        "squares": list[float],
        "_hazards": list[float],
    },
    "PlacedCalibration": {"_buckets": dict[int, Offset]},
    "PassPrice": {"_inflows": deque[int]},
    "Window": {"values": deque[float], "ordered": list[float]},
}
"""What the attributes hold of which a blank says nothing, being empty; the others are as long as in a blank.
"""

PARTS: dict[str, Any] = {
    "breakers": dict[str, Breaker],
    "calibrations": dict[str, Calibration],
    "contexts": dict[tuple[str, int], Context],
    "difficulty": dict[str, Difficulty],
    "ranks": dict[str, PlacedCalibration],
}
"""What those parts hold that are no estimators by themselves."""


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
        self._objects = [self._blank(index, record) for index, record in enumerate(records)]
        for index, record in enumerate(records):
            self._fill(index, record["attributes"])
        for target in self._objects:
            _check_whole(target)

    def read(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            if not abs(value) <= MOST:  # a larger integer has no float, in whose place it may stand
                raise ValueError(f"snapshot: {where} is not finite or beyond ±{MOST:g}; {AFRESH}")
            return value
        if isinstance(value, dict) and len(value) == 1:
            ((kind, content),) = value.items()
            if kind == "object" and isinstance(content, int) and 0 <= content < len(self._objects):
                return self._objects[content]
            if kind == "dict" and isinstance(content, list):
                pairs = [self.read({"tuple": pair}, where) for pair in content]
                if all(len(pair) == 2 for pair in pairs):
                    return dict(pairs)
            if kind in ("list", "tuple", "deque") and isinstance(content, list):
                items = [self.read(item, where) for item in content]
                return {"list": items, "tuple": tuple(items), "deque": deque(items)}[kind]
        raise ValueError(f"snapshot: {where} holds {str(value)[:60]!r}; {AFRESH}")

    def _blank(self, index: int, record: Any) -> object:
        try:
            return BLANK[record["class"]]()
        except (KeyError, TypeError):
            raise ValueError(f"snapshot: objects[{index}] is of no known class; {AFRESH}") from None

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
            held = before[key]
            wanted = CONTENTS.get(name, {}).get(key)
            if wanted is not None:
                _require(wanted, value, f"{name}.{key}")
            elif not _alike(held, value):
                size = f" of {len(held)}" if isinstance(held, list | tuple | deque | dict) else ""
                raise ValueError(
                    f"snapshot: {name}.{key}={str(value)[:60]!r} is not of type "
                    f"{type(held).__name__}{size} as in this version; {AFRESH}"
                )
            if isinstance(value, deque) and isinstance(held, deque):
                value = deque(value, held.maxlen)
            setattr(target, key, value)


def _attributes(value: object) -> dict[str, object]:
    """What a snapshot holds of an object: all its attributes but the transient ones."""
    names = getattr(type(value), "__dataclass_fields__", None) or vars(value)
    skipped = TRANSIENT.get(type(value).__name__, ())
    return {name: getattr(value, name) for name in names if name not in skipped}


def _alike(before: object, value: object) -> bool:
    """Whether a value may stand where a blank has this one: of its type, and all that it holds too."""
    if isinstance(before, list | tuple | deque) and type(before) is type(value):
        assert isinstance(value, list | tuple | deque)
        return len(before) == len(value) and all(map(_alike, before, value))
    return _fits(type(before), value)


def _fits(wanted: Any, value: object) -> bool:
    """Whether a value is what a type such as ``dict[str, list[float]]`` says; an int may be a float."""
    kind, inner = get_origin(wanted) or wanted, get_args(wanted)
    if kind is UnionType:
        return any(_fits(one, value) for one in inner)
    if kind is float:
        return type(value) in (int, float)
    if type(value) is not kind:
        return False
    if isinstance(value, tuple):
        return len(value) == len(inner) and all(map(_fits, inner, value))
    if isinstance(value, dict):
        return all(_fits(inner[0], key) and _fits(inner[1], item) for key, item in value.items())
    if isinstance(value, list | deque):
        return all(_fits(inner[0], item) for item in value)
    return True


def _require(wanted: Any, value: object, where: str) -> None:
    if not _fits(wanted, value):
        raise ValueError(f"snapshot: {where}={str(value)[:60]!r} is not {_name(wanted)}; {AFRESH}")


def _name(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) and not get_args(wanted) else str(wanted)


def _check_whole(target: object) -> None:
    """Whether an object's attributes, each right by itself, fit each other: its methods count on that."""
    if isinstance(target, HazardTable):
        lengths = {len(target.accepted), len(target.reached), len(target.squares)}
        whole = len(lengths) == 1 and (target.parent is None or target.parent.parent is None)
        whole = whole and min([*target.reached, *target.squares], default=0.0) >= 0.0
        what = "accepted, reached and squares as long as each other and ≥ 0, and a parent without a parent"
    elif isinstance(target, CostCurve):
        whole = target.sound()
        what = "rising values, their slopes and a covariance"
    elif isinstance(target, Change):
        seen = [each for _, block in target.recent for each in block]
        whole = all(
            at >= 1 and 0.0 <= value <= 1.0 and 0.0 < weight <= MAX_WEIGHT for at, value, weight in seen
        )
        what = f"positions from 1 on, values in 0…1 and weights in 0…{MAX_WEIGHT:g} of its recent blocks"
    elif isinstance(target, AcceptanceModel):
        told = {(name, bucket) for name, one in target._common.items() for bucket, _ in one.recent}
        drafters = {name for name, _ in target._tables}
        whole = target._tables.keys() == target._changes.keys() >= told
        whole = whole and target._pooled.keys() == target._common.keys() == drafters
        what = "_tables and _changes of the same contexts, _pooled and _common of their drafters"
    elif isinstance(target, PassPrice):
        whole = target._bids.size == BIDS and len(target._bids) == len(target._inflows)
        what = f"_bids of {BIDS} at most and an inflow at each"
    elif isinstance(target, TimePrice):
        whole = target._slacks.size == SLACKS
        what = f"_slacks of {SLACKS} at most"
    elif isinstance(target, Window):
        whole = target.ordered == sorted(target.values) and len(target.ordered) <= target.size
        what = "in ordered its values, no more than its size"
    else:
        return
    if not whole:
        raise ValueError(f"snapshot: {type(target).__name__} has not {what}; {AFRESH}")


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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"snapshot: not readable ({error!r}); start without it") from None
    if version != VERSION:
        raise ValueError(f"snapshot: version {version!r} is not {VERSION}; start without it")
    if not isinstance(written, dict):
        raise ValueError(f"snapshot: constants={str(written)[:60]!r} is not an object; {AFRESH}")
    for name, value in constants.items():
        if written.get(name) != value:
            raise ValueError(
                f"snapshot: learned with {name}={written.get(name)!r}, now it is {value!r}; set it back or "
                "start without the snapshot"
            )
    try:
        reader = _Reader(objects)
        found = {name: reader.read(part, name) for name, part in parts.items()}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"snapshot: malformed ({error!r}); start without it") from None
    for name in found.keys() & PARTS:
        _require(PARTS[name], found[name], name)
    return found


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
