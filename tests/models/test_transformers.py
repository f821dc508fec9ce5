"""The transformers engine: what every engine must do, its own refusals, and agreement with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from specpilot.models.base import CausalLM, ForwardItem  # noqa: E402
from specpilot.models.checks import ALL_CHECKS, check_batch, check_keep_path, check_tree  # noqa: E402
from specpilot.models.onnx import OnnxCausalLM  # noqa: E402
from specpilot.models.transformers import TransformersCausalLM  # noqa: E402

WriteLlama = Callable[..., Path]


def load(folder: Path) -> TransformersCausalLM:
    return TransformersCausalLM(folder, device="cpu")


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_protocol(check: Callable[[CausalLM], None], write_llama: WriteLlama) -> None:
    check(load(write_llama()))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped heads, tied": {},
    "all heads, untied": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "one key head": {"num_key_value_heads": 1},
    "float16": {"dtype": "F16"},
    "bfloat16": {"dtype": "BF16"},
    "wide heads": {"head_dim": 32},
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "llama3 rope": {"rope_parameters": LLAMA3},
    "old llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500.0},
    "all biases": {
        "biased": ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "biased": ("q_proj", "k_proj", "v_proj"),
        "sliding_window": 16,
        "use_sliding_window": False,
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_both_engines_agree(changes: dict[str, Any], write_llama: WriteLlama) -> None:
    folder = write_llama(**changes)
    tokens = np.random.default_rng(0).integers(50, size=60).tolist()
    parents = [*range(-1, 55), 50, 56, 50, 58]
    rows = []
    for model in (OnnxCausalLM(folder), load(folder)):
        rows += model.forward([ForwardItem(model.new_cache(), tokens, parents)])
    assert np.abs(rows[0]).max() > 1
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)


def test_loaded_model_with_eager_attention(write_llama: WriteLlama) -> None:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        write_llama(), attn_implementation="eager", dtype=torch.float32
    )
    model = TransformersCausalLM(loaded, name="mine")
    assert model.name == "mine"
    for check in (check_tree, check_batch, check_keep_path):
        check(model)
    with pytest.raises(ValueError, match="keeps its own"):
        TransformersCausalLM(loaded, device="cpu")


def test_another_architecture() -> None:
    """Learned positions, a fused projection, no grouped heads: nothing here is particular to Llama."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = TransformersCausalLM(transformers.GPT2LMHeadModel(config), name="gpt2")
    assert model.context_limit == 64
    assert model.eos_token_ids == {1}
    for check in ALL_CHECKS:
        check(model)


def test_half_precision_stays_finite(write_llama: WriteLlama) -> None:
    model = TransformersCausalLM(write_llama(), device="cpu", dtype="bfloat16")
    caches = [model.new_cache() for _ in range(3)]
    rows = model.forward([ForwardItem(cache, [1] * (index + 1)) for index, cache in enumerate(caches)])
    assert all(row.dtype == np.float32 and np.isfinite(row).all() for row in rows)


def test_properties(write_llama: WriteLlama) -> None:
    model = load(write_llama("somebody", eos_token_id=[3, 7]))
    assert (model.name, model.vocab_size, model.context_limit) == ("somebody", 50, 64)
    assert model.eos_token_ids == {3, 7}
    assert load(write_llama("endless", eos_token_id=None)).eos_token_ids == frozenset()


def small(kind: str, **changes: Any) -> Any:
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config)


def test_sliding_window_is_refused() -> None:
    with pytest.raises(ValueError, match="sliding window"):
        TransformersCausalLM(small("mistral", sliding_window=16), name="m")


def test_model_without_positions_is_refused() -> None:
    config = transformers.BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="takes no position_ids"):
        TransformersCausalLM(transformers.BloomForCausalLM(config), name="m")


def test_attention_without_a_mask_is_refused() -> None:
    model = small("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        TransformersCausalLM(model, name="m")


def test_unknown_context_is_refused_unless_given() -> None:
    model = small("llama")
    model.config.max_position_embeddings = 0
    with pytest.raises(ValueError, match="give context_limit"):
        TransformersCausalLM(model, name="m")
    assert TransformersCausalLM(model, name="m", context_limit=12).context_limit == 12


def test_another_models_cache(write_llama: WriteLlama) -> None:
    folder = write_llama()
    one, two = load(folder), load(folder)
    with pytest.raises(ValueError, match="make it with new_cache"):
        one.forward([ForwardItem(two.new_cache(), [1])])


def test_failure_in_the_engine_leaves_all_caches_as_they_were(
    write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(write_llama())
    caches = [model.new_cache() for _ in range(3)]
    items = [ForwardItem(cache, [1, 2, 3]) for cache in caches]
    monkeypatch.setattr(model._model.model.norm, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.forward(items)
    assert [list(cache.token_ids) for cache in caches] == [[], [], []]
    monkeypatch.undo()
    rows = model.forward(items)
    (fresh,) = model.forward([ForwardItem(model.new_cache(), [1, 2, 3])])
    assert np.abs(rows[2] - fresh).max() < 1e-4


def test_cache_grows_and_says_so(write_llama: WriteLlama) -> None:
    model = load(write_llama(max_position_embeddings=500))
    cache = model.new_cache()
    assert cache.nbytes == 0
    row_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head_dim, float32
    sizes = []
    for _ in range(4):
        model.forward([ForwardItem(cache, [5] * 56)])
        sizes.append(cache.nbytes // row_bytes)
    assert sizes == [64, 128, 192, 320]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_protocol_on_a_gpu(check: Callable[[CausalLM], None], write_llama: WriteLlama) -> None:
    check(TransformersCausalLM(write_llama(), device="cuda", dtype="float32"))
