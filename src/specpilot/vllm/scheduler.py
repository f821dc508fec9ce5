"""vLLM's scheduler with the controller in it (vLLM 0.32, synchronous scheduling).

Where it takes hold of a cycle: a request is admitted in ``add_request``; its passes are planned at the end of
the step before, or in ``schedule`` where it comes from the waiting queue; ``schedule`` starts the passes and
sets how many tokens the drafter is to propose after them; ``update_draft_token_ids`` trims each request's
drafts to its own τ; ``update_from_output`` observes, and ends requests that get no further pass.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vllm import __version__ as vllm_version
from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import DraftTokenIds
from vllm.v1.request import RequestStatus

from specpilot.control import Controller, PlannedStop, RequestInfo, StopCause
from specpilot.trace import TracedController, TraceWriter, header_for
from specpilot.vllm import metrics, timing
from specpilot.vllm.config import PROFILE, PluginConfig, configured
from specpilot.vllm.endings import PREFIX, cause_of, last_output
from specpilot.vllm.overrides import Overrides
from specpilot.vllm.pilot import Pass, Pilot, StepTimes
from specpilot.vllm.support import check_setup, check_version

logger = init_logger("vllm.specpilot")

_Before = tuple[Any, int, int, int]
"""A request, the tokens cached before its pass, its output tokens so far, the tokens just sampled."""


class PilotScheduler(Scheduler):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Steers τ per request and cycle, and keeps the pass budget and the deadlines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_version(vllm_version)
        check_setup(self.vllm_config)
        config = configured(self.vllm_config.additional_config, os.environ) or PluginConfig()
        controller = self.make_controller(config)
        self._trace = self._open_trace(config, controller)
        calls = None if self._trace is None else TracedController(controller, self._trace.write)
        self.pilot = Pilot(controller, calls)
        # Not None: the draft length varies, so that new requests are not padded to a uniform one.
        self.dynamic_sd_lookup = [self.num_spec_tokens] * (self.max_num_running_reqs + 1)
        spec = self.vllm_config.speculative_config
        slots = spec.max_num_new_slots_for_drafting
        chunk = self.max_num_scheduled_tokens - slots
        threshold = self.scheduler_config.long_prefill_token_threshold
        self._chunk_tokens = max(1, min(chunk, threshold) if threshold > 0 else chunk)
        self._drafter = spec.method
        self._started_s = 0.0  # the step that runs, vLLM's own scheduling included
        self._last_step_s: float | None = None  # end of the one before, if it left requests behind
        self._updating = False
        self._ended: list[Any] = []
        self._causes: dict[str, StopCause] = {}
        self._notices: list[tuple[int, EngineCoreOutput]] = []
        self._reporter = metrics.Reporter()
        self.own_s = 0.0
        """Time spent in here, vLLM's own scheduling not counted."""
        self.steps = 0
        own = controller.config
        logger.info(
            "specpilot steers: mode %s, %s target passes per request, SLO %g ms, at most %d drafted tokens",
            own.mode,
            own.pass_budget,
            own.slo_p95_ms,
            own.max_draft,
        )

    def make_controller(self, config: PluginConfig) -> Controller:
        """The controller of this engine; a subclass may bring another planner."""
        own = config.controller(self.num_spec_tokens, self.max_num_active_reqs)
        return Controller(own, profile=PROFILE)

    # --- a request comes and goes -----------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Take a request up, or end it at once with the reason why not."""
        known = request.request_id in self.requests
        if not (self.running or self.waiting):
            self._last_step_s = None  # idle until now: all others were cancelled, perhaps between two steps
        super().add_request(request)
        if known or request.resumable or request.sampling_params is None:
            return  # a streaming-input session: served, but not steered
        start = time.perf_counter()
        refusal = self._admit(request)
        if refusal:
            self._finish(request, StopCause.POLICY)
            self._notices.append((request.client_index, last_output(request, f"{PREFIX}refused: {refusal}")))
        self.own_s += time.perf_counter() - start

    def _admit(self, request: Any) -> str:
        now = time.monotonic()
        try:
            overrides = Overrides.read(request.sampling_params.extra_args)
            prompt = request.num_prompt_tokens
            info = RequestInfo(
                request_id=request.request_id,
                prompt_tokens=prompt,
                max_tokens=max(1, min(request.max_tokens, self.max_model_len - prompt)),
                arrival_s=now - max(0.0, time.time() - request.arrival_time),
                slo_ms=overrides.slo_ms,
                max_draft=overrides.max_draft,
                prefill_passes=(prompt - 1) // self._chunk_tokens,
                drafter=self._drafter,
                tenant=overrides.tenant,
                prefill_drafts=False,
                acceptance="rejection" if request.sampling_params.temperature > 0.0 else "greedy",
            )
        except ValueError as error:
            return str(error)
        return self.pilot.admit(info, now=now)

    def _finish(self, request: Any, cause: StopCause) -> None:
        """End a request here and now, as vLLM ends one that has reached max_tokens."""
        self._causes[request.request_id] = cause
        self.finish_requests(request.request_id, RequestStatus.FINISHED_LENGTH_CAPPED)
        self._causes.pop(request.request_id, None)

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        """Every request passes through here once, however it ends."""
        if self._updating:
            self._ended.append(request)
        else:
            cause = self._causes.get(request.request_id) or cause_of(request)
            self.pilot.finish(request.request_id, cause, now=time.monotonic())
        return super()._free_request(request, delay_free_blocks)

    # --- a step -----------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Schedule a step; its passes start, and the drafter is told how far to draft."""
        start = time.perf_counter()
        waiting = self._next_waiting()
        now = time.monotonic()
        for stop in self.pilot.plan(waiting, now=now):
            request = self.requests[stop.request_id]
            self._finish(request, stop.cause)
            self._notices.append((request.client_index, last_output(request, PREFIX + stop.cause.value)))
        self.own_s += time.perf_counter() - start
        output = self._schedule_whole_prompts(throttle_prefills)
        start = time.perf_counter()
        begun = time.monotonic()
        # vLLM goes from step to step while there are requests: what it does in between is this step's too.
        self._started_s = now if self._last_step_s is None else self._last_step_s
        scheduled = output.num_scheduled_tokens
        if scheduled:
            self.steps += 1
            self.pilot.unplan((name for name in waiting if name not in scheduled), now=begun)
            self.pilot.begin(scheduled, now=begun)
            decoding = [name for name in scheduled if not self.requests[name].is_prefill_chunk]
            length = self.pilot.draft_length(decoding, now=begun)
            if any(name not in self.pilot for name in decoding):
                length = self.num_spec_tokens
            output.num_spec_tokens_to_schedule = min(length, self.num_spec_tokens)
        else:
            self.pilot.unplan(waiting, now=begun)
        self.own_s += time.perf_counter() - start
        return output

    def _schedule_whole_prompts(self, throttle_prefills: bool) -> Any:
        """Let vLLM schedule, but split no prompt that fits a step.

        Chunked prefill fills a step up with a part of a prompt. Each part is a pass of that request's budget,
        so a prompt that could run whole waits for the next step instead.
        """
        config = self.scheduler_config
        chunked = config.enable_chunked_prefill
        if chunked and math.isfinite(self.pilot.controller.config.pass_budget):
            head = next(iter(self.waiting), None)
            config.enable_chunked_prefill = head is None or head.num_tokens > self._chunk_tokens
        try:
            return super().schedule(throttle_prefills)
        finally:
            config.enable_chunked_prefill = chunked

    def _next_waiting(self) -> list[str]:
        """Requests that may leave the waiting queue in this step.

        More may than are meant to: a cached prefix takes less room than it seems. That costs nothing but the
        order, except for those that were preempted and have spent their passes. They are named wherever they
        wait: one that the pool has no pass for ends before vLLM can take it up.
        """
        room = self.max_num_active_reqs - len(self.running)
        tokens = self.max_num_scheduled_tokens
        names = []
        for request in islice(self.waiting, max(0, room)):
            names.append(request.request_id)
            tokens -= request.num_tokens
            if tokens <= 0:
                break
        named = set(names)
        for request in chain(self.kv_holding_waiting, self.waiting):
            name = request.request_id
            if request.status == RequestStatus.PREEMPTED and name not in named and self.pilot.spent(name):
                names.append(name)
        return names

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Take a step's tokens up; observe them, plan the next passes, end what gets none."""
        start = time.perf_counter()
        now = time.monotonic()
        before = self._before(scheduler_output, model_runner_output)
        self.own_s += time.perf_counter() - start
        self._updating = True
        try:
            outputs = super().update_from_output(scheduler_output, model_runner_output)
        finally:
            self._updating = False
        start = time.perf_counter()
        if before:
            self._observe(before, scheduler_output, model_runner_output, now)
        for request in self._ended:
            self.pilot.finish(request.request_id, cause_of(request), now=now)
        self._ended.clear()
        going_on = [name for name in before if name in self.requests]
        stops = self.pilot.overdue(going_on)
        stops += self.pilot.plan(
            (name for name in going_on if name not in {s.request_id for s in stops}), now=now
        )
        self._stop(stops, outputs)
        for client, notice in self._notices:
            outputs.setdefault(client, EngineCoreOutputs()).outputs.append(notice)
        self._notices.clear()
        self._last_step_s = now if self.running or self.waiting else None
        if self._trace is not None and not self.running:
            self._trace.flush()
        self.own_s += time.perf_counter() - start
        self._report(outputs)
        return outputs

    def _report(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send what changed along with vLLM's own statistics of the step, if it makes any."""
        stats = next((o.scheduler_stats for o in outputs.values() if o.scheduler_stats is not None), None)
        if stats is not None:
            stats.kv_connector_stats = {
                metrics.KEY: self._reporter.report(self.pilot, self.own_s),
                metrics.MODEL: str(self.vllm_config.model_config.served_model_name),
            }

    def _before(self, scheduler_output: Any, model_runner_output: Any) -> dict[str, _Before]:
        """The steered requests of a step, before vLLM takes its tokens up."""
        sampled = model_runner_output.sampled_token_ids
        index = model_runner_output.req_id_to_index
        found = {}
        for name, width in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(name)
            if request is not None and not request.is_finished() and name in self.pilot:
                tokens = len(sampled[index[name]]) if sampled else 0
                context = request.num_computed_tokens - width  # advanced when it was scheduled
                found[name] = (request, context, request.num_output_tokens, tokens)
        return found

    def _observe(
        self,
        before: dict[str, _Before],
        scheduler_output: Any,
        model_runner_output: Any,
        now: float,
    ) -> None:
        drafts = scheduler_output.scheduled_spec_decode_tokens
        passes = []
        for name, (request, context, had, sampled) in before.items():
            width = scheduler_output.num_scheduled_tokens[name]
            proposed = len(drafts.get(name, ()))
            done = request.is_finished()
            passes.append(
                Pass(
                    request_id=name,
                    width=width,
                    context=context,
                    proposed=proposed,
                    accepted=min(proposed, max(0, sampled - 1)),
                    emitted=request.num_output_tokens - had,
                    prefill=width > proposed + 1,
                    drafting=not done and not request.is_prefill_chunk,
                    ended=cause_of(request) if done else None,
                )
            )
        wall_ms = (now - self._started_s) * 1000.0
        target_ms, draft_ms = timing.of(model_runner_output) or (wall_ms, 0.0)
        length = scheduler_output.num_spec_tokens_to_schedule
        self.pilot.observe(passes, StepTimes(wall_ms, target_ms, draft_ms), length, now=now)

    def _stop(self, stops: Iterable[PlannedStop], outputs: dict[int, EngineCoreOutputs]) -> None:
        """End requests that get no further pass; what this step emitted for them goes out as their last."""
        for stop in stops:
            request = self.requests[stop.request_id]
            self._finish(request, stop.cause)
            reason = PREFIX + stop.cause.value
            sent = outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs
            for output in sent:
                if output.request_id == stop.request_id:
                    output.finish_reason = FinishReason.LENGTH
                    output.stop_reason = reason
                    output.spec_decode_metrics = request.spec_decode_metrics
                    break
            else:
                sent.append(last_output(request, reason))

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """Trim each request's drafts to the τ that its plan says."""
        start = time.perf_counter()
        trimmed = []
        for name, tokens in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            self.pilot.drafted(name, len(tokens))
            limit = self.pilot.draft_limit(name)
            trimmed.append(tokens if limit is None else tokens[:limit])
        self.own_s += time.perf_counter() - start
        super().update_draft_token_ids(DraftTokenIds(draft_token_ids.req_ids, trimmed))

    # --- the trace --------------------------------------------------------------------------------

    def _open_trace(self, config: PluginConfig, controller: Controller) -> TraceWriter | None:
        if config.trace is None:
            return None
        rank = str(self.parallel_config.data_parallel_index)
        model = self.vllm_config.model_config.model
        draft = self.vllm_config.speculative_config.model
        header = header_for(
            controller, "vllm", engine=f"vllm {vllm_version}", target=str(model), draft=str(draft)
        )
        header = dataclasses.replace(header, lacks=("confidences",))
        return TraceWriter(Path(config.trace.replace("{rank}", rank)), header)

    def shutdown(self) -> None:
        """Close the trace: only then it is a whole one."""
        if self._trace is not None:
            self._trace.close()
            self._trace = None
        super().shutdown()
