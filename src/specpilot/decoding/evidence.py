"""What a trace says of a cycle beyond its counts: verdicts, acceptance probabilities, tokens.

None of it goes to the policy. It costs an argmax per proposed token (greedy) or Σ min(p, q) per judged token
(rejection sampling), so it is computed only for a trace that asks for it.
"""

from __future__ import annotations

import numpy as np

from specpilot.decoding.acceptance import Greedy
from specpilot.decoding.distribution import probabilities
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.types import Acceptance, Draft, Verification
from specpilot.trace.cycles import CycleEvidence


def cycle_evidence(
    request: DecodingRequest,
    draft: Draft,
    verified: Verification,
    accepted: Acceptance,
    emitted: int,
    *,
    ids: bool,
) -> CycleEvidence:
    """A settled cycle's evidence; of a tree there is nothing by position.

    Args:
        request: after its tokens were appended.
        draft: what was proposed.
        verified: what the pass returned.
        accepted: what was accepted of it.
        emitted: how many tokens were appended.
        ids: also the token ids, which are text of a user.
    """
    block, params = draft.block, request.params
    count = len(block)
    verdicts: tuple[int, ...] | None = None
    overlaps: tuple[float, ...] | None = None
    proposal_q: tuple[float, ...] | None = None
    if count and block.is_chain:
        if isinstance(request.rule, Greedy):
            chosen = np.asarray(verified.logits[:count]).argmax(axis=1)
            verdicts = tuple(int(a == b) for a, b in zip(chosen, block.token_ids, strict=True))
        elif request.rule.needs_q and draft.q is not None:
            # Positions after the first rejection were never judged.
            judged = min(len(accepted.path) + 1, count)
            overlaps = tuple(
                float(np.minimum(probabilities(verified.logits[i], params), draft.q[i]).sum())
                for i in range(judged)
            )
            proposal_q = tuple(float(draft.q[i][block.token_ids[i]]) for i in range(count))
    return CycleEvidence(
        temperature=params.temperature,
        accepted_at=tuple(node + 1 for node in accepted.path) if block.is_chain else None,
        verdicts=verdicts,
        overlaps=None if overlaps is None else tuple(min(1.0, value) for value in overlaps),
        proposal_q=proposal_q,
        proposed_ids=block.token_ids if ids and block.is_chain else None,
        own_id=accepted.next_token if ids else None,
        emitted_ids=tuple(request.context[len(request.context) - emitted :]) if ids else None,
        prompt_ids=tuple(request.prompt) if ids and request.emitted == emitted else None,
    )
