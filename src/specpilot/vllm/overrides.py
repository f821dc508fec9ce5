"""What one request may ask for: ``extra_args`` in Python, ``vllm_xargs`` over HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "specpilot_"
NAMES = ("max_draft", "slo_ms", "tenant")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a request has asked for.

    ``max_draft`` caps τ (0: no speculation for this request), ``slo_ms`` is its own deadline, ``tenant``
    whose share of the pool it draws on.
    """

    max_draft: int | None = None
    slo_ms: float | None = None
    tenant: str = ""

    @classmethod
    def read(cls, extra_args: Mapping[str, object] | None) -> Overrides:
        """Take the ``specpilot_*`` arguments; others are not ours.

        Raises:
            ValueError: for an unknown name or a value out of range.
        """
        own = {
            key.removeprefix(PREFIX): value
            for key, value in (extra_args or {}).items()
            if key.startswith(PREFIX)
        }
        for name in own:
            if name not in NAMES:
                known = ", ".join(PREFIX + name for name in NAMES)
                raise ValueError(f"{PREFIX}{name}: no such argument; there are {known}")
        tenant = own.get("tenant", "")
        if not isinstance(tenant, str):
            raise ValueError(f"{PREFIX}tenant: {tenant!r} is not a string; give a name")
        return cls(_max_draft(own.get("max_draft")), _slo_ms(own.get("slo_ms")), tenant)


def _max_draft(value: object) -> int | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number < 0 or not number.is_integer():
        raise ValueError(
            f"{PREFIX}max_draft: {value!r} is not a whole number ≥ 0; 0 switches speculation off"
        )
    return int(number)


def _slo_ms(value: object) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or number <= 0.0:
        raise ValueError(f"{PREFIX}slo_ms: {value!r} is not > 0; give milliseconds")
    return number


def _number(value: object) -> float | None:
    """A finite number; strings too, since some HTTP clients send every extra argument as one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
