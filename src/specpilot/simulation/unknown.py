"""Unknown agreement bits: drawn from a fitted hazard, seeded and counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from specpilot.trace.agreement import AgreementTrace

BINS = 10
_PRIOR_AGREEMENT = 0.6
_PRIOR_WEIGHT = 4.0


class Hazard:
    """P(agree), by decile of the draft's confidence where there is one, else pooled.

    Each rate is shrunk to the pooled one by a few pseudo-observations, so that an empty bin is harmless.
    """

    def __init__(self, traces: Sequence[AgreementTrace]) -> None:
        ones = seen = 0
        bin_ones, bin_seen = [0] * BINS, [0] * BINS
        for trace in traces:
            for position, bit in enumerate(trace.agree):
                if bit is None:
                    continue
                ones, seen = ones + bit, seen + 1
                if trace.confidence is not None:
                    place = _bin(trace.confidence[position])
                    bin_ones[place] += bit
                    bin_seen[place] += 1
        self.pooled = (ones + _PRIOR_WEIGHT * _PRIOR_AGREEMENT) / (seen + _PRIOR_WEIGHT)
        self.by_confidence = tuple(
            (one + _PRIOR_WEIGHT * self.pooled) / (count + _PRIOR_WEIGHT)
            for one, count in zip(bin_ones, bin_seen, strict=True)
        )

    def at(self, trace: AgreementTrace, position: int) -> float:
        """P(agree) at a position of a trace."""
        if trace.confidence is None:
            return self.pooled
        return self.by_confidence[_bin(trace.confidence[position])]


def fill_unknown(traces: Sequence[AgreementTrace], seed: int) -> tuple[list[AgreementTrace], int]:
    """Traces without ``null``, and how many bits were drawn.

    The draw depends on the seed and the request's name only, not on the order of the file.
    """
    drawn = sum(trace.unknown for trace in traces)
    if not drawn:
        return list(traces), 0
    hazard = Hazard(traces)
    filled = []
    for trace in traces:
        rng = random.Random(f"{seed}:{trace.request}")
        bits = tuple(
            int(rng.random() < hazard.at(trace, position)) if bit is None else bit
            for position, bit in enumerate(trace.agree)
        )
        filled.append(replace(trace, agree=bits))
    return filled, drawn


def _bin(confidence: float) -> int:
    return min(BINS - 1, int(confidence * BINS))
