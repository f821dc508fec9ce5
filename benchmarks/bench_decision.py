"""What a decision costs: the controller's plan and observe per cycle, the stop rule per token.

    python benchmarks/bench_decision.py [--cycles 5000] [--json FILE]

Made-up requests with B = 2 on the real controller; medians over all calls of one run, in microseconds. A
decision is one ``plan`` call (constraints, choice of τ, stop rule, grant); learning is one ``observe``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from specpilot.control import Controller, ControllerConfig, CycleOutcome, RequestInfo


def measure(cycles: int, budget: float, seed: int = 1) -> dict[str, float]:
    """Median microseconds of each kind of call over ``cycles`` cycles."""
    rng = random.Random(seed)
    controller = Controller(ControllerConfig(pass_budget=budget))
    plans: list[float] = []
    observes: list[float] = []
    tokens: list[float] = []
    clock = time.perf_counter
    now, serial = 0.0, 0
    while len(plans) < cycles:
        serial += 1
        name = str(serial)
        controller.admit(RequestInfo(name, rng.choice((30, 150, 400, 700)), 24, slo_ms=1e6), now=now)
        while True:
            began = clock()
            answer = controller.plan([name], now=now)
            plans.append(clock() - began)
            if answer.stops:
                controller.finish(name, answer.stops[0].cause, now=now)
                plans.pop()  # the end of a request is no decision on τ
                break
            plan = answer.cycles[0]
            controller.begin([plan.cycle_id], now=now)
            confidences: list[float] = []
            proposed = 0
            drawn = [rng.betavariate(2.0, 1.2) for _ in range(plan.max_draft)]
            stop = plan.stop
            stop.start()
            began = clock()
            for position, confidence in enumerate(drawn, 1):
                if not stop.draft_on(position, 0.0):
                    break
                confidences.append(confidence)
                if not stop.keep(position, confidence):
                    break
                proposed += 1
            if confidences:
                tokens.append((clock() - began) / len(confidences))
            accepted = 0
            while accepted < proposed and rng.random() < confidences[accepted]:
                accepted += 1
            now += 0.01 + 0.0003 * len(confidences)
            outcome = CycleOutcome(
                cycle_id=plan.cycle_id,
                drafted=len(confidences),
                proposed=proposed,
                accepted=accepted,
                emitted=accepted + 1,
                confidences=tuple(confidences),
                draft_ms=0.3 * len(confidences),
                verify_ms=7.0,
                verified_tokens=proposed + 1,
            )
            began = clock()
            controller.observe([outcome], now=now)
            observes.append(clock() - began)
    return {
        "plan_us": statistics.median(plans) * 1e6,
        "observe_us": statistics.median(observes) * 1e6,
        "stop_rule_us_per_token": statistics.median(tokens) * 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--cycles", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = {f"B={budget:g}": measure(options.cycles, budget) for budget in (1.0, 2.0, 3.0)}
    for name, row in result.items():
        print(f"{name}: " + "  ".join(f"{key} {value:.1f}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
