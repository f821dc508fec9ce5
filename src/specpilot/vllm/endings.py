"""How requests end, in vLLM's words and in ours."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.request import RequestStatus

from specpilot.control import StopCause

PREFIX = "specpilot:"
"""What the ``stop_reason`` of a request that specpilot ended begins with; a stop cause follows."""


def cause_of(request: Any) -> StopCause:
    """Why vLLM has ended a request.

    Stop strings are found by vLLM's front end, which then aborts the request: one that has some and is
    aborted is taken to have stopped.
    """
    status = request.status
    if status == RequestStatus.FINISHED_STOPPED:
        return StopCause.EOS if request.stop_reason is None else StopCause.STOP
    if status == RequestStatus.FINISHED_LENGTH_CAPPED:
        return StopCause.MAX_TOKENS
    if status == RequestStatus.FINISHED_REPETITION:
        return StopCause.STOP
    if status == RequestStatus.FINISHED_ABORTED:
        return StopCause.STOP if request.sampling_params.stop else StopCause.CANCELLED
    return StopCause.ERROR


def last_output(request: Any, stop_reason: str) -> EngineCoreOutput:
    """A request's last output without tokens."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.LENGTH,
        stop_reason=stop_reason,
        events=request.take_events(),
        trace_headers=request.trace_headers,
        spec_decode_metrics=request.spec_decode_metrics,
    )
