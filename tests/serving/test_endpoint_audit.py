"""The audit of a running server looks at its engine, not at its continuation cache."""

from __future__ import annotations

import pytest
from live_server import Serve, scripted_pair

from specpilot.auditing.endpoint import EndpointSubject, audit_endpoint
from specpilot.decoding.acceptance import Greedy
from specpilot.decoding.types import Acceptance, Block
from specpilot.models.base import FloatArray

PROMPTS = ["abc", "bcd", "cde", "def"]


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
