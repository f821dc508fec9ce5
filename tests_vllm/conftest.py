"""Engines and references, each made once; run these tests with ``make test-vllm``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests_vllm import steered


@dataclass(frozen=True)
class Pair:
    """A target, its draft, and the target's own greedy output for every prompt."""

    method: str
    target: str
    draft: str
    prompts: list[str]
    greedy: list[list[int]]


@pytest.fixture(scope="session")
def second_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A target with random weights, and as its draft the target with noise: some drafts are accepted."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("second_pair")
    for role, noise in (("target", 0.0), ("draft", 0.03)):
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * weight.std().nan_to_num(0.0) * torch.randn_like(weight)
        model.save_pretrained(folder / role)
        AutoTokenizer.from_pretrained(steered.bundled("target")).save_pretrained(folder / role)
    return str(folder / "target"), str(folder / "draft")


@pytest.fixture(scope="session")
def greedy(
    tmp_path_factory: pytest.TempPathFactory, second_pair: tuple[str, str]
) -> dict[str, list[list[int]]]:
    """Model folder → greedy outputs, from vLLM in a process of its own without the plugin."""
    folder = tmp_path_factory.mktemp("greedy")
    (folder / "prompts.json").write_text(json.dumps(steered.prompts()), encoding="utf-8")
    found = {}
    for number, target in enumerate((steered.bundled("target"), second_pair[0])):
        out = folder / f"{number}.json"
        script = Path(__file__).with_name("steered.py")
        subprocess.run([sys.executable, script, target, folder / "prompts.json", out], check=True)
        found[target] = json.loads(out.read_text(encoding="utf-8"))
    return found


# n-grams last: they import numba, whose llvmlite vLLM 0.32 stumbles over when it makes the next engine.
@pytest.fixture(scope="module", params=["draft_model", "second_pair", "ngram"])
def pair(
    request: pytest.FixtureRequest, second_pair: tuple[str, str], greedy: dict[str, list[list[int]]]
) -> Pair:
    """The bundled pair with its draft model and with n-grams, and the second pair."""
    folders = (steered.bundled("target"), steered.bundled("draft"))
    target, draft = second_pair if request.param == "second_pair" else folders
    method = "ngram" if request.param == "ngram" else "draft_model"
    return Pair(method, target, draft, steered.prompts(), greedy[target])


@pytest.fixture(scope="module")
def engine(pair: Pair) -> Iterator[steered.SteeredEngine]:
    """One engine for all tests on a pair."""
    engine = steered.SteeredEngine(pair.method, pair.target, pair.draft)
    yield engine
    engine.close()
