"""specpilot: the control policy that makes speculative decoding keep a latency SLO and a pass budget.

Importing the package loads no engine; :func:`load_pair` does. The policy itself is pure Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from specpilot.control import BudgetExhausted, Controller, ControllerConfig, PassLedger

if TYPE_CHECKING:
    from specpilot.pair import Completion, Pair, load_pair

__version__ = "0.1.0"
__all__ = [
    "BudgetExhausted",
    "Completion",
    "Controller",
    "ControllerConfig",
    "Pair",
    "PassLedger",
    "__version__",
    "load_pair",
]

_LAZY = dict.fromkeys(("Completion", "Pair", "load_pair"), "specpilot.pair")


def __getattr__(name: str) -> Any:
    """Import what needs an engine only when it is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
