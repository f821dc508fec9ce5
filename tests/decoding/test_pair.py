"""Pair.complete: the cycle from Python, on scripted models and on the bundled pair."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

import specpilot
from specpilot.control import ControllerConfig, StopCause
from specpilot.decoding.vocabulary import TrimmedModel
from specpilot.models.base import ContextLimitError, FloatArray, ForwardItem
from specpilot.pair import Pair, load_pair
from specpilot.targets.scripted import ScriptedLM
from specpilot.testing import plain_greedy

LETTERS = "abcdefghij. "
LOOSE = ControllerConfig(pass_budget=6.0, slo_p95_ms=3_600_000.0)


class Letters:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(LETTERS[token] for token in token_ids)


def make(
    draft: ScriptedLM | None = None, eos: frozenset[int] = frozenset({10}), timeout_ms: float | None = None
) -> Pair:
    target = ScriptedLM(seed=2, eos_token_ids=eos, context_limit=64)
    return Pair(
        target,
        draft or target.variant(noise=0.3),
        Letters(),
        config=LOOSE,
        stores=Pair.new_stores(),
        draft_timeout_ms=timeout_ms,
    )


def test_a_completion_is_the_targets_own() -> None:
    pair = make()
    for prompt in ("abc", "b", "", "jjj hab"):
        completion = pair.complete(prompt, 10)
        # An empty prompt starts from the end-of-text token.
        expected = plain_greedy(pair.target, pair.encode(prompt) or [10], 10)
        got = list(completion.token_ids)
        assert got == expected[: len(got)]
        assert completion.text == pair.decode([token for token in got if token != 10])
        assert completion.target_passes == len(completion.cycles)
        assert sum(len(cycle.emitted) for cycle in completion.cycles) == len(got)
        if completion.stop_cause.complete:
            assert got == expected
        else:
            assert (completion.stop_cause, completion.reason[:6]) == (StopCause.BUDGET, "budget")


def test_token_ids_will_do_as_a_prompt() -> None:
    assert make().complete([0, 1, 2], 6).token_ids == make().complete("abc", 6).token_ids


def test_a_stop_string_may_be_given_alone() -> None:
    pair = make()
    text = pair.complete("abc", 12).text
    stopped = pair.complete("abc", 12, stop=text[2])
    assert stopped.text == text[: text.index(text[2])]
    assert stopped.stop_cause is StopCause.STOP
    assert pair.complete("abc", 12, stop=["zz", text[2]]).text == stopped.text


def test_a_seed_gives_the_same_text_whatever_was_drafted() -> None:
    texts = {
        seed: [
            make().complete("abc", 12, temperature=0.9, seed=seed, max_draft=depth).token_ids
            for depth in (0, 1, 4, None)
        ]
        for seed in (1, 2)
    }
    for outputs in texts.values():
        longest = max(outputs, key=len)
        assert all(output == longest[: len(output)] for output in outputs)
    assert texts[1] != texts[2]


@pytest.mark.parametrize("drafter", ["model", "both"])
def test_unseeded_sampling_uses_trees_where_the_policy_plans_them(drafter: str) -> None:
    """Under rejection sampling every block would be a chain. Unseeded texts differ from one another."""
    target = ScriptedLM(seed=2, context_limit=64)
    pair = Pair(
        target,
        target.variant(noise=0.8),
        Letters(),
        config=replace(LOOSE, max_nodes=16),
        drafter=drafter,
    )
    found = [pair.complete("abc", 24, temperature=1.0) for _ in range(12)]
    assert any(not cycle.block.is_chain for completion in found for cycle in completion.cycles)
    assert len({completion.token_ids for completion in found}) > 1


def test_sessions_make_a_completion_no_different() -> None:
    pair = make()
    text = "abcdefghijabcdefghij"
    cold = pair.complete(text, 8)
    pair.complete(text[:17], 8, session_id="s")
    warm = pair.complete(text, 8, session_id="s")
    shorter = min(len(cold.token_ids), len(warm.token_ids))
    assert warm.token_ids[:shorter] == cold.token_ids[:shorter]


def test_prompts_that_do_not_fit() -> None:
    pair = make()
    with pytest.raises(ContextLimitError, match="truncate=True"):
        pair.complete("a" * 70, 10)
    long = "abcdefghij" * 7
    assert pair.complete(long, 10, truncate=True).token_ids == pair.complete(long[-54:], 10).token_ids
    with pytest.raises(ContextLimitError, match="max_tokens"):
        pair.complete("a", 64)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"max_draft": -1}, "max_draft"),
        ({"max_draft": 2.5}, "max_draft: 2.5 is not a whole number"),
        ({"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ({"stop": 5}, "stop: 5 is not a string"),
        ({"top_p": "1"}, "top_p: '1' is not a number"),
        ({"slo_ms": 0.0}, "slo_ms"),
    ],
)
def test_bad_arguments_are_named_and_leave_the_pair_usable(options: dict[str, object], field: str) -> None:
    pair = make()
    with pytest.raises(ValueError, match=field):
        pair.complete("abc", **options)  # type: ignore[arg-type]
    assert pair.complete("abc", 4).stop_cause is StopCause.MAX_TOKENS


class Broken(ScriptedLM):
    def __init__(self, vocab_size: int = 12) -> None:
        super().__init__(vocab_size, seed=2)
        self.broken = True

    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        if self.broken:
            raise RuntimeError("planted")
        return super().forward(items)


@pytest.mark.parametrize("token", [-1, 12, 1.5])
def test_a_token_that_the_model_does_not_have_is_refused(token: int) -> None:
    """Before it costs a pass of the budget."""
    pair = make()
    with pytest.raises(ValueError, match=rf"prompt\[1\]: {token} is not a token id in 0…11"):
        pair.complete([3, token], 4)


def test_an_infinite_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature: inf is not ≥ 0 and finite"):
        make().complete("abc", 4, temperature=float("inf"))


@pytest.mark.parametrize("timeout_ms", [None, 5000.0])
def test_a_broken_draft_model_costs_no_completion(timeout_ms: float | None) -> None:
    pair = make(Broken(), timeout_ms=timeout_ms)
    expected = plain_greedy(pair.target, [0, 1], 4)
    completion = pair.complete("ab", 4)
    assert list(completion.token_ids) == expected
    assert any((cycle.fault or "").startswith("exception") for cycle in completion.cycles)


def test_a_broken_target_is_an_error_with_its_reason() -> None:
    target = Broken()
    pair = Pair(target, ScriptedLM(seed=2), Letters(), config=LOOSE)
    completion = pair.complete("ab", 4)
    assert (completion.stop_cause, completion.reason) == (StopCause.ERROR, "RuntimeError: planted")
    assert (completion.text, completion.target_passes) == ("", 1)
    target.broken = False
    assert pair.complete("ab", 4).stop_cause is StopCause.MAX_TOKENS


class Interrupted(ScriptedLM):
    def forward(self, items: Sequence[ForwardItem]) -> list[FloatArray]:
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_in_flight() -> None:
    target = ScriptedLM(seed=2)
    pair = Pair(target, target.variant(noise=0.1), Letters(), config=LOOSE)
    healthy, pair.target.forward = target.forward, Interrupted(seed=2).forward  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pair.complete("ab", 4)
    pair.target.forward = healthy  # type: ignore[method-assign]
    assert pair.complete("ab", 4).stop_cause is StopCause.MAX_TOKENS


def test_pairs_must_share_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocabulary of 13 tokens, not the 12"):
        make(ScriptedLM(13))
    trimmed = TrimmedModel(ScriptedLM(13, seed=2), 12)
    assert trimmed.forward([ForwardItem(trimmed.new_cache(), [1, 2])])[0].shape == (2, 12)
    with pytest.raises(ValueError, match="vocab_size"):
        TrimmedModel(ScriptedLM(13), 14)


def test_importing_the_package_loads_no_engine() -> None:
    program = (
        "import sys, specpilot\n"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'tokenizers', 'onnx'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert specpilot.load_pair is load_pair
    with pytest.raises(AttributeError):
        specpilot.nothing  # noqa: B018


# --- the bundled pair -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> Pair:
    pytest.importorskip("onnxruntime")
    return load_pair(config=LOOSE)


def test_the_bundled_pair_completes(bundled: Pair) -> None:
    for prompt in ("The committee recommends that", "The", ""):
        completion = bundled.complete(prompt, 12)
        expected = plain_greedy(bundled.target, bundled.encode(prompt) or [0], 12)
        assert completion.text
        assert list(completion.token_ids) == expected[: len(completion.token_ids)]


def test_a_draft_with_another_tokenizer_is_refused(bundled: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(str(resources.files("specpilot").joinpath("bundled", "draft")), other)
    path = other / "tokenizer.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = record["model"]["vocab"]
    first, second = list(vocabulary)[1000:1002]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer is not the target's"):
        load_pair(draft=other)


def test_unknown_engines_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine: 'vllm' is not one of onnx, transformers"):
        load_pair(engine="vllm")
    with pytest.raises(ValueError, match="does not exist"):
        load_pair(tmp_path)
