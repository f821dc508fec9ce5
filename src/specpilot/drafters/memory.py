"""Text of ended requests for prompt lookup: per tenant, bounded, one tenant's text never proposed to another.

A tenant's text is kept in two halves. New text goes into the younger one; when that is full, the older is
dropped and a fresh one begun, so that memory is bounded without rebuilding an automaton token by token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specpilot.drafters.lookup import SuffixAutomaton
from specpilot.models.base import common_prefix

LONGEST_MATCH = 32
"""Tokens at the context's end that are looked up; a longer match says no more."""
_BREAK = -1
"""Stands between texts: no token, so that no match goes across."""


@dataclass(slots=True)
class _Tenant:
    younger: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    older: SuffixAutomaton | None = None
    last: list[int] = field(default_factory=list)


class TenantMemory:
    """Remembers the text of sessions, by tenant.

    Args:
        tokens: most tokens kept for a tenant (some hundred bytes each).
        tenants: most tenants kept; the one that was quiet longest is forgotten first.
        tenant_of: the tenant of a session; by default each session is a tenant of its own.

    Raises:
        ValueError: if a bound is below 2 tokens or 1 tenant.
    """

    def __init__(
        self,
        tokens: int = 8192,
        tenants: int = 64,
        *,
        tenant_of: Callable[[str], str] = lambda session_id: session_id,
    ) -> None:
        if tokens < 2:
            raise ValueError(f"tokens: {tokens} is not ≥ 2; 8192 is typical")
        if tenants < 1:
            raise ValueError(f"tenants: {tenants} is not ≥ 1; 64 is typical")
        self._half = tokens // 2
        self._most = tenants
        self._tenant_of = tenant_of
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()

    @property
    def tokens(self) -> int:
        """Tokens kept in all."""
        return sum(
            len(half.tokens)
            for tenant in self._tenants.values()
            for half in (tenant.younger, tenant.older)
            if half is not None
        )

    def add(self, session_id: str, tokens: Sequence[int]) -> None:
        """Keep what this text has beyond the text before it: a document that grows is kept once."""
        name = self._tenant_of(session_id)
        tenant = self._tenants.setdefault(name, _Tenant())
        self._tenants.move_to_end(name)
        while len(self._tenants) > self._most:
            self._tenants.popitem(last=False)
        new = tokens[common_prefix(tenant.last, list(tokens)) :]
        tenant.last = list(tokens)
        for token in (*new, _BREAK) if new else ():
            if len(tenant.younger.tokens) >= self._half:
                tenant.older, tenant.younger = tenant.younger, SuffixAutomaton()
            tenant.younger.extend(token)

    def find(self, session_id: str, context: Sequence[int], count: int) -> tuple[list[int], int]:
        """What followed the longest match of the context's end, and the match's length (0: none)."""
        tenant = self._tenants.get(self._tenant_of(session_id))
        best: tuple[list[int], int] = ([], 0)
        if tenant is None:
            return best
        end = context[-LONGEST_MATCH:]
        for half in (tenant.younger, tenant.older):
            if half is not None:
                length, place = half.match(end)
                found = half.tokens[place : place + count]
                if _BREAK in found:
                    found = found[: found.index(_BREAK)]
                if found and length > best[1]:
                    best = (found, length)
        return best
