"""The pass ledger: the hard budget of target forward passes, and the price of a pass from the pool.

The promise (I1) is that at every instant ``passes started ≤ B · requests admitted``. The ledger keeps
it by construction, in whole millicredits (one pass = 1,000) with B rounded down:

* every admitted request deposits B and owns ⌊B⌋ passes of it, whatever the others do (I2);
* the fraction B − ⌊B⌋ flows to a shared pool when the request's first pass starts, and what it did
  not use of its own flows there when it ends; a further pass is drawn from the pool;
* a request that ends without any pass takes its whole deposit back, so the promise is kept over
  requests that really used the target and cannot be inflated by empty ones;
* the pool is capped (overflow is burnt): over any N consecutive requests at most B·N + cap passes,
  plus those in flight.

A pass is first *reserved* (when it is planned) and then *started*; reservations of a batch are
atomic, and a planned pass that never starts is released at no cost. Since I1 holds for each replica
on its own, it holds for a fleet with no coordination.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from specpilot.control.window import Window

CREDIT = 1000
TENANTS = 4096
"""Tenants without a request in flight whose balance is kept, at most: a tenant may be any client's string."""
_UNLIMITED = 10**15
BIDS = 128
"""Bids that λ is a quantile of."""


class BudgetExhausted(RuntimeError):  # noqa: N818 - the public name in the interface
    """No pass is left for this request: its own are spent and the pool holds no whole credit."""


@dataclass(slots=True)
class _Account:
    own: int  # unspent own passes, reserved ones included
    tenant: str
    started: int = 0
    drawn: int = 0  # passes taken from the pool
    reserved: str = ""  # "", "own" or "pool"


class PassLedger:
    """Grants target passes so that I1 and I2 hold at every instant.

    Args:
        budget: B, target passes per admitted request on average; any real ≥ 1, or ``math.inf`` for
            no budget (to show what one costs).
        burst: most credits (passes) the pool may hold.
        tenant_cap: most passes one tenant may draw beyond what its own requests put into the pool;
            ``None`` for no cap. Of more than ``TENANTS`` without a request in flight the oldest are
            forgotten, savings before debts: a saver then may draw no more than the cap, and (only where
            half of ``TENANTS`` later ones are in debt too) a debtor may draw the cap once more. The budget
            (I1) does not depend on it.

    Raises:
        ValueError: for a budget below 1 or a negative cap.
    """

    def __init__(self, budget: float = 2.0, burst: int = 64, tenant_cap: int | None = None) -> None:
        if not budget >= 1.0:
            raise ValueError(f"budget: {budget} is not ≥ 1; a request needs at least one target pass")
        if burst < 0:
            raise ValueError(f"burst: {burst} is not ≥ 0; use 0 to keep no pool")
        if tenant_cap is not None and tenant_cap < 0:
            raise ValueError(f"tenant_cap: {tenant_cap} is not ≥ 0; use None for no cap")
        self.budget = budget
        self.burst = burst
        self.tenant_cap = tenant_cap
        # The small nudge keeps 2.7 at 2,700 millicredits although 2.7 · 1000 is 2700.0000000000005 or
        # its neighbour below; it is far under half a millicredit.
        self._deposit = _UNLIMITED if math.isinf(budget) else math.floor(budget * CREDIT + 1e-6)
        self._accounts: dict[str, _Account] = {}
        self._tenant_balance: dict[str, int] = {}
        self._pool = 0
        self._pool_reserved = 0
        self._admitted = 0
        self._started = 0
        self.inflow = 0
        """Millicredits that ever flowed into the pool, burnt ones included."""
        self.burnt = 0
        """Millicredits lost to the cap."""

    @property
    def admitted(self) -> int:
        """Requests whose deposit stands: admitted, less those that ended without any pass."""
        return self._admitted

    @property
    def passes_started(self) -> int:
        """Target passes started, failed ones included."""
        return self._started

    @property
    def pool(self) -> float:
        """Passes in the pool, fractions and reserved ones included."""
        return self._pool / CREDIT

    @property
    def fill(self) -> float:
        """How full the pool is, 0…1 (1 if the cap is 0: nothing can be saved)."""
        return self._pool / (self.burst * CREDIT) if self.burst else 1.0

    def admit(self, request_id: str, tenant: str = "") -> None:
        """Deposit B for a new request.

        Raises:
            ValueError: if the request is already in the ledger.
        """
        if request_id in self._accounts:
            raise ValueError(f"request_id: {request_id!r} is already admitted; ids are used once at a time")
        self._accounts[request_id] = _Account(self._deposit // CREDIT, tenant)
        self._admitted += 1

    def own_passes(self, request_id: str) -> int:
        """Passes the request may still start whatever the others do."""
        account = self._accounts.get(request_id) or self._account(request_id)
        return account.own

    def passes(self, request_id: str) -> tuple[int, int]:
        """(passes started, of which drawn from the pool)."""
        account = self._account(request_id)
        return account.started, account.drawn

    def may_start_pass(self, request_id: str) -> bool:
        """Whether a pass could be had right now (advisory: another request may draw on the pool first)."""
        account = self._account(request_id)
        if account.reserved:
            return True
        return account.own > 0 or self._may_draw(account)

    def reserve(self, bids: Mapping[str, float], price: float = 0.0) -> dict[str, str]:
        """Set a pass aside for each request that can have one; all decided together.

        Own passes come first and cost no bid. Pool passes go to the highest bids that are at least
        ``price`` (tokens), ties in the order given.

        Args:
            bids: request id → expected gain of its pass, in tokens.
            price: λ, the least bid that a pool pass is given for.

        Returns:
            request id → "own" or "pool", for the granted ones.

        Raises:
            ValueError: for an unknown request or one that has a pass reserved already.
        """
        granted: dict[str, str] = {}
        asking: list[tuple[str, _Account]] = []
        known = self._accounts
        for request_id in bids:
            account = known.get(request_id) or self._account(request_id)
            if account.reserved:
                raise ValueError(
                    f"request_id: {request_id!r} has a pass reserved already; start or release it first"
                )
            if account.own > 0:
                granted[request_id] = "own"
            else:
                asking.append((request_id, account))
        for request_id in granted:
            known[request_id].reserved = "own"
        if not asking:
            return granted
        asking.sort(key=lambda pair: -bids[pair[0]])  # stable: ties stay in order
        for request_id, account in asking:
            if bids[request_id] >= price and self._may_draw(account):
                account.reserved = "pool"
                self._pool_reserved += CREDIT
                self._charge_tenant(account.tenant, -CREDIT)
                granted[request_id] = "pool"
        return granted

    def reserve_own(self, request_id: str) -> bool:
        """Set one of the request's own passes aside, which needs no bid; False where it has none.

        Raises:
            ValueError: for an unknown request or one that has a pass reserved already.
        """
        account = self._accounts.get(request_id) or self._account(request_id)
        if account.reserved:
            raise ValueError(
                f"request_id: {request_id!r} has a pass reserved already; start or release it first"
            )
        if account.own <= 0:
            return False
        account.reserved = "own"
        return True

    def start(self, request_id: str) -> None:
        """Turn the request's reservation into a started pass.

        Raises:
            ValueError: if nothing is reserved for it.
        """
        account = self._account(request_id)
        if not account.reserved:
            raise ValueError(f"request_id: {request_id!r} has no pass reserved; reserve one first")
        if account.reserved == "own":
            account.own -= 1
        else:
            self._pool -= CREDIT
            self._pool_reserved -= CREDIT
            account.drawn += 1
        account.reserved = ""
        if account.started == 0:
            self._flow_in(account.tenant, self._deposit % CREDIT)
        account.started += 1
        self._started += 1

    def release(self, request_id: str) -> None:
        """Give a reserved pass back unstarted. Nothing happens where none is reserved."""
        account = self._account(request_id)
        if account.reserved == "pool":
            self._pool_reserved -= CREDIT
            self._charge_tenant(account.tenant, CREDIT)
        account.reserved = ""

    def start_pass(self, request_id: str) -> None:
        """Reserve and start one pass, own or from the pool.

        Raises:
            BudgetExhausted: if there is none for this request.
        """
        if not self.reserve({request_id: math.inf}):
            raise BudgetExhausted(
                f"request {request_id!r}: its {self._deposit // CREDIT} own passes are spent and the pool "
                f"holds {self.pool:.3f}; end the request with what is verified"
            )
        self.start(request_id)

    def finish(self, request_id: str) -> None:
        """Close the account: what is left flows to the pool, or is taken back if no pass was started."""
        self.release(request_id)
        account = self._accounts.pop(request_id)
        if account.started == 0:
            self._admitted -= 1
        else:
            self._flow_in(account.tenant, account.own * CREDIT)
        if len(self._tenant_balance) > TENANTS + len(self._accounts):
            self._forget_tenants()

    def _account(self, request_id: str) -> _Account:
        try:
            return self._accounts[request_id]
        except KeyError:
            raise ValueError(f"request_id: {request_id!r} is not admitted; call admit first") from None

    def _may_draw(self, account: _Account) -> bool:
        if self._pool - self._pool_reserved < CREDIT:
            return False
        if self.tenant_cap is None:
            return True
        return self._tenant_balance.get(account.tenant, 0) - CREDIT >= -self.tenant_cap * CREDIT

    def _charge_tenant(self, tenant: str, amount: int) -> None:
        if self.tenant_cap is None:
            return
        # Taken out and put back in: so the dictionary is in the order of the last charge.
        balance = self._tenant_balance.pop(tenant, 0) + amount
        # What a tenant put in is forgotten above the cap on the pool itself: no one saves without end.
        balance = min(balance, self.burst * CREDIT)
        if balance:
            self._tenant_balance[tenant] = balance

    def _forget_tenants(self) -> None:
        """Drop idle tenants down to half of ``TENANTS``, so that it is seldom done: savings before debts,
        since a forgotten debt would let its tenant draw again, each from the oldest on. One in flight stays:
        what it has reserved may still come back.
        """
        busy = {account.tenant for account in self._accounts.values()}
        idle = [tenant for tenant in self._tenant_balance if tenant not in busy]
        idle.sort(key=lambda tenant: self._tenant_balance[tenant] < 0)  # stable: by age among their like
        for tenant in idle[: len(idle) - TENANTS // 2]:
            del self._tenant_balance[tenant]

    def _flow_in(self, tenant: str, amount: int) -> None:
        if not amount:
            return
        kept = min(amount, self.burst * CREDIT - self._pool)
        self._pool += kept
        self.inflow += amount
        self.burnt += amount - kept
        self._charge_tenant(tenant, kept)


class PassPrice:
    """λ: what a pool pass must at least be worth, in tokens.

    The quantile of recent bids at which grants would equal the inflow: if the pool receives r credits
    per bid, only the best share r of bids can be served. Raised as the pool falls and 0 when it is
    full, since a full pool burns what flows in.
    """

    def __init__(self) -> None:
        self._bids = Window(BIDS)
        self._inflows: deque[int] = deque(maxlen=BIDS)  # the total at each of them
        self._quantile = 0.0
        self._total = 0  # millicredits that flowed in between the bids, of earlier processes too
        self._last = 0  # the ledger's count at the last bid

    def bid(self, tokens: float, inflow: int) -> None:
        """Record a bid and the ledger's total inflow (millicredits) at that time."""
        self._total += inflow - self._last
        self._last = inflow
        self._bids.add(tokens)
        self._inflows.append(self._total)
        count = len(self._bids)
        if count >= 8:
            served = min(1.0, (self._total - self._inflows[0]) / CREDIT / (count - 1))
            self._quantile = self._bids.upper(served)

    def price(self, fill: float) -> float:
        """λ ≥ 0 in tokens for a pool that is ``fill`` (0…1) full; 0 until there are eight bids.

        A bid below 0, where time is dearer than what the pass earns, is no price.
        """
        price = max(0.0, self._quantile)
        if fill <= 0.5:
            return price
        return price * (2.0 * (1.0 - fill)) if fill < 1.0 else 0.0
