"""A fence around a drafter: whatever goes wrong inside, the cycle gets an answer, and in time.

The draft model is an optimisation. When it raises, hangs or talks nonsense, the request must go on with
the target alone, so a fault becomes an empty :class:`~specpilot.decoding.types.Draft` with ``fault`` set.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from operator import index
from queue import Empty, SimpleQueue
from typing import Any

from specpilot.decoding.types import Draft
from specpilot.drafters.base import Drafter, DraftItem
from specpilot.drafters.core import SharedCore
from specpilot.models.base import FloatArray

_Q_SUM = 1e-3
"""By how much a distribution may miss 1, rounding in single precision included."""
_PATIENCE = 10.0
"""Time-outs after which a call is given up for good, where a fresh drafter can be had."""
_MOST_HANGING = 4
"""Threads that may hang at once: each keeps its request's cache in memory for as long as it hangs."""


class GuardedDrafter:
    """Answers for ``inner`` with exceptions, time-outs, wrong vocabularies and malformed blocks fenced off.

    With a time-out the inner drafter lives in one worker thread. A call that takes too long is left alone
    (a thread cannot be stopped from outside): until it has returned, every proposal is answered at once with
    a fault, and requests opened or closed meanwhile are queued for it. With ``fresh`` a call that has not
    returned after ten time-outs (twice that for each one hanging already) is given up: its thread and its
    drafter are left behind, get nothing more to do, and a fresh drafter takes up the open requests in a
    thread of its own. So the breaker's next probe finds a drafter that answers, whether or not the old
    call ever returns. At most four calls are left hanging at a time.

    Args:
        inner: the drafter.
        timeout_ms: longest wait for a proposal; ``None``: no thread and no time-out.
        vocab_size: the target's; the inner one's must be equal.
        one_core: keep the worker on its caller's core while that waits (:mod:`specpilot.drafters.core`); for
            a drafter that computes in the thread that it is called in, and in no other.
        fresh: makes a drafter that shares no request's state with ``inner``; None: a hang is waited out.
        clock: seconds, monotonic.

    Raises:
        ValueError: if ``timeout_ms`` is not > 0.
    """

    def __init__(
        self,
        inner: Drafter,
        timeout_ms: float | None,
        vocab_size: int,
        *,
        one_core: bool = False,
        fresh: Callable[[], Drafter] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if timeout_ms is not None and not timeout_ms > 0.0:
            raise ValueError(f"timeout_ms: {timeout_ms} is not > 0; use None for no time-out")
        self._inner = inner
        self._timeout_s = None if timeout_ms is None else timeout_ms / 1000.0
        self._vocab_size = vocab_size
        self._one_core = one_core
        self._fresh = fresh
        self._clock = clock
        self._worker: _Worker | None = None
        self._left: list[_Worker] = []  # given up, and hanging still
        self._hung_at_s: float | None = None
        self._open: dict[str, tuple[Sequence[int], str | None]] = {}  # kept for a fresh drafter only

    @property
    def name(self) -> str:
        """The inner drafter's name."""
        return self._inner.name

    @property
    def vocab_size(self) -> int:
        """The vocabulary that proposals are checked against."""
        return self._vocab_size

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        """Take up a request; a fault shows when it is asked to propose."""
        if self._fresh is not None:
            self._open[request_id] = prompt, session_id
        inner = self._inner  # the one of now: the job may run after another has taken its place
        try:
            return int(self._call(lambda: inner.open(request_id, prompt, session_id)))
        except Exception:
            return 0

    def close(self, request_id: str) -> None:
        """Let go of a request."""
        self._open.pop(request_id, None)
        inner = self._inner
        try:
            self._call(lambda: inner.close(request_id), wait=False)
        except Exception:  # nothing can be done about it and nothing depends on it
            return

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        """The inner drafter's proposals, checked one by one; a fault of the call is everybody's."""
        try:
            if self._inner.vocab_size != self._vocab_size:
                raise _DrafterError(
                    f"vocabulary: {self._inner.vocab_size} tokens, the target has {self._vocab_size}"
                )
            if self._worker is not None and self._worker.busy and not self._replaced():
                raise _DrafterError("time-out: an earlier call has not returned")
            inner = self._inner
            drafts = self._call(lambda: inner.propose(items))
            if len(drafts) != len(items):
                raise _DrafterError(f"malformed: {len(drafts)} drafts for {len(items)} requests")
        except _DrafterError as fault:
            return [Draft(fault=str(fault))] * len(items)
        except Exception as error:
            return [Draft(fault=f"exception: {type(error).__name__}: {error}")] * len(items)
        return [self._checked(item, draft) for item, draft in zip(items, drafts, strict=True)]

    def _call(self, job: Callable[[], Any], wait: bool = True) -> Any:
        if self._timeout_s is None:
            return job()
        if self._worker is None:
            self._worker = _Worker(self._one_core)
            weakref.finalize(self, self._worker.end)
        try:
            return self._worker.run(job, self._timeout_s if wait else None)
        except _DrafterError:
            self._hung_at_s = self._clock()
            raise

    def _replaced(self) -> bool:
        """Give the hanging call up, if its time has come and there is a fresh drafter to go on with."""
        self._left = [worker for worker in self._left if worker.busy]
        if self._fresh is None or self._timeout_s is None or self._hung_at_s is None or self._worker is None:
            return False
        patience_s = _PATIENCE * self._timeout_s * 2.0 ** len(self._left)
        if len(self._left) >= _MOST_HANGING or self._clock() - self._hung_at_s < patience_s:
            return False
        inner = self._fresh()
        self._worker.retire()
        self._left.append(self._worker)
        self._inner, self._worker = inner, None
        for request_id, (prompt, session_id) in self._open.items():
            self._reopen(inner, request_id, prompt, session_id)
        return True

    def _reopen(self, inner: Drafter, request_id: str, prompt: Sequence[int], session_id: str | None) -> None:
        self._call(lambda: inner.open(request_id, prompt, session_id), wait=False)

    def _checked(self, item: DraftItem, draft: Draft) -> Draft:
        try:
            problem = self._problem(item, draft)
        except Exception as error:  # not even the fields are what they should be
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            return draft
        return Draft(fault=problem if problem.startswith("vocabulary") else f"malformed: {problem}")

    def _problem(self, item: DraftItem, draft: Draft) -> str | None:
        if draft.fault is not None:
            return None if not len(draft.block) else "tokens proposed along with a fault"
        block = draft.block
        if len(block) > item.max_nodes:
            return f"{len(block)} tokens proposed, {item.max_nodes} asked for"
        if block.depth > item.max_draft:
            return f"{block.depth} positions deep, {item.max_draft} asked for"
        for token in block.token_ids:
            if not 0 <= index(token) < self._vocab_size:
                return f"vocabulary: token {token} is not in 0…{self._vocab_size - 1}"
        for confidence in draft.confidences:
            # Also catches NaN, and with it logits that are none.
            if not 0.0 <= confidence <= 1.0 + 1e-6:
                return f"confidence {confidence} is not in 0…1"
        if item.rule.needs_q and len(block):
            if not block.is_chain:
                return f"a tree, {item.rule.name} takes chains"
            shape = None if draft.q is None else draft.q.shape
            if shape != (len(block), self._vocab_size):
                return f"q of shape {shape}, the acceptance rule needs {(len(block), self._vocab_size)}"
            if problem := _q_problem(block.token_ids, draft.q):
                return problem
        if not (0.0 <= draft.draft_ms < math.inf and 0.0 <= draft.prefill_ms < math.inf):
            return f"times {draft.draft_ms} and {draft.prefill_ms} are not finite and ≥ 0"
        if draft.main is not None and not 0 <= draft.main <= len(block):
            return f"main {draft.main} is not in 0…{len(block)}"
        # One more where the last token computed was not kept; of a tree those of its main chain.
        known, main = len(draft.confidences), block.main_chain if draft.main is None else draft.main
        if known and (known < main or (block.is_chain and known > len(block) + 1)):
            return f"{known} confidences for {main} tokens; one for each computed position is needed"
        if not draft.prefill_tokens >= 0:
            return f"{draft.prefill_tokens} prefill tokens are not ≥ 0"
        if draft.looked_up is not None:
            tokens, confidence = draft.looked_up
            for token in tokens:
                index(token)
            if not 0.0 <= confidence <= 1.0:
                return f"confidence {confidence} of looked-up text is not in 0…1"
        return self._tree_problem(draft)

    def _tree_problem(self, draft: Draft) -> str | None:
        block = draft.block
        if draft.ranks and not len(draft.ranks) == len(draft.shares) == len(block):
            return f"{len(draft.ranks)} ranks and {len(draft.shares)} shares for {len(block)} tokens"
        taken = set()
        for parent, rank in zip(block.parents, draft.ranks, strict=False):
            if not 0 <= rank <= self._vocab_size or rank != int(rank):
                return f"rank {rank} is not a whole number in 0…{self._vocab_size}"
            if rank and (parent, rank) in taken:
                return f"rank {rank} twice among the choices after one token"
            taken.add((parent, rank))
        for share in draft.shares:
            if not 0.0 <= share <= 1.0 + 1e-6:
                return f"share {share} is not in 0…1"
        if draft.steps is not None and not draft.steps >= 0:
            return f"{draft.steps} steps are not ≥ 0"
        if draft.side_worth is not None and not 0.0 <= draft.side_worth < math.inf:
            return f"side_worth {draft.side_worth} is not finite and ≥ 0"
        return None


def _q_problem(tokens: Sequence[int], q: FloatArray | None) -> str | None:
    """Why the tokens cannot be samples of these rows; rejection sampling is lossless only if they are."""
    for place, (token, row) in enumerate(zip(tokens, () if q is None else q, strict=True)):
        total, least = float(row.sum()), float(row.min())
        if not abs(total - 1.0) < _Q_SUM:
            return f"q at place {place} sums to {total}, not to 1"
        if not least >= 0.0:
            return f"q at place {place} has {least}, which is no probability"
        if not row[token] > 0.0:
            return f"token {token} at place {place} has no chance under its q"
    return None


class _DrafterError(Exception):
    """A fault with its description."""


class _Worker:
    """One daemon thread that runs jobs in order; a job that outlasts its caller's patience just goes on."""

    def __init__(self, one_core: bool) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[tuple[Any, Exception | None]]] | None]
        self._jobs = SimpleQueue()
        self._overdue: SimpleQueue[tuple[Any, Exception | None]] | None = None
        thread = threading.Thread(target=_work, args=(self._jobs,), name="specpilot-drafter", daemon=True)
        thread.start()
        self._core = SharedCore(thread if one_core else None)

    @property
    def busy(self) -> bool:
        """Whether a job that timed out has still not returned."""
        if self._overdue is not None and not self._overdue.empty():
            self._overdue = None
        return self._overdue is not None

    def run(self, job: Callable[[], Any], timeout_s: float | None) -> Any:
        """The job's result; with no time-out, or behind a hanging job, it is only queued."""
        answer: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
        if timeout_s is None or self.busy:
            self._jobs.put((job, answer))
            return 0
        with self._core:
            self._jobs.put((job, answer))
            try:
                result, error = answer.get(timeout=timeout_s)
            except Empty:
                self._overdue = answer
        if self._overdue is not None:
            self._core.part()
            raise _DrafterError(f"time-out: no answer within {timeout_s * 1000.0:.0f} ms")
        if error is not None:
            raise error
        return result

    def retire(self) -> None:
        """Drop what is queued; the thread ends when its call returns."""
        with contextlib.suppress(Empty):
            while True:
                self._jobs.get_nowait()
        self.end()

    def end(self) -> None:
        """Let the thread end when it has nothing left to do."""
        self._jobs.put(None)


def _work(jobs: SimpleQueue[Any]) -> None:
    while (entry := jobs.get()) is not None:
        job, answer = entry
        try:
            answer.put((job(), None))
        except Exception as error:
            answer.put((None, error))
        del entry, job, answer  # no reference to the last request while waiting for the next
