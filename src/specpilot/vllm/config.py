"""How the plugin is switched on: ``--additional-config '{"specpilot": {...}}'`` or SPECPILOT_VLLM.

The values are those of :class:`~specpilot.control.ControllerConfig` that say what to promise, and ``trace``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specpilot.control import ControllerConfig, CostProfile
from specpilot.control.curves import KNOTS

VARIABLE = "SPECPILOT_VLLM"
KEY = "specpilot"
PROMISES = ("pass_budget", "slo_p95_ms", "burst", "max_draft", "tenant_pool_cap", "mode", "static_draft")
NUMBERS = ("pass_budget", "slo_p95_ms")
COUNTS = ("burst", "max_draft", "static_draft", "tenant_pool_cap")
PROFILE = CostProfile(verify_ms=(6.0,) * len(KNOTS))
"""First guess of the costs: passes are alike until they are measured. A batch runs at few widths, and a slope
that was only guessed between two of them would speak against every draft."""
OFF, ON = ("", "0", "off", "false"), ("1", "on", "true")


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """What an operator sets.

    ``max_draft`` is never more than the ``num_speculative_tokens`` of vLLM's speculative configuration.
    ``trace`` is a file for the trace of every cycle; ``{rank}`` in it becomes the data-parallel rank.

    Raises:
        ValueError: naming the field, its value, the allowed range and the remedy.
    """

    promises: Mapping[str, Any] = field(default_factory=dict)
    trace: str | None = None

    def __post_init__(self) -> None:
        ControllerConfig(**self.promises)

    def controller(self, num_speculative_tokens: int, max_batch: int = 1) -> ControllerConfig:
        """The controller's configuration under an engine with these limits."""
        values = dict(self.promises)
        values["max_draft"] = min(values.get("max_draft", num_speculative_tokens), num_speculative_tokens)
        return ControllerConfig(**values, max_batch=max_batch)

    @classmethod
    def from_json(cls, values: object) -> PluginConfig:
        """Read the object under ``specpilot``; ``"pass_budget": null`` means no budget."""
        if values is True:
            return cls()
        if not isinstance(values, Mapping):
            raise ValueError(f'{KEY}: {values!r} is not an object; give {{"pass_budget": 2}} or true')
        unknown = sorted(set(values) - {*PROMISES, "trace"})
        if unknown:
            raise ValueError(
                f"{KEY}.{unknown[0]}: no such field; the fields are {', '.join((*PROMISES, 'trace'))}"
            )
        promises = {name: values[name] for name in PROMISES if name in values}
        if "pass_budget" in promises and promises["pass_budget"] is None:
            promises["pass_budget"] = math.inf
        for name, value in promises.items():
            _check_type(name, value)
        trace = values.get("trace")
        if trace is not None and not (isinstance(trace, str) and trace):
            raise ValueError(f"{KEY}.trace: {trace!r} is not a file name; leave it out to write no trace")
        try:
            return cls(promises, trace)
        except ValueError as error:
            raise ValueError(f"{KEY}.{error}") from None


def configured(additional_config: object, environ: Mapping[str, str]) -> PluginConfig | None:
    """The configuration, or ``None`` where the plugin is not switched on.

    ``additional_config`` wins over the variable, which is ``1`` or a JSON object; ``false`` and ``0`` switch
    it off.

    Raises:
        ValueError: for a value that is neither.
    """
    if isinstance(additional_config, Mapping) and KEY in additional_config:
        values = additional_config[KEY]
        return None if values is False or values is None else PluginConfig.from_json(values)
    text = environ.get(VARIABLE, "").strip()
    if text.lower() in OFF:
        return None
    if text.lower() in ON:
        return PluginConfig()
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{VARIABLE}: {text!r} is not 0, 1 or a JSON object ({error.msg}); "
            f"try {VARIABLE}='{{\"pass_budget\": 2}}'"
        ) from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{VARIABLE}: {text!r} is not 0, 1 or a JSON object; use 1 for the defaults")
    return PluginConfig.from_json(values)


def _check_type(name: str, value: object) -> None:
    boolean = isinstance(value, bool)
    if name in NUMBERS and (boolean or not isinstance(value, int | float)):
        raise ValueError(f"{KEY}.{name}: {value!r} is not a number; give one")
    if name in COUNTS and (boolean or not isinstance(value, int)):
        raise ValueError(f"{KEY}.{name}: {value!r} is not a whole number; give one")
