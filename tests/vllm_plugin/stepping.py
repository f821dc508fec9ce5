"""An engine that schedules in steps and drafts one step ahead, as vLLM does; costs and acceptance are set."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from specpilot.control import RequestInfo, StopCause
from specpilot.vllm.pilot import Pass, Pilot, StepTimes

PROMPT = 40


@dataclass(slots=True)
class _Request:
    tokens: int  # still wanted
    drafts: int = 0  # made for its next pass
    prefilled: bool = False


@dataclass(slots=True)
class SteppingEngine:
    """Keeps ``batch`` requests of ``max_tokens`` tokens running; a step is what vLLM's is, call by call.

    ``target_ms`` is asked with a step's width, ``draft_ms`` with the tokens drafted for each request.
    ``proposed`` lists, step by step, the drafts that were verified, one number for each decode pass.
    """

    pilot: Pilot
    batch: int = 8
    max_tokens: int = 24
    target_ms: Callable[[int], float] = lambda width: 10.0
    draft_ms: Callable[[int], float] = lambda length: 0.2 + 0.2 * length
    seed: int = 0
    now: float = 0.0
    engine_ms: float = 0.0
    emitted: int = 0
    proposed: list[list[int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """The K of every step."""
    undrafted: int = 0
    """Plans that asked for a draft where none had been made."""
    _running: dict[str, _Request] = field(default_factory=dict)
    _number: int = 0
    _draw: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._draw.seed(self.seed)

    def run(
        self,
        steps: int,
        acceptance: Callable[[int], float],
        max_draft: Callable[[int], int | None] = lambda number: None,
    ) -> None:
        """So many steps.

        Args:
            steps: how many.
            acceptance: of request number n: P(a draft token is accepted, given those before it).
            max_draft: of request number n: its own cap on τ.
        """
        for _ in range(steps):
            self._step(acceptance, max_draft)

    def _step(self, acceptance: Callable[[int], float], max_draft: Callable[[int], int | None]) -> None:
        pilot = self.pilot
        while len(self._running) < self.batch:
            self._number += 1
            cap = max_draft(self._number)
            name = f"r{self._number}"
            info = RequestInfo(name, PROMPT, self.max_tokens, slo_ms=1e9, prefill_drafts=False, max_draft=cap)
            assert pilot.admit(info, now=self.now) == ""
            self._running[name] = _Request(self.max_tokens)
        for stop in pilot.plan(self._running, now=self.now):
            raise AssertionError(f"a new request is not stopped: {stop}")
        names = list(self._running)
        pilot.begin(names, now=self.now)
        length = pilot.draft_length(names, now=self.now)
        self.lengths.append(length)
        done = [self._run(name, acceptance(int(name[1:]))) for name in names]
        width = sum(one.width for one in done)
        target_ms, draft_ms = self.target_ms(width), self.draft_ms(length)
        wall_ms = target_ms + draft_ms + 0.5
        self.engine_ms += wall_ms
        self.now += wall_ms / 1000.0
        pilot.observe(done, StepTimes(wall_ms, target_ms, draft_ms), length, now=self.now)
        self.proposed.append([one.proposed for one in done if not one.prefill])
        for one in done:
            if one.ended is not None:
                self._end(one.request_id, one.ended)
        for stop in pilot.plan(list(self._running), now=self.now):
            self._end(stop.request_id, stop.cause)
        for name, request in self._running.items():
            pilot.drafted(name, length)
            limit = pilot.draft_limit(name) or 0
            self.undrafted += limit > 0 and length == 0
            request.drafts = min(length, limit)

    def _run(self, name: str, acceptance: float) -> Pass:
        request = self._running[name]
        proposed, accepted = request.drafts if request.prefilled else 0, 0
        while accepted < proposed and self._draw.random() < acceptance:
            accepted += 1
        prefill = not request.prefilled
        request.prefilled = True
        emitted = min(accepted + 1, request.tokens)
        context = 0 if prefill else PROMPT + self.max_tokens - request.tokens
        request.tokens -= emitted
        self.emitted += emitted
        ended = None if request.tokens else StopCause.MAX_TOKENS
        return Pass(
            name,
            width=PROMPT if prefill else proposed + 1,
            context=context,
            proposed=proposed,
            accepted=accepted,
            emitted=emitted,
            prefill=prefill,
            drafting=ended is None,
            ended=ended,
        )

    def _end(self, name: str, cause: StopCause) -> None:
        self.pilot.finish(name, cause, now=self.now)
        del self._running[name]
