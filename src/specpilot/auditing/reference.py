"""A model alone, without the cycle's code: each answer from a fresh cache, so no rollback can be wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specpilot.models.base import CausalLM, FloatArray, ForwardItem


class ModelReference:
    """Logits and greedy outputs of one model."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model

    def rows(self, tokens: Sequence[int], since: int) -> FloatArray:
        """(len(tokens) − since + 1, vocab), in one pass: after ``tokens[:since]`` and each later token."""
        item = ForwardItem(self._model.new_cache(), list(tokens), logits_from=since - 1)
        return self._model.forward([item])[0]

    def greedy(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], list[float]]:
        """Tokens up to EOS, and by how much each was preferred (top-1 minus top-2 logits)."""
        output: list[int] = []
        margins: list[float] = []
        while len(output) < max_tokens:
            tokens = [*prompt, *output]
            row = self.rows(tokens, len(tokens))[0]
            two = np.partition(row, -2)[-2:]
            margins.append(float(two[1] - two[0]))
            output.append(int(row.argmax()))
            if output[-1] in self._model.eos_token_ids:
                break
        return output, margins
