"""Before deployment: which τ, which draft model and which budget, and what they can give at best."""

from specpilot.sizing.arithmetic import (
    Limits,
    PassCosts,
    best_length,
    break_even_acceptance,
    break_even_draft_ms,
    needed_acceptance,
    speed_up,
    tokens_per_pass,
)
from specpilot.sizing.plan import Plan, make_plan
from specpilot.sizing.region import Cell, map_region
from specpilot.sizing.roles import Role, rank_roles, read_models
from specpilot.sizing.roles_load import LoadedRole, rank_loaded
from specpilot.sizing.workload import from_numbers, hazards_by_length

__all__ = [
    "Cell",
    "Limits",
    "LoadedRole",
    "PassCosts",
    "Plan",
    "Role",
    "best_length",
    "break_even_acceptance",
    "break_even_draft_ms",
    "from_numbers",
    "hazards_by_length",
    "make_plan",
    "map_region",
    "needed_acceptance",
    "rank_loaded",
    "rank_roles",
    "read_models",
    "speed_up",
    "tokens_per_pass",
]
