"""Makes the small traces of docs/reading-traces.md but the bundled pair's (a demo run on a real machine).

    python examples/make_traces.py examples/traces

The engine is the made-up one of benchmarks/faulty_engine.py, so the same version of specpilot writes the
same bytes everywhere.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faulty_engine import Setup, run

from specpilot.trace import write_trace

TUESDAY = Setup(
    seed=11,
    requests=90,
    policy="static-4",
    draft_noise=0.6,
    decay=1.2,
    prompts=(16, 120),
    load=0.35,
    max_tokens=16,
    pass_budget=16.0,
    ids=False,
)
"""A draft that reads less far than its target, on prompts too short to show it."""
STEADY = replace(TUESDAY, seed=12, decay=0.0)
TRACES = {
    "tuesday": TUESDAY,
    "thursday": replace(TUESDAY, prompts=(60, 1600)),
    "slow-draft": replace(STEADY, draft_ms=11.0, verify_token_ms=0.1),
    "release-1": STEADY,
    "release-2": replace(STEADY, fault="unverified_emission", strength=0.4),
}


def main() -> None:
    """Write the traces."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if not folder.is_dir():
        parser.error(f"folder: {folder} does not exist; create it first")
    for name, setup in TRACES.items():
        header, records = run(setup)
        write_trace(folder / f"{name}.jsonl.gz", replace(header, source="example"), records)


if __name__ == "__main__":
    main()
