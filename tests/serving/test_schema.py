"""Requests made up by schemathesis from the server's own OpenAPI: never a 5xx, always a documented answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from live_server import Serve, scripted_pair

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import (  # noqa: E402
    response_schema_conformance,
    status_code_conformance,
)


def test_no_made_up_request_breaks_the_server(serve: Serve) -> None:
    """Sixty requests for each operation, valid and not, of a kind."""
    run = serve(scripted_pair())
    schema = schemathesis.openapi.from_url(f"{run.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/v1/completions", "/v1/chat/completions", "/admin/mode"} <= {one.path for one in operations}
    statuses: set[int] = set()

    def check(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    for operation in operations:
        for mode in schemathesis.GenerationMode:
            with contextlib.suppress(Unsatisfiable):  # a GET without parameters has no invalid form
                attempts(operation.as_strategy(generation_mode=mode))(check)
    assert {200, 400} <= statuses
    # It serves on after all that was sent.
    assert run.post({"prompt": "ab"}).status == 200


def attempts(strategy: Any) -> Callable[[Callable[[Any], None]], None]:
    """Run a check on examples of a strategy, the same ones every time."""

    def run(check: Callable[[Any], None]) -> None:
        made = settings(
            max_examples=60,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )(given(case=strategy)(lambda case: check(case)))
        made()

    return run
