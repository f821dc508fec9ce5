"""What a trace says of a cycle beyond its counts: verdicts, acceptance probabilities, what was drawn, tokens.

None of it goes to the policy. It costs an argmax per proposed token (greedy) or p per judged token
(sampling), so it is computed only for a trace that asks for it.

Under every rule of acceptance, of chains and of trees, an emitted token is a draw from p after its prefix.
``sampled`` holds what it takes to test that: where the token lies in p. p is computed anew from the pass's
logits and what the request asked for: a rule that shapes it otherwise is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specpilot.decoding.distribution import DoubleArray, probabilities
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.types import Acceptance, Draft, Verification
from specpilot.trace.cycles import CycleEvidence

LOOKED_AT = 8
"""Where p is not needed for anything else, the tokens of every so many-th cycle are looked at: p is the dear
part (20 µs, 50 µs with top-p, for 4096 tokens)."""


def cycle_evidence(
    request: DecodingRequest,
    draft: Draft,
    verified: Verification,
    accepted: Acceptance,
    emitted: int,
    *,
    cycle_id: int,
    ids: bool,
) -> CycleEvidence:
    """A settled cycle's evidence.

    Args:
        request: after its tokens were appended.
        draft: what was proposed.
        verified: what the pass returned.
        accepted: what was accepted of it.
        emitted: how many tokens were appended.
        cycle_id: decides whether the cycle's sampled tokens are looked at, before they are known.
        ids: also the token ids, which are text of a user.
    """
    block, params = draft.block, request.params
    count = len(block)
    verdicts: tuple[int, ...] | None = None
    emitted_verdicts: tuple[int, ...] | None = None
    overlaps: tuple[float, ...] | None = None
    proposal_q: tuple[float, ...] | None = None
    sampled: tuple[float, ...] | None = None
    if params.temperature == 0.0:
        logits = np.asarray(verified.logits)
        if block.is_chain:
            chosen = logits[: count + 1].argmax(axis=1)
            if count:
                verdicts = tuple(int(a == b) for a, b in zip(chosen[:count], block.token_ids, strict=True))
        else:
            chosen = np.zeros(len(logits), dtype=np.int64)
            along = [node + 1 for node in (-1, *accepted.path)]
            chosen[along] = logits[along].argmax(axis=1)
        appended = request.context[len(request.context) - emitted :]
        emitted_verdicts = tuple(
            int(chosen[node + 1] == token)
            for node, token in zip((-1, *accepted.path), appended, strict=False)
        )
    else:
        q = draft.q if request.rule.needs_q else None
        if q is not None or _looked_at(cycle_id):
            # What was accepted beyond the output's end does not count as accepted either.
            judged = (-1, *accepted.path)[:emitted]
            p = [probabilities(verified.logits[node + 1], params) for node in judged]
            sampled = _sampled(p, request.context[len(request.context) - emitted - 1 :])
            if q is not None:
                # Positions after the first rejection were never judged: there are no more of p than of those.
                overlaps = tuple(
                    min(1.0, float(np.minimum(ours, theirs).sum()))
                    for ours, theirs in zip(p, q, strict=False)
                )
                proposal_q = tuple(float(q[i][block.token_ids[i]]) for i in range(count))
    return CycleEvidence(
        temperature=params.temperature,
        accepted_at=tuple(node + 1 for node in accepted.path) if block.is_chain else None,
        verdicts=verdicts,
        emitted_verdicts=emitted_verdicts,
        overlaps=overlaps,
        proposal_q=proposal_q,
        proposed_ids=block.token_ids if ids and block.is_chain else None,
        own_id=accepted.next_token if ids else None,
        emitted_ids=tuple(request.context[len(request.context) - emitted :]) if ids else None,
        prompt_ids=tuple(request.prompt) if ids and request.emitted == emitted else None,
        sampled=sampled,
    )


def _looked_at(cycle_id: int) -> bool:
    """A choice by the number alone, spread so that no request of a steady batch is always left out."""
    return (cycle_id * 0x9E3779B1 >> 16) % LOOKED_AT == 0


def _sampled(p: Sequence[DoubleArray], tokens: Sequence[int]) -> tuple[float, ...]:
    """Four numbers a token (see :class:`~specpilot.trace.cycles.CycleEvidence`).

    Args:
        p: of each position (vocab,); at least as many as there are tokens to look at.
        tokens: the last token before them, then those emitted.
    """
    found: list[float] = []
    for weights, before, token in zip(p, tokens, tokens[1:], strict=False):
        chance = weights.item(token)
        below = min(1.0, float(weights.dot(weights < chance)))
        upto = min(1.0, below + chance * int(np.count_nonzero(weights == chance)))
        found += (below, upto, min(1.0, weights.item(before)), float(token == before))
    return tuple(found)
