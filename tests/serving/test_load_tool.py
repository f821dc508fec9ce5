"""The load tools: what ours sends; GuideLLM, where it is installed, streams from a running server."""

from __future__ import annotations

import argparse
import os
import shutil

import pytest
from benchmarks.guidellm_load import drive
from benchmarks.http_client import server
from benchmarks.serve_load import rates_of, steps

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


def test_rates_are_sent_as_they_are_and_levels_as_multiples_of_the_capacity() -> None:
    assert steps([0.5, 2.0], [5.0], 20.0) == [("0.5×", 10.0), ("2×", 40.0), ("5/s", 5.0)]
    assert rates_of("5,7.5") == [5.0, 7.5]


@pytest.mark.parametrize("text", ["", "5,x", "0,5", "-1", "inf"])
def test_what_is_no_list_of_rates(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of rates > 0"):
        rates_of(text)
