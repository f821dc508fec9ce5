"""``specpilot serve``: the HTTP server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from specpilot.cli.options import (
    DraftOption,
    LookupDepthOption,
    MaxNodesOption,
    TargetOption,
    depth_within,
    real,
    whole,
)
from specpilot.control import ControllerConfig
from specpilot.control.config import TREE_LOOKUP, TREE_NODES, Mode

DEFAULTS = ControllerConfig()


def run(
    context: typer.Context,
    target: TargetOption = None,
    draft: DraftOption = None,
    engine: Annotated[str, typer.Option(help="onnx or transformers.")] = "onnx",
    slo_p95_ms: Annotated[float, real("> 0", "250", help="End-to-end latency SLO.")] = DEFAULTS.slo_p95_ms,
    pass_budget: Annotated[float, real("≥ 1", "2", help="Target passes per request.")] = DEFAULTS.pass_budget,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, whole("in 0…65535", "8000", help="Port to listen on; 0 takes a free one.")] = 8000,
    mode: Annotated[
        str,
        typer.Option(help="Who chooses the draft length: off, shadow or on; can be switched while running."),
    ] = "on",
    model_name: Annotated[str, typer.Option(help="The name that clients give as model.")] = "specpilot",
    threads: Annotated[int, whole("≥ 1", "1", help="ONNX Runtime's threads for a pass.")] = 1,
    max_batch: Annotated[int, whole("≥ 1", "4", help="Most requests in one target pass.")] = 4,
    max_outstanding: Annotated[int, whole("≥ 1", "64", help="Most requests in flight.")] = 64,
    max_prompt_tokens: Annotated[
        int | None, whole("≥ 1", "400", help="Longest prompt. Default: the context.", show_default=False)
    ] = None,
    max_tenant_outstanding: Annotated[
        int | None, whole("≥ 1", "8", help="Most requests in flight for each tenant.", show_default=False)
    ] = None,
    tenant_pool_cap: Annotated[
        int | None, whole("≥ 0", "100", help="Most pool passes a tenant may draw.", show_default=False)
    ] = None,
    continuation_tokens: Annotated[
        int, whole("≥ 0", "1000000", help="Most tokens in the continuation cache; 0: off.")
    ] = 1_000_000,
    cache_mb: Annotated[int, whole("≥ 0", "256", help="Most MiB of KV caches kept per model.")] = 256,
    max_nodes: MaxNodesOption = TREE_NODES,
    lookup_depth: LookupDepthOption = TREE_LOOKUP,
    give_way: Annotated[
        bool,
        typer.Option(
            "--give-way",
            help="Under pressure end a suggestion that can be shown where its next pass is worth less than "
            "the time of those who wait: a request is then sure of one pass only.",
        ),
    ] = False,
    draft_timeout_ms: Annotated[float, real("> 0", "100", help="After this a draft counts as hung.")] = 100.0,
    snapshot: Annotated[
        Path | None, typer.Option(help="File for the learned state between runs.", show_default=False)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="File for a record per cycle.", show_default=False)
    ] = None,
    trace_ids: Annotated[
        bool, typer.Option("--trace-ids", help="Also write token ids to the trace: they are users' text.")
    ] = False,
    measure: Annotated[bool, typer.Option(help="Time the engine at the start.")] = True,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
) -> None:
    """Serve OpenAI's API within the promises.

    Bearer tokens in the environment: SPECPILOT_API_KEYS=name:token,… (each name is a tenant) for clients,
    SPECPILOT_ADMIN_KEY=token for /admin.
    """
    from specpilot.cli.output import check_writable
    from specpilot.pair import load_pair
    from specpilot.serving.app import Server
    from specpilot.serving.chat import find_chat_format
    from specpilot.serving.config import Keys, ServerConfig
    from specpilot.serving.http import serve

    check_writable(snapshot, trace)
    if mode not in tuple(Mode):
        raise ValueError(f"mode: {mode!r} is not off, shadow or on; use one of them")
    if cache_mb < 0:
        raise ValueError(f"cache_mb: {cache_mb} is not ≥ 0; use 0 to keep nothing")
    promises = ControllerConfig(
        pass_budget=pass_budget,
        slo_p95_ms=slo_p95_ms,
        mode=Mode(mode),
        tenant_pool_cap=tenant_pool_cap,
        max_nodes=max_nodes,
        lookup_depth=depth_within(context, lookup_depth, max_nodes),
        give_way=give_way,
    )
    config = ServerConfig(
        host=host,
        port=port,
        model_name=model_name,
        max_batch=max_batch,
        max_outstanding=max_outstanding,
        max_tenant_outstanding=max_tenant_outstanding,
        max_prompt_tokens=max_prompt_tokens,
        continuation_tokens=continuation_tokens,
        cache_bytes=cache_mb << 20,
        draft_timeout_ms=draft_timeout_ms,
        snapshot=snapshot,
        trace=trace,
        trace_ids=trace_ids,
        measure=measure,
        log_prompts=log_prompts,
    )
    keys = Keys(os.environ)
    pair = load_pair(target, draft, engine, threads=threads)
    server = Server(pair, config, promises=promises, keys=keys, chat=find_chat_format(target))
    if not serve(server):
        raise typer.Exit(1)
