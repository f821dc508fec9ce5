"""The policy: a pure core that reads events and answers with plans."""

from specpilot.control.budget import BudgetExhausted, PassLedger
from specpilot.control.config import ControllerConfig, Mode
from specpilot.control.controller import Controller
from specpilot.control.cost import CostProfile
from specpilot.control.stop import StopRule
from specpilot.control.types import (
    Admission,
    BatchPlan,
    Binding,
    CycleOutcome,
    CyclePlan,
    PlannedStop,
    Reason,
    RequestInfo,
    RequestSummary,
    StopCause,
)

__all__ = [
    "Admission",
    "BatchPlan",
    "Binding",
    "BudgetExhausted",
    "Controller",
    "ControllerConfig",
    "CostProfile",
    "CycleOutcome",
    "CyclePlan",
    "Mode",
    "PassLedger",
    "PlannedStop",
    "Reason",
    "RequestInfo",
    "RequestSummary",
    "StopCause",
    "StopRule",
]
