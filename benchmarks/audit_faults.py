"""Does `specpilot audit` see every fault that changes the output, and pass the healthy engine?

    python benchmarks/audit_faults.py --healthy 100 --runs 10
    python benchmarks/audit_faults.py --limits --runs 10

Engines as in faulty_engine.py (the package's own cycle on small made-up models), each drawn anew from its
seed; a fault is put in with a drawn strength, the share of the places at which it strikes. Faults of the
draft alone (stale cache, unfed bonus token, permuted vocabulary) and a bonus token that is dropped change no
output, they only cost speed: not for the audit but for `diagnose`, and listed to show that the audit passes
them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.diagnosis import wilson
from benchmarks.faulty_engine import (
    EOS,
    VOCAB,
    AcceptAnything,
    AcceptMatches,
    ForgetfulRequest,
    OtherTemperature,
    Setup,
    SimTime,
    SkippingTarget,
    TableLM,
    tables,
)

from specpilot.auditing import Check, LocalSubject, audit_pair, verdict
from specpilot.decoding.acceptance import Coupled, Rejection
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule, DraftStep
from specpilot.decoding.types import Acceptance, SamplingParams
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import FloatArray
from specpilot.targets.model import ModelTarget

FIRST_LETTER = 0x100
"""Token 0 as a character: every token is one letter."""
CHANGES_OUTPUT = (
    "target_rollback",
    "non_prefix_accept",
    "unverified_emission",
    "skipped_verification",
    "draft_temperature",
    "rejection_on_fixed_tokens",
    "target_ignores_top_k",
    "stop_missed_in_block",
    "eos_missed_in_block",
    "seed_depends_on_draft",
    "coupled_other_temperature",
    "coupled_draft_token",
    "coupled_noise_twice",
)
MILD = ("draft_temperature", "rejection_on_fixed_tokens")
RARELY = (0.1, 0.05, 0.02, 0.01)
"""Shares of the drafted tokens at which a mild fault strikes, where the limit is looked for."""
SPEED_ONLY = ("draft_rollback", "unfed_bonus_token", "lost_bonus_token", "permuted_vocabulary")


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Letters; EOS gives none."""
        return "".join(chr(FIRST_LETTER + token) for token in token_ids if token != EOS)


def encode(text: str) -> list[int]:
    """Token ids of letters."""
    return [ord(letter) - FIRST_LETTER for letter in text]


class SometimesWrong(Rejection):
    """Another rule of rejection sampling at a share of draws and blocks; the right one at the rest."""

    def __init__(
        self, wrong: Rejection, params: SamplingParams, rng: np.random.Generator, share: float
    ) -> None:
        super().__init__(params, rng)
        self._wrong, self._chance, self._share = wrong, rng, share

    def _rule(self) -> Rejection | None:
        return self._wrong if self._chance.random() < self._share else None

    def draw(self, step: DraftStep) -> int:
        """The fault's token, or the right one."""
        rule = self._rule()
        return rule.draw(step) if rule is not None else super().draw(step)

    def accept(
        self, block: Any, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """The fault's judgement, or the right one."""
        rule = self._rule()
        if rule is not None:
            return rule.accept(block, q, target_logits, position)
        return super().accept(block, q, target_logits, position)


class FixedTokens(Rejection):
    """Fault: the draft's likeliest token is proposed and judged as if it were drawn from q."""

    def draw(self, step: DraftStep) -> int:
        """No draw at all."""
        return step.top


class DriftingNoise(Coupled):
    """Fault: the noise of seeded sampling is keyed by the block's beginning, not by the position."""

    def accept(self, block: Any, q: FloatArray | None, target_logits: FloatArray, position: int) -> Any:
        """Judged under another position's noise."""
        return super().accept(block, q, target_logits, position + 1000 * len(block))


class SometimesWrongCoupled(Coupled):
    """Coupled sampling that goes wrong in a share of the blocks, in one of three ways.

    ``coupled_other_temperature``: the target draws at another temperature than was asked for;
    ``coupled_draft_token``: where a path leaves the block, the draft's next token is emitted;
    ``coupled_noise_twice``: all positions of a block have the noise of its first one.
    """

    def __init__(
        self, fault: str, params: SamplingParams, seed: int, factor: float, hit: Callable[[], bool]
    ) -> None:
        super().__init__(params, seed)
        other = replace(params, temperature=params.temperature * factor)
        self._fault, self._hit = fault, hit
        self._other = Coupled(other, seed)
        self._first: int | None = None

    def accept(
        self, block: Any, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        """The fault's judgement, or the right one."""
        if not self._hit():
            return super().accept(block, q, target_logits, position)
        if self._fault == "coupled_other_temperature":
            return self._other.accept(block, q, target_logits, position)
        if self._fault == "coupled_noise_twice":
            self._first = position
            found = super().accept(block, q, target_logits, position)
            self._first = None
            return found
        found = super().accept(block, q, target_logits, position)
        last = found.path[-1] if found.path else -1
        if last not in block.parents:
            return found
        return Acceptance(found.path, block.token_ids[block.parents.index(last)])

    def _pick(self, weights: Any, position: int) -> int:
        return super()._pick(weights, position if self._first is None else self._first)


class Blockwise(DecodingRequest):
    """Fault: the end is looked for after a block only, so that stop strings and EOS inside are run over."""

    whole = ""

    def emit(self, tokens: Sequence[int]) -> int:
        """The block's tokens, then one look."""
        if len(tokens) == 1 or self.emitted + len(tokens) > self.max_tokens:
            return super().emit(tokens)
        eos, stops = self._eos, self._stops
        if self.whole == "eos":
            self._eos = frozenset()
        count = super().emit(tokens[:-1]) if self.whole == "eos" else self._run_over(tokens[:-1])
        self._eos, self._stops = eos, stops
        return count if self.ended is not None else count + super().emit(tokens[-1:])

    def _run_over(self, tokens: Sequence[int]) -> int:
        from specpilot.decoding.text import StopStrings

        self._stops = StopStrings(())
        return super().emit(tokens)


def subject(fault: str, seed: int, share: float | None = None) -> LocalSubject:
    """An engine with a fault, of drawn models; it strikes at a drawn share of the places, or at this one."""
    chance = random.Random(seed)
    draw = chance.uniform
    strength = draw(0.2, 1.0) if share is None else share
    factor = chance.choice((0.0, 0.4, 2.5))
    setup = Setup(seed=seed, draft_noise=draw(0.4, 1.2), sharpness=draw(2.0, 6.0), spread=draw(0.0, 0.3))
    time = SimTime()
    target_tables, draft_tables = tables(setup)
    permutation = None
    if fault == "permuted_vocabulary":
        permutation = np.arange(VOCAB)
        moved = np.array(chance.sample(range(1, VOCAB), max(2, int(strength * (VOCAB - 1)))))
        permutation[moved] = np.roll(moved, 1)

    def hit() -> bool:
        return chance.random() < strength

    def cost(width: int, held: int) -> float:
        return 1.0

    target_model = TableLM(
        "target", target_tables, time, cost, break_rollback=hit if fault == "target_rollback" else None
    )
    draft_model = TableLM(
        "draft",
        draft_tables,
        time,
        cost,
        break_rollback=hit if fault == "draft_rollback" else None,
        skip_feed=(lambda _: hit()) if fault == "unfed_bonus_token" else None,
        permutation=permutation,
    )
    requests: dict[str, DecodingRequest] = {}
    target: ModelTarget = ModelTarget(target_model, clock=time)
    if fault in ("skipped_verification", "lost_bonus_token"):
        skip = hit if fault == "skipped_verification" else (lambda: False)
        target = SkippingTarget(target_model, time, skip, requests)
    rng = np.random.default_rng(seed)

    def make(name: str, prompt: Sequence[int], max_tokens: int, **settings: Any) -> DecodingRequest:
        rule = faulty_rule(fault, settings["params"], strength, factor, chance, rng, settings["rule"])
        if rule is not None:
            settings["rule"] = rule
        kinds: dict[str, Callable[..., DecodingRequest]] = {
            "lost_bonus_token": ForgetfulRequest,
            "stop_missed_in_block": Blockwise,
            "eos_missed_in_block": Blockwise,
        }
        request = kinds.get(fault, DecodingRequest)(name, prompt, max_tokens, **settings)
        if isinstance(request, ForgetfulRequest):
            request.lose = hit
        if isinstance(request, Blockwise):
            request.whole = fault.partition("_")[0]
        requests[name] = request
        return request

    return LocalSubject(
        LiveExecutor(target, ModelDrafter(draft_model, clock=time), clock=time),
        TableLM("target alone", target_tables, SimTime(), cost),
        TableLM("draft alone", draft_tables, SimTime(), cost),
        Letters(),
        encode,
        rng=rng,
        make_request=make,
        clock=time,
    )


def faulty_rule(
    fault: str,
    params: SamplingParams,
    strength: float,
    factor: float,
    chance: random.Random,
    rng: np.random.Generator,
    given: AcceptanceRule,
) -> AcceptanceRule | None:
    """The rule of acceptance with the fault, in place of the one given; ``None``: that one.

    ``factor``: of the draft's temperature.
    """
    greedy = params.temperature == 0.0
    if fault == "non_prefix_accept" and greedy:
        return AcceptMatches(strength, chance)
    if fault == "unverified_emission" and greedy:
        return AcceptAnything(strength, chance)
    if fault.startswith("coupled_"):
        if not isinstance(given, Coupled) or params.seed is not None:
            return None
        seed = int.from_bytes(rng.bytes(16), "little")
        return SometimesWrongCoupled(fault, params, seed, factor or 0.4, lambda: chance.random() < strength)
    if isinstance(given, Coupled) and params.seed is None:
        return None
    if greedy or params.seed is not None:
        drifting = fault == "seed_depends_on_draft" and params.seed is not None
        return DriftingNoise(params) if drifting else None
    wrong: Rejection
    if fault == "draft_temperature":
        wrong = OtherTemperature(params, factor, rng)
    elif fault == "rejection_on_fixed_tokens":
        wrong = FixedTokens(params, rng)
    elif fault == "target_ignores_top_k":
        # Temperature, top-k and top-p shape the draft's distribution and not the target's.
        wrong = Rejection(SamplingParams(1.0), rng)
    else:
        return None
    return SometimesWrong(wrong, params, rng, strength)


def audit(task: tuple[str, int, int], share: float | None = None) -> tuple[str, int, str, list[Check]]:
    """One audit: (fault, seed, verdict, checks)."""
    fault, seed, samples = task
    chance = random.Random(seed + 5)
    prompts = [
        "".join(chr(FIRST_LETTER + chance.randrange(1, VOCAB)) for _ in range(chance.randint(3, 12)))
        for _ in range(24)
    ]
    checks = audit_pair(subject(fault, seed, share), prompts, max_tokens=20, samples=samples)
    return fault, seed, verdict(checks), checks


def limits(runs: int, seed: int, samples: int) -> None:
    """How often faults are seen that strike rarely; a table."""
    print(f"| strikes at | {' | '.join(f'`{fault}`' for fault in MILD)} |\n| --- |{' --- |' * len(MILD)}")
    for row, share in enumerate(RARELY):
        seen = []
        for column, fault in enumerate(MILD):
            first = seed + 100_000 + 1000 * (row * len(MILD) + column)
            wrong = sum(audit((fault, first + run, samples), share)[2] == "wrong" for run in range(runs))
            low, high = wilson(wrong, runs)
            seen.append(f"{wrong} of {runs} ({low:.0%}–{high:.0%})")
        print(f"| {share:.0%} of the drafted tokens | {' | '.join(seen)} |", flush=True)


def report(kind: str, runs: Sequence[tuple[str, int, str, list[Check]]]) -> bool:
    """Print a row of the table; whether every run was judged rightly."""
    changes = kind in CHANGES_OUTPUT
    wrong = 0
    by: Counter[str] = Counter()
    for _, seed, answer, checks in runs:
        failed = [check for check in checks if check.status == "fail"]
        by.update(check.name for check in failed)
        wrong += answer == "wrong"
        if (answer == "wrong") != changes:
            print(f"{kind}, seed {seed}: {answer}: {failed}", file=sys.stderr)
    low, high = wilson(wrong, len(runs)) if runs else (0.0, 1.0)
    names = ", ".join(f"{name} {times}" for name, times in by.most_common())
    print(
        f"| `{kind}` | {'yes' if changes else 'no'} | {len(runs)} | {wrong} ({low:.0%}–{high:.0%}) "
        f"| {names or '–'} |",
        flush=True,
    )
    return wrong == (len(runs) if changes else 0)


def main() -> int:
    """Run and print; exit status 1 if a fault that changes the output passes, or a healthy engine fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--healthy", type=int, default=100)
    parser.add_argument("--runs", type=int, default=10, help="per fault; twice as many of the mild ones")
    parser.add_argument("--only", action="append", choices=("healthy", *CHANGES_OUTPUT, *SPEED_ONLY))
    parser.add_argument("--seed", type=int, default=910_000)
    parser.add_argument("--samples", type=int, default=300, help="per prompt and sampling setting, at first")
    parser.add_argument(
        "--limits", action="store_true", help="instead: how rarely may a mild fault strike and still be seen?"
    )
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.limits:
        limits(options.runs, options.seed, options.samples)
        return 0
    kinds = options.only or ["healthy", *CHANGES_OUTPUT, *SPEED_ONLY]
    print(
        "| put in | changes the output | runs | called wrong (95 %) | by |\n| --- | --- | --- | --- | --- |",
        flush=True,
    )
    fine = True
    with ProcessPoolExecutor(options.processes) as pool:
        for place, kind in enumerate(kinds):
            count = options.healthy if kind == "healthy" else options.runs * (2 if kind in MILD else 1)
            first = options.seed + 1000 * place
            tasks = [(kind, first + run, options.samples) for run in range(count)]
            fine &= report(kind, list(pool.map(audit, tasks)))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
