"""GuideLLM, a public load tool, drives the server: ``python benchmarks/guidellm_load.py [--tool PATH]``.

GuideLLM brings pins of its own, so it lives in its own environment: ``make load-tool`` makes it from
``benchmarks/guidellm.txt``. Starts ``specpilot serve``, lets the tool stream completions at a constant rate,
and reads its report. Exit status 1 if a request failed or none succeeded. A refusal (429) counts as failed
in the tool's books, so keep the rate below capacity.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.http_client import cores, server

from specpilot.demo.workload import bundled_prompts, make_arrivals


def drive(tool: str, port: int, rate: float, count: int) -> dict[str, Any]:
    """The tool's metrics of one run of ``count`` requests at ``rate`` a second."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder, "prompts.jsonl"), Path(folder, "report.json")
        arrivals = make_arrivals(bundled_prompts(), count, 1)
        data.write_text("".join(json.dumps({"prompt": one.prompt.text}) + "\n" for one in arrivals))
        backend = f"kind=openai_http,target=http://127.0.0.1:{port},model=specpilot"
        command = [
            *(tool, "run", "--backend", f"{backend},request_format=/v1/completions"),
            *("--profile", f"kind=constant,rate={rate:g}"),
            *("--constraint", f"kind=max_requests,count={count}"),
            *("--data", f"kind=json_file,path={data}"),
            *("--output", f"kind=json,path={report}", "--disable-console"),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300.0)
        if not report.exists():
            raise RuntimeError(f"{tool} gave no report: {ended.stdout[-500:]}{ended.stderr[-1500:]}")
        metrics: dict[str, Any] = json.loads(report.read_text())["benchmarks"][0]["metrics"]
        return metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tool", default="guidellm", help="the guidellm command")
    parser.add_argument("--rate", type=float, default=5.0, help="requests a second")
    parser.add_argument("--requests", type=int, default=60)
    options = parser.parse_args(arguments)
    tool = shutil.which(options.tool)
    if tool is None:
        print(f"--tool: {options.tool!r} is not installed; see benchmarks/guidellm.txt", file=sys.stderr)
        return 2
    with server(core=cores()[0]) as port:
        metrics = drive(tool, port, options.rate, options.requests)
    totals = metrics["request_totals"]
    print("| requests | succeeded | failed | latency p50 ms | p95 ms | first token p50 ms | tokens p50 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def value(name: str, percentile: str) -> float:
        found: float = metrics[name]["successful"]["percentiles"][percentile]
        return found

    print(
        f"| {totals['total']} | {totals['successful']} | {totals['errored']} "
        f"| {1000.0 * value('request_latency', 'p50'):.0f} | {1000.0 * value('request_latency', 'p95'):.0f} "
        f"| {value('time_to_first_token_ms', 'p50'):.0f} | {value('output_token_count', 'p50'):.0f} |"
    )
    return 0 if totals["successful"] and not totals["errored"] else 1


if __name__ == "__main__":
    sys.exit(main())
