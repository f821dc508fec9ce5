"""What a trace costs: writing it while serving, and diagnosing a large one.

    python benchmarks/bench_trace.py --cycles 1000000

Writing is timed per record on the records of a run (cycles with their confidences and verdicts) and compared
with the cycle that it describes. For reading, the run is written again and again under other names until the
file holds as many cycles as asked for; `specpilot diagnose` then reads it in a process of its own, whose peak
memory is what the operating system says.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faulty_engine import Setup, run

from specpilot.trace import AdmitRecord, CycleRecord, EndRecord, StopRecord, TraceHeader, TraceRecord
from specpilot.trace.files import TraceWriter

LIMIT_S, LIMIT_MB = 30.0, 1000.0
WRITE_SHARE = 0.01
"""Writing a record may take this share of the cycle it is about."""


def write_times(
    header: TraceHeader, records: Sequence[TraceRecord], folder: Path, suffix: str, rounds: int
) -> list[float]:
    """Microseconds per record, one figure a round."""
    times = []
    for _ in range(rounds):
        with TraceWriter(folder / f"t.jsonl{suffix}", header) as writer:
            began = time.perf_counter()
            for record in records:
                writer.write(record)
            times.append((time.perf_counter() - began) / len(records) * 1e6)
    return times


def large(path: Path, header: TraceHeader, records: Sequence[TraceRecord], cycles: int) -> int:
    """Write the run under new names until the trace has ``cycles`` cycles; returns how many it has."""
    each = sum(isinstance(record, CycleRecord) for record in records)
    last = max(record.cycle for record in records if isinstance(record, CycleRecord))
    copies = -(-cycles // each)
    with TraceWriter(path, header) as writer:
        for copy in range(copies):
            for record in records:
                if isinstance(record, CycleRecord):
                    number = record.cycle + copy * (last + 1)
                    writer.write(replace(record, request=f"{copy}:{record.request}", cycle=number))
                elif isinstance(record, AdmitRecord | EndRecord | StopRecord):
                    writer.write(replace(record, request=f"{copy}:{record.request}"))
    return copies * each


def main() -> int:
    """Measure and print; exit status 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    header, records = run(Setup(seed=3, requests=400, ids=False))
    spent = [(r.end_s - r.start_s) * 1000.0 for r in records if isinstance(r, CycleRecord)]
    cycle_ms = median(spent)
    result: dict[str, float] = {"cycle_ms": cycle_ms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in ("", ".gz", ".zst"):
            times = write_times(header, records, folder, suffix, options.rounds)
            result[f"write_us{suffix}"] = median(times)
            share = median(times) / 1000.0 / cycle_ms
            print(
                f"writing {suffix or 'plain':>5}: {median(times):6.1f} µs a record "
                f"({min(times):.1f} to {max(times):.1f}), {share:.2%} of a cycle of {cycle_ms:.1f} ms"
            )
        path = folder / "large.jsonl"
        cycles = large(path, header, records, options.cycles)
        size_mb = path.stat().st_size / 1e6
        print(f"{cycles} cycles, {size_mb:.0f} MB", flush=True)
        began = time.perf_counter()
        call = [
            sys.executable,
            "-m",
            "specpilot.cli.main",
            "diagnose",
            str(path),
            "--json",
            str(folder / "o"),
        ]
        done = subprocess.run(call, capture_output=True, text=True, check=False, env=os.environ)
        seconds = time.perf_counter() - began
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak_mb, cpu_s = usage.ru_maxrss / 1024.0, usage.ru_utime + usage.ru_stime
        if done.returncode not in (0, 1):
            print(done.stderr, file=sys.stderr)
            return 1
        found = json.loads((folder / "o").read_text())
    print(
        f"diagnosed in {seconds:.1f} s ({cpu_s:.1f} s of processor time) with at most {peak_mb:.0f} MB; "
        f"primary: {found['primary']}"
    )
    result |= {
        "cycles": cycles,
        "size_mb": size_mb,
        "diagnose_s": seconds,
        "diagnose_cpu_s": cpu_s,
        "diagnose_mb": peak_mb,
    }
    if options.json:
        options.json.write_text(json.dumps(result))
    scale = max(1.0, cycles / 1e6)
    good = seconds <= LIMIT_S * scale and peak_mb <= LIMIT_MB * scale
    return 0 if good and result["write_us"] / 1000.0 <= WRITE_SHARE * cycle_ms else 1


if __name__ == "__main__":
    raise SystemExit(main())
