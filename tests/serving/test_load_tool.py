"""GuideLLM, where it is installed, streams completions from a running server."""

from __future__ import annotations

import os
import shutil

import pytest
from benchmarks.guidellm_load import drive
from benchmarks.http_client import server

TOOL = shutil.which(os.environ.get("SPECPILOT_GUIDELLM", "guidellm"))


@pytest.mark.slow
@pytest.mark.skipif(
    TOOL is None, reason="guidellm is not on PATH nor in SPECPILOT_GUIDELLM: see benchmarks/guidellm.txt"
)
def test_guidellm_streams_from_the_server() -> None:
    assert TOOL is not None
    with server(["--slo-p95-ms", "60000", "--pass-budget", "20"]) as port:
        metrics = drive(TOOL, port, 5.0, 10)
    assert metrics["request_totals"] == {"successful": 10, "errored": 0, "incomplete": 0, "total": 10}
    # Each answer's tokens are known from its usage, not guessed by the tool.
    tokens = metrics["output_token_count"]["successful"]
    assert tokens["min"] >= 1
    assert tokens["max"] <= 24
