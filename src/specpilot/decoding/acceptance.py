"""The rules of acceptance: which drafted tokens stand, and the target's own token after them.

===============  =================================  ==========================================  =======
rule             drafter draws                      target accepts                              blocks
===============  =================================  ==========================================  =======
Greedy           argmax q                           the child equal to argmax p                 trees
Rejection        x ~ q                              with probability min(1, p(x)/q(x))          chains
Coupled          argmax of q under shared noise     the child equal to argmax p under the noise trees
Deterministic    argmax q (or anything fixed)       draws x ~ p, follows the child equal to x   trees
===============  =================================  ==========================================  =======

All four are lossless: what is emitted is distributed as the target alone would have it. Of one candidate
Rejection accepts most, but it is only right where the proposals *are* samples of the q it is told: second
choices and looked-up tokens are not. Coupled follows any child that the target's token under the noise is
equal to, and its children are chosen under that noise, so trees accept more with it than with recursive
rejection or with the likeliest children (Deterministic), see docs/trees.md. It also makes the text a function
of prompt and seed, whatever was drafted.

A request sampled without a seed may begin with Rejection and go over to Coupled for its trees
(:meth:`AcceptanceRule.coupled`): noise that nothing has depended on yet draws the target's tokens whatever
happened before. The way back is barred. Noise that has chosen a block also had a part in where the block
ended, so that what it would have drawn next may not be drawn anew.

A drafter uses a rule in two steps, with the stop rule's question between them: :meth:`look` computes the
distribution and its confidence, and only if the position is kept does :meth:`draw` draw the token
(invariant I4: under Rejection, whether a position is proposed must not depend on its sample; the other rules'
tokens are the target's whatever was proposed).

A rule belongs to one request: those that draw hold its random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from specpilot.control.types import AcceptanceName
from specpilot.decoding.distribution import DoubleArray, draw, probabilities, top_token, top_tokens
from specpilot.decoding.rule import AcceptanceRule, DraftStep, drawn_from, follow, likeliest, shaped, shares
from specpilot.decoding.types import Acceptance, Block, SamplingParams
from specpilot.models.base import FloatArray


class Greedy:
    """The target's likeliest token, always. Confidence is the draft's raw softmax maximum."""

    name: AcceptanceName = "greedy"
    needs_q = False

    def coupled(self) -> AcceptanceRule:
        """Itself."""
        return self

    def look(self, logits: FloatArray, position: int) -> DraftStep:
        """Argmax and its raw softmax probability."""
        top, confidence = top_token(logits)
        return DraftStep(position, top, confidence)

    def look_all(self, logits: FloatArray, positions: Sequence[int]) -> list[DraftStep]:
        """All rows at once: numpy's calls are dear beside what they do for one row."""
        return list(map(DraftStep, positions, *top_tokens(logits)))

    def draw(self, step: DraftStep) -> int:
        """The draft's likeliest token."""
        return step.top

    def choices(self, step: DraftStep, logits: FloatArray, count: int) -> Iterator[tuple[int, float]]:
        """The likeliest tokens by the raw softmax, one after the other."""
        peak = logits[step.top]
        best = likeliest(logits, count, step.top)
        return shares(
            ((token, float(step.confidence * np.exp(logits[token] - peak))) for token in best),
            step.confidence,
        )

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """Follow the child equal to the target's argmax."""
        best = target_logits.argmax(axis=1).tolist()
        return follow(block, lambda row, depth: int(best[row]))


class Rejection:
    """Speculative sampling (Leviathan et al. 2023; Chen et al. 2023) for chains drawn from q.

    A token x is accepted with probability min(1, p(x)/q(x)); at the first rejection the recovered token
    is drawn from the normalised positive part of p − q.
    """

    name: AcceptanceName = "rejection"
    needs_q = True

    def __init__(self, params: SamplingParams, rng: np.random.Generator | None = None) -> None:
        self._params = params
        self._rng = rng if rng is not None else np.random.default_rng()

    def coupled(self) -> AcceptanceRule:
        """Coupled by a fresh seed."""
        return Coupled(self._params, int.from_bytes(self._rng.bytes(16), "little"))

    def look(self, logits: FloatArray, position: int) -> DraftStep:
        """The shaped distribution and its maximum."""
        return shaped(logits, position, self._params)

    def look_all(self, logits: FloatArray, positions: Sequence[int]) -> list[DraftStep]:
        """Row by row."""
        return list(map(self.look, logits, positions))

    def draw(self, step: DraftStep) -> int:
        """A sample of q."""
        return draw(drawn_from(step), self._rng.random())

    def choices(self, step: DraftStep, logits: FloatArray, count: int) -> Iterator[tuple[int, float]]:
        """Not to be had.

        Raises:
            ValueError: always: second choices are no samples of q.
        """
        raise ValueError("choices: a tree's children are no samples of q; use the Deterministic rule")

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """Accept the chain's tokens one by one against their q rows.

        Raises:
            ValueError: for a tree, or without one q row per token.
        """
        if not block.is_chain:
            raise ValueError("block: a tree's children are no samples of q; use the Deterministic rule")
        rows = () if q is None else q
        if len(rows) != len(block):
            raise ValueError(
                f"q: {len(rows)} rows for {len(block)} tokens; give the q each was drawn from, "
                "or use the Deterministic rule for tokens that were not drawn"
            )
        for index, (token, row) in enumerate(zip(block.token_ids, rows, strict=True)):
            p = probabilities(target_logits[index], self._params)
            # Not p/q ≥ u: so a vanishing q cannot divide by zero.
            if self._rng.random() * float(row[token]) < p[token]:
                continue
            residual = np.maximum(p - row, 0.0)
            if not residual.sum() > 0.0:  # p and q equal up to rounding: any of p's tokens will do
                residual = p
            return Acceptance(tuple(range(index)), draw(residual, self._rng.random()))
        p = probabilities(target_logits[len(block)], self._params)
        return Acceptance(tuple(range(len(block))), draw(p, self._rng.random()))


class Coupled:
    """Drafter-invariant sampling (Daliri et al. 2024): draft and target share their noise.

    At absolute position t both take the argmax of their own log-probabilities plus the same Gumbel
    noise, which is keyed by (seed, t) and nothing else. The target's token is then a sample of p that
    does not depend on what was drafted, and the two are equal with probability at least
    (1 − TV(p, q)) / (1 + TV(p, q)).

    The noise comes from the counter-based generator Philox, read as raw words: these are stable across
    numpy versions, platforms and processes.

    Args:
        params: temperature, top-k, top-p and seed.
        seed: in place of the one in ``params``.

    Raises:
        ValueError: if there is no seed in either.
    """

    name: AcceptanceName = "coupled"
    needs_q = False

    def __init__(self, params: SamplingParams, seed: int | None = None) -> None:
        given = params.seed if seed is None else seed
        if given is None:
            raise ValueError("seed: None is not an integer; coupled sampling is keyed by a seed")
        chosen = int(given)  # numpy's integers do not take a mask of 64 bits
        self._params = params
        self._key = np.array([chosen & _WORD, (chosen >> 64) & _WORD], dtype=np.uint64)
        self._noise: dict[int, DoubleArray] = {}

    def coupled(self) -> AcceptanceRule:
        """Itself."""
        return self

    def look(self, logits: FloatArray, position: int) -> DraftStep:
        """The shaped distribution over the noise, normalised: a softmax of the noisy logits, and its maximum.

        That maximum says more than q's of whether the target makes the same choice: how far the draft's is
        ahead of the next under the very noise that decides.
        """
        weights = probabilities(logits, self._params)
        weights /= self._noise_at(position, weights.size)
        weights /= weights.sum()
        top = int(weights.argmax())
        return DraftStep(position, top, float(weights[top]), weights)

    def look_all(self, logits: FloatArray, positions: Sequence[int]) -> list[DraftStep]:
        """Row by row."""
        return list(map(self.look, logits, positions))

    def draw(self, step: DraftStep) -> int:
        """Argmax of q under the noise of the step's position."""
        return step.top

    def choices(self, step: DraftStep, logits: FloatArray, count: int) -> Iterator[tuple[int, float]]:
        """The tokens that come first under the noise of the position."""
        weights = drawn_from(step)
        best = likeliest(weights, count, step.top)
        return shares(((token, float(weights[token])) for token in best), step.confidence)

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """Follow the child equal to the argmax of p under the same noise."""
        accepted = follow(
            block,
            lambda row, depth: self._pick(probabilities(target_logits[row], self._params), position + depth),
        )
        # Noise of positions now settled is not asked for again. A draft that has outlasted its time may be
        # adding to it in its own thread: list() takes the keys in one go.
        settled = position + len(accepted.path)
        for known in list(self._noise):
            if known <= settled:
                del self._noise[known]
        return accepted

    def _pick(self, weights: DoubleArray, position: int) -> int:
        """argmax(log w + Gumbel) = argmax(w / Exponential), which needs no logarithm of w."""
        return int((weights / self._noise_at(position, weights.size)).argmax())

    def _noise_at(self, position: int, size: int) -> DoubleArray:
        noise = self._noise.get(position)
        if noise is None or noise.size != size:
            noise = self._noise[position] = self._exponentials(size, position)
        return noise

    def _exponentials(self, size: int, position: int) -> DoubleArray:
        # The position is the counter's third word: the lower two are left to count within the row.
        counter = np.array([0, 0, position, 0], dtype=np.uint64)
        words = np.random.Philox(key=self._key, counter=counter).random_raw(size)
        # 52 bits plus a half lie strictly between 0 and 1, and so does their logarithm below 0.
        uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return np.asarray(-np.log(uniform), dtype=np.float64)


class Deterministic:
    """Candidates that are no samples of q: top-k children of a tree, tokens looked up in the prompt.

    The target draws from p as if it were alone and follows the child that it drew, if there is one: exactly
    lossless, and acceptance is p's mass on the children.
    """

    name: AcceptanceName = "deterministic"
    needs_q = False

    def __init__(self, params: SamplingParams, rng: np.random.Generator | None = None) -> None:
        self._params = params
        self._rng = rng if rng is not None else np.random.default_rng()

    def coupled(self) -> AcceptanceRule:
        """Itself."""
        return self

    def look(self, logits: FloatArray, position: int) -> DraftStep:
        """The shaped distribution and its maximum."""
        return shaped(logits, position, self._params)

    def look_all(self, logits: FloatArray, positions: Sequence[int]) -> list[DraftStep]:
        """Row by row."""
        return list(map(self.look, logits, positions))

    def draw(self, step: DraftStep) -> int:
        """The draft's likeliest token: it has the best chance to be what the target draws."""
        return step.top

    def choices(self, step: DraftStep, logits: FloatArray, count: int) -> Iterator[tuple[int, float]]:
        """The likeliest tokens of the shaped distribution."""
        q = drawn_from(step)
        return shares(((token, float(q[token])) for token in likeliest(q, count)), step.confidence)

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """Follow the child equal to the target's draw."""
        return follow(
            block,
            lambda row, depth: draw(probabilities(target_logits[row], self._params), self._rng.random()),
        )


def make_rule(
    params: SamplingParams,
    *,
    sampled: bool = True,
    rng: np.random.Generator | None = None,
) -> AcceptanceRule:
    """The rule that a request begins with.

    Args:
        params: temperature 0 is greedy; a seed means coupled sampling.
        sampled: whether a draft model proposes, which can draw with the rule (not prompt lookup alone).
        rng: random state for the rules that need one; default: fresh from the operating system.
    """
    if params.temperature == 0.0:
        return Greedy()
    if params.seed is not None:
        return Coupled(params)
    if not sampled:
        return Deterministic(params, rng)
    return Rejection(params, rng)


_WORD = (1 << 64) - 1
