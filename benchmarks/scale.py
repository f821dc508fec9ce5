"""A thousand replicas and a million requests on two cores, and one controller for as many: bounded memory.

    python benchmarks/scale.py [--requests 1000000] [--replicas 1000] [--processes 2] [--single 1000000]

The fleet: each replica a controller of its own, steady scenario at 0.5 of capacity, the same simulator as
`specpilot simulate`. Then one replica that serves ``--single`` requests in a process of its own beside one
that serves a twentieth of that: memory that grew with the requests would show in the difference. Resident
memory is the operating system's peak for the process, the interpreter and its libraries included.

Exit status 1 if the budget was broken, fewer than 50,000 requests a minute and process were simulated, or
memory grew by more than 16 MiB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

from specpilot.simulation.account import Account
from specpilot.simulation.fleet import BATCH, Simulation, run_replicas

FLOOR = 50_000
GROWTH_MIB = 16.0


def peak_mib() -> float:
    """Peak resident memory of this process (Linux counts it in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0)


def measured(simulation: Simulation, replicas: range) -> tuple[Account, float]:
    """The replicas' account and this process's peak memory so far."""
    return run_replicas(simulation, "specpilot", replicas), peak_mib()


def fleet(simulation: Simulation, processes: int) -> tuple[Account, float, float]:
    """(account, seconds, peak MiB of the largest worker)."""
    numbers = range(simulation.replicas)
    batches = [numbers[start : start + BATCH] for start in range(0, simulation.replicas, BATCH)]
    total, peak, start = Account(simulation.build().config.slo_p95_ms), 0.0, time.perf_counter()
    # Fresh processes: a forked one would start with this one's memory.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for account, mib in pool.map(partial(measured, simulation), batches):
            total.merge(account)
            peak = max(peak, mib)
    return total, time.perf_counter() - start, peak


def main() -> int:
    """Simulate, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--single", type=int, default=1_000_000, help="requests of one controller; 0: skip")
    options = parser.parse_args()
    one = Simulation()
    rate = 0.5 * one.capacity()
    spec = replace(one, requests=options.requests, replicas=options.replicas, rate=rate * options.replicas)
    account, seconds, peak = fleet(spec, options.processes)
    result = account.result("specpilot")
    pace = 60.0 * result.arrivals / seconds
    kept = result.budget_violations == 0 and pace / options.processes >= FLOOR
    print(
        f"{options.replicas} replicas, {result.arrivals:,} requests, {options.processes} processes: "
        f"{seconds:.0f} s, {pace:,.0f} requests a minute; "
        f"peak memory {peak:.0f} MiB a worker, {peak_mib():.0f} MiB here; "
        f"{result.target_passes_per_request:.3f} passes a request, {result.budget_violations} violations, "
        f"{result.slo_attainment:.1%} in SLO"
    )
    if options.single:
        peaks = []
        for count in (options.single // 20, options.single):
            alone = replace(one, requests=max(1, count), rate=rate)
            account, seconds, peak = fleet(alone, 1)
            peaks.append(peak)
            kept = kept and account.violations == 0
            print(
                f"one controller, {account.arrivals:,} requests: {seconds:.0f} s, peak memory {peak:.1f} MiB"
            )
        growth = peaks[1] - peaks[0]
        kept = kept and growth <= GROWTH_MIB
        print(f"memory grew by {growth:.1f} MiB over {options.single - options.single // 20:,} requests")
    print("promises kept" if kept else "promises BROKEN")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
