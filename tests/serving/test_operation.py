"""Operating a server: metrics, modes, snapshots, traces, tenants."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from live_server import UNHURRIED, Gated, Running, Serve, scripted, scripted_pair
from prometheus_client.parser import text_string_to_metric_families

from specpilot.control import ControllerConfig
from specpilot.pair import load_pair
from specpilot.serving.answers import Ask
from specpilot.serving.config import Keys, ServerConfig
from specpilot.trace import CycleRecord, read_trace
from specpilot.trace.replay import replay_decisions
from specpilot.trace.validate import validate


def scrape(run: Running) -> dict[str, float]:
    """Samples by name, labels written behind: ``name{label=value}``."""
    reply = run.fetch("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def ends(seen: dict[str, float]) -> float:
    return sum(
        seen[f"specpilot_requests_total{{outcome={name}}}"] for name in ("finished", "cancelled", "failed")
    )


def test_a_trees_side_nodes_are_counted(serve: Serve) -> None:
    """An emitted token is an accepted one or the one that its pass adds; details and sums say the same."""
    run = serve(load_pair(drafter="both"), promises=replace(UNHURRIED, max_nodes=32, lookup_depth=8))
    blocks = []
    for text in (
        "You can apply for a permit if",
        "The agency will",
        "Our office is open on",
        "Please fill in",
    ):
        body = {"prompt": text, "continuation": False, "speculation": {"explain": True}}
        blocks += [run.post(body).json["specpilot"] for _ in range(4)]
    for block in blocks:
        assert block["accepted_draft_tokens"] == block["verified_tokens"] - block["target_passes"]
        details = block["cycle_details"]
        assert block["accepted_draft_tokens"] == sum(cycle["accepted"] for cycle in details)
        assert block["drafted_tokens"] == sum(cycle["proposed"] for cycle in details)
    seen = scrape(run)
    by_position = sum(
        seen[f"specpilot_accepted_tokens_at_position_total{{position={n}}}"] for n in range(1, 33)
    )
    accepted = sum(block["accepted_draft_tokens"] for block in blocks)
    assert seen["specpilot_accepted_tokens_total"] == accepted > by_position
    assert seen["specpilot_draft_tokens_total"] == sum(block["drafted_tokens"] for block in blocks)


def test_metrics_add_up(serve: Serve) -> None:
    target = Gated(scripted())
    run = serve(scripted_pair(target))
    blocks = []
    for prompt in ("ab", "cd", "ef", "gh"):
        reply = run.post({"prompt": prompt, "continuation": False})
        blocks.append(reply.json["specpilot"])
    target.fail_next = 1
    assert run.post({"prompt": "ab", "continuation": False}).status == 500
    seen = scrape(run)
    assert seen["specpilot_arrivals_total"] == seen["specpilot_admitted_requests_total"] == 5
    assert seen["specpilot_requests_total{outcome=finished}"] == 4
    assert seen["specpilot_requests_total{outcome=failed}"] == 1
    passes = sum(block["target_passes"] for block in blocks)
    assert seen["specpilot_target_passes_total"] == passes + 1
    assert seen["specpilot_physical_passes_total"] == passes + 1
    assert seen["specpilot_draft_length_count"] == passes + 1
    assert seen["specpilot_accepted_tokens_total"] == sum(block["accepted_draft_tokens"] for block in blocks)
    assert seen["specpilot_emitted_tokens_total"] == sum(block["verified_tokens"] for block in blocks)
    positions = [
        (
            seen[f"specpilot_draft_tokens_at_position_total{{position={n}}}"],
            seen[f"specpilot_accepted_tokens_at_position_total{{position={n}}}"],
        )
        for n in range(1, 33)
    ]
    assert sum(drafted for drafted, _ in positions) == seen["specpilot_draft_tokens_total"]
    assert sum(accepted for _, accepted in positions) == seen["specpilot_accepted_tokens_total"]
    # A position is reached only through the one before it.
    for before, after in pairwise(positions):
        assert before[0] >= after[0]
        assert before[1] >= after[1]
    assert seen["specpilot_e2e_seconds_count"] == 5
    assert seen["specpilot_slo_requests_total{met=true}"] == 4  # the failed one has no text
    assert seen["specpilot_pass_budget"] == UNHURRIED.pass_budget
    assert seen["specpilot_mode{mode=on}"] == 1
    assert seen["specpilot_queue_depth"] == 0
    assert seen["specpilot_http_responses_total{code=200}"] == 4
    assert seen["specpilot_http_responses_total{code=500}"] == 1
    assert sum(v for k, v in seen.items() if k.startswith("specpilot_cycles_total")) == passes + 1


def test_every_scrape_under_load_keeps_the_books(serve: Serve) -> None:
    run = serve(scripted_pair(), promises=ControllerConfig(pass_budget=2.0, slo_p95_ms=60_000.0))
    done = threading.Event()

    def load(prompt: str) -> None:
        for _ in range(25):
            run.post({"prompt": prompt, "continuation": False})

    threads = [threading.Thread(target=load, args=(prompt,)) for prompt in ("ab", "cd", "ef")]
    for thread in threads:
        thread.start()
    scrapes = 0
    while not done.is_set():
        if not any(thread.is_alive() for thread in threads):
            done.set()
        seen = scrape(run)
        scrapes += 1
        assert seen["specpilot_target_passes_total"] <= 2 * seen["specpilot_charged_requests"]
        assert seen["specpilot_charged_requests"] <= seen["specpilot_admitted_requests_total"]
        assert seen["specpilot_admitted_requests_total"] == ends(seen) + seen["specpilot_queue_depth"]
    assert scrapes > 1
    assert seen["specpilot_requests_total{outcome=finished}"] == 75


def test_no_text_is_in_metrics_or_log(serve: Serve, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    target = Gated(scripted())
    trace = tmp_path / "trace.jsonl"
    run = serve(scripted_pair(target), ServerConfig(port=0, measure=False, trace=trace))
    prompt = "jjihgfjjihgf"
    run.post({"prompt": prompt})
    target.fail_next = 1
    run.post({"prompt": prompt, "continuation": False})
    run.post({"prompt": prompt, "nonsense": prompt})
    seen = run.fetch("GET", "/metrics").body.decode() + caplog.text + trace.read_text()
    assert prompt not in seen


def test_prompts_are_logged_only_where_asked(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, log_prompts=True))
    run.post({"prompt": "jjihgfjjihgf"})
    assert "jjihgfjjihgf" in caplog.text


def test_modes_switch_while_running(serve: Serve) -> None:
    run = serve(
        scripted_pair(), promises=ControllerConfig(pass_budget=3.0, slo_p95_ms=60_000.0, static_draft=0)
    )

    def drafted(prompt: str) -> float:
        reply = run.post({"prompt": prompt, "continuation": False})
        count: float = reply.json["specpilot"]["drafted_tokens"]
        return count

    assert run.fetch("GET", "/admin/mode").json == {"mode": "on"}
    assert drafted("ab") > 0
    reply = run.fetch("PUT", "/admin/mode", b'{"mode": "off"}', {"Content-Type": "application/json"})
    assert (reply.status, reply.json) == (200, {"mode": "off"})
    assert drafted("cd") == 0
    assert scrape(run)["specpilot_mode{mode=off}"] == 1
    bad = run.fetch("PUT", "/admin/mode", b'{"mode": "fast"}', {"Content-Type": "application/json"})
    assert (bad.status, bad.error["param"]) == (400, "mode")
    assert run.fetch("GET", "/admin/mode").json == {"mode": "off"}


def test_who_may_switch_modes(serve: Serve) -> None:
    clients = serve(scripted_pair(), keys=Keys({"SPECPILOT_API_KEYS": "ann:a"}))
    assert clients.fetch("GET", "/admin/mode").status == 403
    assert clients.fetch("GET", "/admin/mode", headers={"Authorization": "Bearer a"}).status == 403
    guarded = serve(scripted_pair(), keys=Keys({"SPECPILOT_ADMIN_KEY": "root"}))
    assert guarded.fetch("GET", "/admin/mode").status == 403
    assert guarded.fetch("GET", "/admin/mode", headers={"Authorization": "Bearer root"}).status == 200
    assert guarded.post({"prompt": "ab"}).status == 200


def test_learned_state_survives_a_restart(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    config = ServerConfig(port=0, measure=False, snapshot=path)

    def learned(run: Running) -> Any:
        return json.loads(run.server.controller.snapshot())

    first = serve(scripted_pair(), config)
    blank = learned(first)
    for prompt in ("ab", "cd", "ef"):
        first.post({"prompt": prompt, "continuation": False})
    known = learned(first)
    assert known != blank
    first.stop()
    second = serve(scripted_pair(), config)
    assert learned(second) == known
    second.stop()
    # One that is damaged, or was learned under other constants, is kept beside the new one, with a warning.
    damaged = path.read_bytes()[:-5]
    path.write_bytes(damaged)
    third = serve(scripted_pair(), config)
    assert learned(third) == blank
    third.stop()
    assert "cannot be used" in caplog.text
    caplog.clear()
    other = serve(scripted_pair(), config, ControllerConfig(pass_budget=3.0, shrinkage=5.0))
    assert "cannot be used" in caplog.text
    assert other.post({"prompt": "ab"}).status == 200
    other.stop()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state.1.json", "state.2.json", "state.json"]
    assert (tmp_path / "state.1.json").read_bytes() == damaged


def test_a_restart_keeps_the_trace_of_the_run_before(serve: Serve, tmp_path: Path) -> None:
    """A supervisor starts the same command again after a crash, which the trace is to explain."""
    path = tmp_path / "my.trace.jsonl.gz"
    for prompt in ("ab", "cd", "ef"):
        run = serve(scripted_pair(), ServerConfig(port=0, measure=False, trace=path))
        assert run.post({"prompt": prompt}).status == 200
        run.stop()
    names = ["my.trace.1.jsonl.gz", "my.trace.2.jsonl.gz", "my.trace.jsonl.gz"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    for name in names:
        assert validate(tmp_path / name).requests == 1


def test_the_state_is_saved_while_running(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, snapshot=path, snapshot_every_s=0.01))
    run.wait_until(path.exists)


def test_the_engine_is_measured_at_the_start(serve: Serve) -> None:
    """What it costs is known before the first request: admission can be right from the start."""
    run = serve(scripted_pair(), ServerConfig(port=0))
    cost = run.server.controller.cost
    assert cost.calibrated
    assert cost.verify_ms(1) != serve(scripted_pair()).server.controller.cost.verify_ms(1)
    assert run.server.controller.ledger.passes_started == 0


def test_a_trace_of_every_cycle(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, trace=path))
    blocks = [run.post({"prompt": p, "continuation": False}).json["specpilot"] for p in ("ab", "cd")]
    run.stop()
    records = [record for record in read_trace(path) if isinstance(record, CycleRecord)]
    assert len(records) == sum(block["cycles"] for block in blocks)
    assert [record.index for record in records[: blocks[0]["cycles"]]] == list(range(blocks[0]["cycles"]))
    assert sum(record.emitted for record in records) == sum(block["verified_tokens"] for block in blocks)
    assert records[-1].ledger.passes_started == len(records)
    # What the target said of each position is in it, the tokens (a user's text) are not; and it replays.
    # (A drafter that was too slow on a busy machine leaves plain cycles; those have no verdicts.)
    assert all(record.evidence.temperature is not None for record in records)
    assert all(record.evidence.verdicts is not None for record in records if record.proposed)
    assert all(record.evidence.proposed_ids is None for record in records)
    assert replay_decisions(read_trace(path)).differences == []


def test_a_tenant_has_its_own_limit(serve: Serve) -> None:
    target = Gated(scripted())
    keys = Keys({"SPECPILOT_API_KEYS": "ann:a,ben:b"})
    run = serve(
        scripted_pair(target), ServerConfig(port=0, measure=False, max_tenant_outstanding=1), keys=keys
    )
    target.open.clear()
    statuses: list[int] = []
    first = threading.Thread(
        target=lambda: statuses.append(run.post({"prompt": "ab"}, Authorization="Bearer a").status)
    )
    first.start()
    target.wait_for_pass()
    refused = run.post({"prompt": "cd"}, Authorization="Bearer a")
    assert (refused.status, refused.error["code"]) == (429, "too_many_tenant_requests")
    second = threading.Thread(
        target=lambda: statuses.append(run.post({"prompt": "ef"}, Authorization="Bearer b").status)
    )
    second.start()
    run.wait_until(lambda: run.server.engine.outstanding == 2)
    target.open.set()
    first.join()
    second.join()
    assert statuses == [200, 200]
    assert run.post({"prompt": "cd"}, Authorization="Bearer a").status == 200
    assert scrape(run)["specpilot_turned_away_requests_total{reason=too_many_tenant_requests}"] == 1


def test_a_tenant_draws_no_more_from_the_pool_than_it_may(serve: Serve) -> None:
    """Ann leaves passes behind; Ben, who never did, may draw one of them."""
    keys = Keys({"SPECPILOT_API_KEYS": "ann:a,ben:b"})
    promises = ControllerConfig(pass_budget=2.0, slo_p95_ms=60_000.0, tenant_pool_cap=1)
    run = serve(scripted_pair(), promises=promises, keys=keys)

    def passes(token: str, prompt: str, max_tokens: int) -> int:
        body = {"prompt": prompt, "max_tokens": max_tokens, "continuation": False}
        reply = run.post({**body, "speculation": {"mode": "off"}}, Authorization=f"Bearer {token}")
        count: int = reply.json["specpilot"]["target_passes"]
        return count

    for number in range(8):
        assert passes("a", "abcdefghij"[number], 1) == 1
    assert run.server.controller.ledger.pool == 8.0
    assert sum(passes("b", prompt, 3) - 2 for prompt in "abcd") == 1


def test_sessions_of_two_tenants_share_no_cache(serve: Serve) -> None:
    keys = Keys({"SPECPILOT_API_KEYS": "ann:a,ben:b"})
    run = serve(scripted_pair(), keys=keys)
    prompt = "abcdefghij" * 4
    body = {"prompt": prompt, "session_id": "s", "continuation": False, "max_tokens": 2}
    hits = []
    for token in ("a", "b", "a"):
        assert run.post(body, Authorization=f"Bearer {token}").status == 200
        hits.append(run.server.stores[0].stats.hits)
    assert hits == [0, 0, 1]


def test_session_keys_cannot_be_forged() -> None:
    """Whatever a client writes in user and session_id, it stays within its tenant and user."""
    from specpilot.decoding.types import SamplingParams

    def key(tenant: str, user: str, session: str) -> str | None:
        return Ask((1,), 1, SamplingParams(), tenant=tenant, user=user, session_id=session).session_key

    assert key("a", 'b", "c', "d") != key("a", "b", 'c", "d')
    assert key("a", "b\0c", "d") != key("a", "b", "c\0d")


def test_a_trace_with_token_ids_only_where_asked(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    run = serve(scripted_pair(), ServerConfig(port=0, measure=False, trace=path, trace_ids=True))
    answer = run.post({"prompt": "ab", "continuation": False}).json["specpilot"]
    run.stop()
    records = [record for record in read_trace(path) if isinstance(record, CycleRecord)]
    assert [record.evidence.prompt_ids is not None for record in records] == [True] + [False] * (
        len(records) - 1
    )
    emitted = [token for record in records for token in record.evidence.emitted_ids or ()]
    assert len(emitted) == answer["verified_tokens"]
    with pytest.raises(ValueError, match="trace_ids: given without a trace"):
        ServerConfig(trace_ids=True)
