"""The pass ledger: hand-checkable accounts."""

from __future__ import annotations

import math

import pytest

from specpilot import BudgetExhausted, PassLedger
from specpilot.control.budget import CREDIT, TENANTS, PassPrice


def test_two_passes_each_and_nothing_to_share() -> None:
    ledger = PassLedger(2.0)
    ledger.admit("a")
    ledger.start_pass("a")
    ledger.start_pass("a")
    assert ledger.pool == 0.0
    assert not ledger.may_start_pass("a")
    with pytest.raises(BudgetExhausted, match="own passes are spent"):
        ledger.start_pass("a")
    assert (ledger.admitted, ledger.passes_started) == (1, 2)


def test_fraction_flows_at_the_first_pass_and_the_rest_at_the_end() -> None:
    ledger = PassLedger(2.7)
    ledger.admit("a")
    assert ledger.pool == 0.0
    ledger.start_pass("a")
    assert ledger.pool == pytest.approx(0.7)
    ledger.finish("a")  # one own pass unused
    assert ledger.pool == pytest.approx(1.7)
    ledger.admit("b")
    for _ in range(2):
        ledger.start_pass("b")
    assert ledger.pool == pytest.approx(2.4)
    ledger.start_pass("b")
    ledger.start_pass("b")
    assert ledger.pool == pytest.approx(0.4)
    assert not ledger.may_start_pass("b")
    assert ledger.passes("b") == (4, 2)


def test_a_request_without_a_pass_takes_its_deposit_back() -> None:
    ledger = PassLedger(1.5)
    ledger.admit("a")
    ledger.finish("a")
    assert (ledger.admitted, ledger.pool) == (0, 0.0)


def test_overflow_is_burnt_at_the_cap() -> None:
    ledger = PassLedger(3.0, burst=2)
    for name in "abc":
        ledger.admit(name)
        ledger.start_pass(name)
        ledger.finish(name)  # two unused each
    assert ledger.pool == 2.0
    assert ledger.burnt == 4000
    assert ledger.fill == 1.0


def test_grants_of_a_batch_are_atomic_and_go_to_the_best_bids() -> None:
    ledger = PassLedger(1.5)
    for name in "abcd":
        ledger.admit(name)
        ledger.start_pass(name)
    assert ledger.pool == 2.0
    assert ledger.reserve({"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.5}) == {"b": "pool", "c": "pool"}
    for name in "bc":
        ledger.start(name)
    assert ledger.pool == 0.0


def test_price_and_release() -> None:
    ledger = PassLedger(1.5)
    for name in "ab":
        ledger.admit(name)
        ledger.start_pass(name)
    assert ledger.reserve({"a": 1.0}, price=2.0) == {}
    assert ledger.reserve({"a": 2.0}, price=2.0) == {"a": "pool"}
    assert ledger.reserve({"b": 9.0}) == {}  # the only credit is reserved
    ledger.release("a")
    assert ledger.passes_started == 2
    assert ledger.reserve({"b": 9.0}) == {"b": "pool"}


def test_tenant_cap() -> None:
    ledger = PassLedger(3.0, tenant_cap=1)
    ledger.admit("x", "saver")
    ledger.start_pass("x")
    ledger.finish("x")  # puts two passes into the pool
    ledger.admit("y", "spender")
    for _ in range(4):
        ledger.start_pass("y")  # three own, one drawn
    assert not ledger.may_start_pass("y")
    ledger.admit("z", "saver")
    for _ in range(4):
        ledger.start_pass("z")
    assert ledger.pool == 0.0


def one_request(ledger: PassLedger, name: str, tenant: str, passes: int) -> int:
    """Serve a request that would have so many passes; how many it got."""
    ledger.admit(name, tenant)
    got = 0
    while got < passes and ledger.may_start_pass(name):
        ledger.start_pass(name)
        got += 1
    ledger.finish(name)
    return got


def test_tenants_balances_are_bounded_and_a_debt_outlives_the_savings_of_others() -> None:
    """Any client's string is a tenant: 20,000 finished ones must not leave 20,000 balances."""
    ledger = PassLedger(3.0, burst=10**6, tenant_cap=1)
    one_request(ledger, "x", "saver", 1)
    assert one_request(ledger, "y", "spender", 9) == 4  # three own, one drawn: its cap
    for index in range(20_000):
        one_request(ledger, "z", f"client-{index}", 2)  # saves one pass
        assert ledger.passes_started <= 3 * ledger.admitted
    assert len(ledger._tenant_balance) <= TENANTS
    assert one_request(ledger, "y", "spender", 9) == 3, "the cap holds still"
    assert one_request(ledger, "z", "client-19999", 9) == 5, "one that it put in, and one beyond"


def test_a_tenant_in_flight_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reserved pass comes back to the balance that it was taken from."""
    monkeypatch.setattr("specpilot.control.budget.TENANTS", 4)
    ledger = PassLedger(1.5, tenant_cap=1)
    for index in range(4):
        one_request(ledger, "s", f"early-{index}", 1)
    ledger.admit("a", "slow")
    ledger.start_pass("a")
    assert ledger.reserve({"a": 1.0}) == {"a": "pool"}
    for index in range(20):
        one_request(ledger, "s", f"late-{index}", 1)
    assert len(ledger._tenant_balance) <= 5
    ledger.release("a")
    assert ledger._tenant_balance["slow"] == CREDIT // 2


def test_a_balance_of_nothing_is_not_kept() -> None:
    ledger = PassLedger(2.0, tenant_cap=1)
    one_request(ledger, "x", "saver", 1)
    one_request(ledger, "x", "saver", 3)
    assert ledger._tenant_balance == {}


def test_no_budget() -> None:
    ledger = PassLedger(math.inf)
    ledger.admit("a")
    for _ in range(1000):
        ledger.start_pass("a")
    ledger.finish("a")
    assert ledger.passes_started == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.9}, "budget: 0.9 is not ≥ 1"),
        ({"budget": math.nan}, "budget: nan"),
        ({"burst": -1}, "burst: -1"),
        ({"tenant_cap": -1}, "tenant_cap: -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PassLedger(**arguments)  # type: ignore[arg-type]


def test_misuse_is_named() -> None:
    ledger = PassLedger()
    with pytest.raises(ValueError, match="not admitted"):
        ledger.start_pass("ghost")
    ledger.admit("a")
    with pytest.raises(ValueError, match="already admitted"):
        ledger.admit("a")
    with pytest.raises(ValueError, match="no pass reserved"):
        ledger.start("a")
    ledger.reserve({"a": 1.0})
    with pytest.raises(ValueError, match="reserved already"):
        ledger.reserve({"a": 1.0})


def test_price_is_the_quantile_at_which_grants_equal_the_inflow() -> None:
    price = PassPrice()
    for tokens in range(1, 8):
        price.bid(float(tokens), 0)
    assert price.price(0.0) == 0.0  # not before eight bids
    # Half a credit flows in per bid, so the better half of the bids 1 … 16 can be served.
    price = PassPrice()
    for index, tokens in enumerate(range(1, 17)):
        price.bid(float(tokens), 500 * index)
    assert price.price(0.0) == 9.0
    assert price.price(0.75) == 4.5  # cheaper as the pool fills
    assert price.price(1.0) == 0.0  # a full pool burns what flows in


def test_an_own_pass_needs_no_bid() -> None:
    """Once reserved it is neither given twice nor taken from the pool."""
    ledger = PassLedger(1.0)
    ledger.admit("a")
    assert ledger.reserve_own("a")
    with pytest.raises(ValueError, match="reserved already"):
        ledger.reserve_own("a")
    ledger.start("a")
    assert not ledger.reserve_own("a")
    assert ledger.passes("a") == (1, 0)
    with pytest.raises(ValueError, match="not admitted"):
        ledger.reserve_own("b")
