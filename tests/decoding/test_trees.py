"""Token trees end to end: leaves beside the draft's chain, random trees, both engines, sampling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specpilot.control import Controller
from specpilot.decoding.acceptance import Greedy
from specpilot.decoding.clock import VirtualClock
from specpilot.decoding.cycle import LiveExecutor
from specpilot.decoding.loop import ServeLoop
from specpilot.decoding.request import DecodingRequest
from specpilot.decoding.rule import AcceptanceRule
from specpilot.decoding.types import Acceptance, Block, Draft
from specpilot.diagnosis.columns import SKIPPED, read_columns
from specpilot.diagnosis.findings import diagnose
from specpilot.drafters.base import DraftItem
from specpilot.drafters.model import ModelDrafter
from specpilot.models.base import CausalLM, FloatArray, ForwardItem
from specpilot.targets.model import ModelTarget
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import StaticController, decode
from specpilot.trace import CycleRecord, TracedController, TraceRecord, header_for, read_trace, write_trace
from specpilot.trace.validate import validate

Models = tuple[CausalLM, CausalLM]
NEAR_TIE = 1e-3
NEW_TOKENS = 12


def greedy(model: CausalLM, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """Plain decoding: the tokens, and by how much each was preferred."""
    cache, feed = model.new_cache(), list(prompt)
    tokens: list[int] = []
    margins: list[float] = []
    while len(tokens) < count and (not tokens or tokens[-1] not in model.eos_token_ids):
        row = model.forward([ForwardItem(cache, feed, logits_from=len(feed) - 1)])[0][0]
        second, first = np.partition(row, -2)[-2:]
        feed = [int(row.argmax())]
        tokens += feed
        margins.append(float(first - second))
    return tokens, margins


def same(output: Sequence[int], wanted: Sequence[int], margins: Sequence[float]) -> bool:
    """Whether the outputs are equal, or part at a near-tie."""
    for got, own, margin in zip(output, wanted, margins, strict=False):
        if got != own:
            return margin < NEAR_TIE
    return len(output) == len(wanted)


class RandomTrees:
    """Trees of random shape whose nodes are the target's own tokens half of the time."""

    name = "random trees"

    def __init__(self, vocab_size: int, truth: dict[str, list[int]], seed: int) -> None:
        self.vocab_size = vocab_size
        self.truth, self.rng = truth, random.Random(seed)
        self.off_chain = 0

    def open(self, request_id: str, prompt: Sequence[int], session_id: str | None = None) -> int:
        return 0

    def close(self, request_id: str) -> None:
        pass

    def propose(self, items: Sequence[DraftItem]) -> list[Draft]:
        return [Draft(self._tree(item)) for item in items]

    def _tree(self, item: DraftItem) -> Block:
        future = self.truth[item.request_id][len(item.context) :]
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        while len(tokens) < item.max_nodes:
            parent = self.rng.randrange(-1, len(tokens))
            depth = 0 if parent < 0 else depths[parent] + 1
            if depth >= item.max_draft:
                continue
            right = depth < len(future) and self.rng.random() < 0.5
            tokens.append(future[depth] if right else self.rng.randrange(self.vocab_size))
            parents.append(parent)
            depths.append(depth)
        block = Block(tuple(tokens), tuple(parents))
        self.off_chain += not block.is_chain
        return block


def run_random_trees(target: CausalLM, seed: int, depth: int, nodes: int) -> None:
    rng = random.Random(seed)
    prompts = {
        f"r{i}": [rng.randrange(target.vocab_size) for _ in range(rng.randint(1, 30))] for i in range(3)
    }
    plain = {name: greedy(target, prompt, NEW_TOKENS) for name, prompt in prompts.items()}
    truth = {name: [*prompts[name], *plain[name][0]] for name in prompts}
    requests = [
        DecodingRequest(name, prompt, NEW_TOKENS, eos_token_ids=target.eos_token_ids)
        for name, prompt in prompts.items()
    ]
    drafter = RandomTrees(target.vocab_size, truth, seed)
    decode(ModelTarget(target), drafter, requests, StaticController(depth, nodes=nodes), max_batch=3)
    for request in requests:
        assert same(request.output, *plain[request.request_id])


@pytest.mark.parametrize("engine", ["onnx_models", "transformers_models"])
def test_random_trees_are_greedy_exact(engine: str, request: pytest.FixtureRequest) -> None:
    """Ragged batches of three requests' trees; the engine's cache is used again after each tree."""
    models: Models = request.getfixturevalue(engine)

    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 10))
    def check(seed: int, depth: int, nodes: int) -> None:
        run_random_trees(models[0], seed, depth, nodes)

    check()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 26))
def test_random_trees_on_the_scripted_model(seed: int, depth: int, nodes: int) -> None:
    run_random_trees(ScriptedLM(seed=seed % 7, scale=2.0), seed, depth, nodes)


def test_a_lost_tree_mask_would_show(onnx_models: Models) -> None:
    """Planted: the engine takes the tree for a chain. The same comparison finds it."""

    class Chains:
        def __init__(self, model: CausalLM) -> None:
            self.name, self.vocab_size = model.name, model.vocab_size
            self.context_limit, self.eos_token_ids = model.context_limit, model.eos_token_ids
            self.new_cache = model.new_cache

        def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
            return onnx_models[0].forward(
                [ForwardItem(item.cache, item.token_ids, None, item.logits_from) for item in items]
            )

    target = onnx_models[0]
    prompt = list(range(5, 25))
    tokens, margins = greedy(target, prompt, NEW_TOKENS)
    drafter = RandomTrees(target.vocab_size, {"r": [*prompt, *tokens]}, 1)
    request = DecodingRequest("r", prompt, NEW_TOKENS)
    decode(ModelTarget(Chains(target)), drafter, [request], StaticController(4, nodes=12))
    assert drafter.off_chain
    assert not same(request.output, tokens, margins)


@pytest.mark.parametrize("engine", ["onnx_models", "transformers_models"])
def test_leaves_beside_the_drafts_chain(engine: str, request: pytest.FixtureRequest) -> None:
    """Greedy exact, some leaf is followed, and the draft's cache is right after it.

    After every cycle the next chain's first token is what a fresh draft cache gives: a leaf's keys and values
    are not in the draft's cache and must be fed again.
    """
    target, draft = request.getfixturevalue(engine)
    rng = random.Random(5)
    followed = 0
    for number in range(6):
        prompt = [rng.randrange(target.vocab_size) for _ in range(12)]
        asked = DecodingRequest(f"{number}", prompt, NEW_TOKENS, eos_token_ids=target.eos_token_ids)
        decode(ModelTarget(target), ModelDrafter(draft), [asked], StaticController(3, nodes=9))
        assert same(asked.output, *greedy(target, prompt, NEW_TOKENS))
        context = list(prompt)
        for cycle in asked.details:
            if cycle.block.token_ids:
                fresh = ForwardItem(draft.new_cache(), context, logits_from=len(context) - 1)
                row = draft.forward([fresh])[0][0]
                assert row.max() - row[cycle.block.token_ids[0]] < NEAR_TIE
            chain = cycle.block.token_ids[: cycle.block.depth]
            followed += tuple(cycle.accepted) != tuple(chain[: len(cycle.accepted)])
            context += cycle.emitted
    assert followed


def traced_trees(rule: AcceptanceRule) -> tuple[DecodingRequest, list[TraceRecord]]:
    """One greedy request in trees of nine nodes, and its trace."""
    target, draft = ScriptedLM(seed=3), ScriptedLM(seed=3, noise=0.8)
    executor = LiveExecutor(ModelTarget(target), ModelDrafter(draft), keep_details=True)
    records: list[TraceRecord] = []
    controller = TracedController(StaticController(3, nodes=9), records.append)
    executor.report_evidence(controller.recorder.evidence)
    asked = DecodingRequest("r", [1, 2], 40, rule=rule)
    executor.add(asked)
    ServeLoop(controller, executor, VirtualClock()).run([asked.info(arrival_s=0.0)])
    return asked, records


class FirstChild(Greedy):
    """Planted: what was proposed first is believed where the target chose none of the children."""

    def accept(
        self, block: Block, q: FloatArray | None, target_logits: FloatArray, position: int
    ) -> Acceptance:
        found = super().accept(block, q, target_logits, position)
        last = found.path[-1] if found.path else -1
        if last not in block.parents:
            return found
        child = block.parents.index(last)
        return Acceptance((*found.path, child), int(target_logits[child + 1].argmax()))


def test_an_unverified_branch_is_proved_by_the_trace(tmp_path: Path) -> None:
    for rule, faulty in ((Greedy(), False), (FirstChild(), True)):
        _, records = traced_trees(rule)
        path = tmp_path / "trace.jsonl"
        write_trace(path, header_for(Controller(), "test"), records)
        assert validate(path).cycles > 5
        trace = read_columns(path)
        assert bool((trace.odd & SKIPPED).any()) is faulty
        found = [finding.cause for finding in diagnose(trace).findings]
        assert ("unverified_emission" in found) is faulty


def test_a_traced_run_with_trees_is_a_valid_trace(tmp_path: Path) -> None:
    """Counts by hand: of a tree the main chain is proposed and accepted, what is beside it counts apart."""
    asked, records = traced_trees(Greedy())
    cycles = [record for record in records if isinstance(record, CycleRecord)]
    for told in cycles:
        assert told.evidence.emitted_verdicts == (1,) * told.emitted
    beside = 0
    for told, seen in zip(cycles, asked.details, strict=True):
        chain = seen.block.token_ids[: told.proposed]
        assert told.proposed <= min(seen.block.depth, told.drafted)
        assert told.proposed + told.side_proposed == len(seen.block)
        assert told.verified_tokens >= len(seen.block) + 1
        agreed = next((i for i, (a, b) in enumerate(zip(chain, seen.accepted, strict=False)) if a != b), None)
        on_chain = min(len(chain), len(seen.accepted)) if agreed is None else agreed
        if told.ended is None:
            assert (told.accepted, told.side_accepted) == (on_chain, len(seen.accepted) - on_chain)
            assert told.emitted == told.accepted + told.side_accepted + 1
        beside += told.side_accepted
    assert beside > 3
    path = tmp_path / "trace.jsonl"
    write_trace(path, header_for(Controller(), "test"), records)
    assert validate(path).cycles == len(cycles)
    assert [record for record in read_trace(path) if isinstance(record, CycleRecord)] == cycles
    assert not read_columns(path).odd.any()
