"""specpilot against other systems on the same pair, prompts and machine, request by request in turn.

    python benchmarks/peers/compare.py [--openvino FOLDER] [--requests 12] [--json FILE]
    python benchmarks/peers/compare.py --openvino FOLDER --after FILE --requests 80 --markdown FILE

Peers: transformers' assisted generation as it comes and with each of its schedules, and OpenVINO GenAI (if
``--openvino`` names the converted pair; see README.md) with static lengths and confidence thresholds. Static
lengths run for specpilot's engines too, so that what an engine gives and what a policy gives can be told
apart. With ``--after`` only the best of each group of static lengths in that run and its neighbours are run.

Peers have no pass budget, no deadline and no ledger: all run as they are, greedily, up to the same number of
tokens; specpilot runs without a budget (B = inf) and, below it, as it is meant to be run (B = 2: shorter
answers). Every request goes through every system before the next one, beginning with another one each time.
One thread, float32, nothing kept between requests. A system's first answer (warm-up) is dropped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and ONNX Runtime are loaded

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.paired import Account, ratio
from benchmarks.peers.systems import (
    Entry,
    openvino_entries,
    shortlisted,
    specpilot_entries,
    transformers_entries,
)

from specpilot.demo.pair_engine import load_engine
from specpilot.demo.workload import bundled_prompts, make_arrivals
from specpilot.models.base import common_prefix
from specpilot.simulation.record import Recorder, Recording
from specpilot.simulation.results import quantile, quantile_interval
from specpilot.trace.agreement import NEAR_TIE_MARGIN

FAMILIES = ("specpilot", "transformers", "openvino")


@dataclass(slots=True)
class Log:
    """What one system did, request by request."""

    family: str
    contest: str
    tokens: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    different: int = 0
    near_ties: int = 0

    @property
    def account(self) -> Account:
        """For the ratios."""
        return Account([float(count) for count in self.tokens], self.seconds)

    def judge(self, output: Sequence[int], reference: Recording) -> None:
        """Compare an output with plain greedy decoding, cut at its own length."""
        same = common_prefix(output, reference.token_ids)
        if same == len(output):
            return
        margins = reference.trace.margin_target or ()
        near = same < len(margins) and margins[same] < NEAR_TIE_MARGIN
        self.near_ties += near
        self.different += not near


def references(count: int, seed: int, max_tokens: int) -> list[tuple[list[int], Recording]]:
    """Prompts of the demonstration's mixture (each cold), with the target's own greedy output."""
    engine = load_engine("onnx")
    recorder = Recorder(engine.target, engine.draft)
    known: dict[str, tuple[list[int], Recording]] = {}
    requests = []
    for arrival in make_arrivals(bundled_prompts(), count, seed):
        prompt = arrival.prompt
        if prompt.key not in known:
            ids = list(engine.encode(prompt.text))
            known[prompt.key] = ids, recorder.record(prompt.key, ids, max_tokens, label=prompt.label)
        requests.append(known[prompt.key])
    return requests


def measure(
    entries: Sequence[Entry], requests: Sequence[tuple[list[int], Recording]], max_tokens: int
) -> dict[str, Log]:
    """Every system on every request in turn."""
    logs = {entry.name: Log(entry.family, entry.contest) for entry in entries}
    for entry in entries:
        entry.run(requests[0][0], max_tokens)
    for number, (prompt, reference) in enumerate(requests):
        start = number % len(entries)
        for entry in [*entries[start:], *entries[:start]]:
            began = time.perf_counter()
            answer = entry.run(prompt, max_tokens)
            log = logs[entry.name]
            log.seconds.append(time.perf_counter() - began)
            log.tokens.append(len(answer.tokens))
            log.passes.append(answer.passes)
            log.judge(answer.tokens, reference)
    return logs


def table(logs: Mapping[str, Log]) -> str:
    """Markdown: by tokens per second, specpilot's two engines as yardsticks."""
    yardsticks = [name for name in logs if name.endswith(", B=inf")]
    lines = [
        "| system | tok/s | "
        + " | ".join(f"{name} ÷ it (95 %)" for name in yardsticks)
        + " | passes/request | tokens/pass | tokens/request | p50 ms | p95 ms (95 %) "
        "| unlike greedy (at near-ties) |",
        "| --- " * (8 + len(yardsticks)) + "|",
    ]
    for name in sorted(logs, key=lambda name: -logs[name].account.rate):
        log = logs[name]
        ms = sorted(1000.0 * second for second in log.seconds)
        low, high = quantile_interval(ms, 0.95) or (0.0, 0.0)
        gains = [
            "" if name == yardstick else str(ratio(logs[yardstick].account, log.account))
            for yardstick in yardsticks
        ]
        shown = f"**{name}**" if name.startswith("specpilot") and ", B=" in name else name
        count = len(log.tokens)
        lines.append(
            f"| {shown} | {log.account.rate:.1f} | {' | '.join(gains)} | {sum(log.passes) / count:.2f} "
            f"| {sum(log.tokens) / sum(log.passes):.2f} | {sum(log.tokens) / count:.1f} "
            f"| {quantile(ms, 0.5):.0f} | {quantile(ms, 0.95):.0f} ({low:.0f}–{high:.0f}) "
            f"| {log.different} ({log.near_ties}) |"
        )
    return "\n".join(lines)


def load(options: argparse.Namespace) -> list[Entry]:
    """The systems asked for."""
    entries: list[Entry] = []
    if "specpilot" not in options.without:
        entries += specpilot_entries("onnx") + specpilot_entries("transformers")
    if "transformers" not in options.without:
        bundled = Path(str(resources.files("specpilot").joinpath("bundled")))
        entries += transformers_entries(bundled / "target", bundled / "draft")
    if options.openvino is not None and "openvino" not in options.without:
        entries += openvino_entries(options.openvino)
    if options.after is not None:
        record = json.loads(options.after.read_text(encoding="utf-8"))
        rates = {name: row["tokens_per_s"] for name, row in record["systems"].items()}
        entries = shortlisted(entries, rates)
    return entries


def main() -> int:
    """Run it; exit status 1 if one of specpilot's outputs is not the target's own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--openvino", type=Path, help="folder with target/ and draft/ converted")
    parser.add_argument("--without", choices=FAMILIES, action="append", default=[], help="leave a family out")
    parser.add_argument("--after", type=Path, help="a --json file: run the best of its static lengths only")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--seed", type=int, default=61)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.requests < 1 or options.max_tokens < 1:
        parser.error("--requests and --max-tokens must be ≥ 1")
    try:
        entries = load(options)
    except (ModuleNotFoundError, ValueError) as error:
        print(f"{error}; install benchmarks/peers/requirements.txt, or use --without", file=sys.stderr)
        return 2
    if not entries:
        parser.error("--without: every family is left out; keep one")
    if options.openvino is None and "openvino" not in options.without:
        print("OpenVINO GenAI is left out: --openvino names no converted pair", file=sys.stderr)
    requests = references(options.requests, options.seed, options.max_tokens)
    logs = measure(entries, requests, options.max_tokens)
    text = (
        f"{options.requests} requests of the demonstration's mixture, each cold, at most "
        f"{options.max_tokens} tokens, seed {options.seed}; one client, one thread, float32.\n\n{table(logs)}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.json:
        record = {
            "requests": options.requests,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "systems": {
                name: {
                    "family": log.family,
                    "tokens_per_s": log.account.rate,
                    "passes_per_request": sum(log.passes) / len(log.passes),
                    "tokens": log.tokens,
                    "passes": log.passes,
                    "seconds": log.seconds,
                    "different": log.different,
                    "near_ties": log.near_ties,
                }
                for name, log in logs.items()
            },
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(log.different for log in logs.values() if log.family.startswith("specpilot")))


if __name__ == "__main__":
    sys.exit(main())
