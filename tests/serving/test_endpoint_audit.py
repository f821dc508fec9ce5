"""The audit of a running server looks at its engine, not at its continuation cache."""

from __future__ import annotations

import pytest
from live_server import Serve, scripted_pair

from specpilot.auditing import verdict
from specpilot.auditing.endpoint import EndpointSubject, audit_endpoint
from specpilot.control import ControllerConfig
from specpilot.decoding.acceptance import Coupled, Greedy, Rejection
from specpilot.decoding.types import Acceptance, Block
from specpilot.demo.workload import bundled_prompts
from specpilot.models.base import FloatArray
from specpilot.pair import load_pair

PROMPTS = ["abc", "bcd", "cde", "def"]
PROSE = bundled_prompts()[0].text
SAMPLES = 300
"""The command's default."""


def test_a_wrong_engine_behind_a_warm_cache_is_caught(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever speculates gets a wrong token; before, both sides were served the same cached text."""
    run = serve(scripted_pair())
    for prompt in PROMPTS:
        run.post({"prompt": prompt, "max_tokens": 24, "temperature": 0.0, "speculation": {"mode": "off"}})
    right = Greedy.accept

    def wrong(
        self: Greedy, block: Block, q: FloatArray | None, logits: FloatArray, position: int
    ) -> Acceptance:
        found = right(self, block, q, logits, position)
        return Acceptance(found.path, (found.next_token + 1) % 10) if len(block) else found

    monkeypatch.setattr(Greedy, "accept", wrong)
    subject = EndpointSubject(run.url)
    checks = audit_endpoint(subject, subject, PROMPTS, samples=1)
    assert next(check for check in checks if check.name == "greedy_equality").status == "fail"


def test_top_k_is_not_dropped_in_silence(serve: Serve) -> None:
    run = serve(scripted_pair())
    known = EndpointSubject(run.url)
    greedy = known.complete("abc", 8).text
    assert known.complete("abc", 8, temperature=1.0, top_k=1, seed=3).text == greedy
    with pytest.raises(ValueError, match="top_k"):
        EndpointSubject(run.url, extension=False).complete("abc", 8, top_k=3)


def test_a_healthy_server_that_cuts_its_answers_passes(serve: Serve) -> None:
    """Two passes, as by default: without speculation two tokens, with it mostly all that were asked for.

    Odds of a false failure: 1e-4.
    """
    subject = EndpointSubject(serve(load_pair(), promises=ControllerConfig()).url)
    checks = audit_endpoint(subject, subject, [PROSE], max_tokens=6, samples=SAMPLES)
    assert {check.name: check.status for check in checks}["distribution"] == "pass", checks[-1]
    assert verdict(checks) == "lossless"


def test_a_wrong_distribution_behind_cut_answers_is_caught(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever speculates gets temperature 0.5 for 1. None of 1000 simulated audits missed it."""

    def sharpen(rule: type[Coupled] | type[Rejection]) -> None:
        right = rule.accept

        def wrong(
            self: Coupled | Rejection, block: Block, q: FloatArray | None, logits: FloatArray, position: int
        ) -> Acceptance:
            return right(self, block, q, 2.0 * logits if len(block) else logits, position)  # type: ignore[arg-type]

        monkeypatch.setattr(rule, "accept", wrong)

    for rule in (Coupled, Rejection):
        sharpen(rule)
    subject = EndpointSubject(serve(load_pair(), promises=ControllerConfig()).url)
    checks = audit_endpoint(subject, subject, [PROSE], max_tokens=6, samples=SAMPLES)
    assert {check.name: check.status for check in checks}["distribution"] == "fail", checks[-1]
