"""The ONNX engine: what every engine must do, and what is its own (files, graphs, failures)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.models import llama_graph
from specpilot.models import onnx as onnx_engine
from specpilot.models.base import CausalLM, ForwardItem
from specpilot.models.checks import ALL_CHECKS, check_batch, check_tree
from specpilot.models.onnx import OnnxCausalLM
from specpilot.models.onnx_batch import OnnxBatch
from specpilot.models.onnx_cache import OnnxCache

WriteLlama = Callable[..., Path]
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(model: CausalLM) -> Any:
    (rows,) = model.forward([ForwardItem(model.new_cache(), TOKENS)])
    return rows


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_protocol(check: Callable[[CausalLM], None], write_llama: WriteLlama) -> None:
    check(OnnxCausalLM(write_llama()))


def test_a_small_model_waits_for_a_full_batch(
    write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = OnnxBatch.run

    def counted(batch: OnnxBatch, parts: Any) -> Any:
        sizes.append(len(parts))
        return run(batch, parts)

    monkeypatch.setattr(OnnxBatch, "run", counted)

    def passes(model: OnnxCausalLM, widths: list[int]) -> list[int]:
        sizes.clear()
        model.forward([ForwardItem(model.new_cache(), [1] * width) for width in widths])
        return list(sizes)

    folder = write_llama()
    assert passes(OnnxCausalLM(folder), [1, 1, 1]) == []
    assert passes(OnnxCausalLM(folder), [2, 20, 3, 1, 16, 4, 5]) == [4]
    monkeypatch.setattr(onnx_engine, "_STREAMED_BYTES", 0)
    assert passes(OnnxCausalLM(folder), [2, 20, 3, 1, 16, 4, 5]) == [4, 2]
    assert passes(OnnxCausalLM(folder), [2]) == []


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
def test_protocol_without_batching(check: Callable[[CausalLM], None], write_llama: WriteLlama) -> None:
    check(OnnxCausalLM(write_llama(), batching=False))


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats tiny models as large ones, which share a pass from two items on."""
    monkeypatch.setattr(onnx_engine, "_STREAMED_BYTES", 0)


@pytest.mark.usefixtures("small_is_large")
def test_protocol_with_idle_slots(write_llama: WriteLlama) -> None:
    check_batch(OnnxCausalLM(write_llama()))


@pytest.mark.usefixtures("small_is_large")
def test_any_batch_equals_one_at_a_time(write_llama: WriteLlama) -> None:
    """Requests come, go, stay away for a pass, roll back and outgrow their buffers."""
    model = OnnxCausalLM(write_llama(max_position_embeddings=200))
    plain = OnnxCausalLM(write_llama(max_position_embeddings=200), batching=False)
    rng = np.random.default_rng(0)
    pairs = [(model.new_cache(), plain.new_cache()) for _ in range(7)]
    for _ in range(60):
        chosen = [pairs[index] for index in rng.permutation(7)[: rng.integers(1, 8)]]
        items = []
        for pair in chosen:
            held = len(pair[0].token_ids)
            if held > 120 or rng.random() < 0.3:
                held = int(rng.integers(0, held + 1))
                for cache in pair:
                    cache.truncate(held)
            width = int(rng.integers(1, 12)) if rng.random() < 0.9 else 40
            tokens = rng.integers(50, size=width).tolist()
            parents = [int(rng.integers(-1, i)) for i in range(width)] if rng.random() < 0.5 else None
            items.append((tokens, parents, int(rng.integers(width))))
        together = model.forward(
            [ForwardItem(pair[0], *item) for pair, item in zip(chosen, items, strict=True)]
        )
        for pair, item, rows in zip(chosen, items, together, strict=True):
            (alone,) = plain.forward([ForwardItem(pair[1], *item)])
            assert rows.shape == alone.shape
            assert np.abs(rows - alone).max() < 1e-4
        if rng.random() < 0.2:
            index = int(rng.integers(7))
            pairs[index] = (model.new_cache(), plain.new_cache())


def test_threads_may_share_a_model(write_llama: WriteLlama) -> None:
    model = OnnxCausalLM(write_llama())
    whole = logits(model)

    def work(_: int) -> float:
        worst = 0.0
        for _ in range(20):
            rows = model.forward([ForwardItem(model.new_cache(), TOKENS) for _ in range(4)])
            worst = max(worst, *(float(np.abs(row - whole).max()) for row in rows))
        return worst

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(4))) < 1e-4


def test_two_threads(write_llama: WriteLlama) -> None:
    model = OnnxCausalLM(write_llama(), threads=2)
    check_tree(model)
    check_batch(model)


def test_name_and_properties(write_llama: WriteLlama) -> None:
    folder = write_llama("somebody", eos_token_id=[3, 7])
    model = OnnxCausalLM(folder)
    assert (model.name, model.vocab_size, model.context_limit) == ("somebody", 50, 64)
    assert model.eos_token_ids == {3, 7}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert OnnxCausalLM(folder, name="other").eos_token_ids == {9}


def test_no_eos(write_llama: WriteLlama) -> None:
    assert OnnxCausalLM(write_llama(eos_token_id=None)).eos_token_ids == frozenset()


def test_graph_is_small_and_holds_no_weights(write_llama: WriteLlama) -> None:
    folder = write_llama(vocab_size=5000)
    OnnxCausalLM(folder)
    assert (folder / "model.onnx").stat().st_size < 30_000 < (folder / "model.safetensors").stat().st_size


def test_graph_is_built_once(write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_llama()
    first = logits(OnnxCausalLM(folder))
    monkeypatch.setitem(sys.modules, "onnx", None)  # importing it now fails
    assert (logits(OnnxCausalLM(folder)) == first).all()


def test_new_weights_of_the_same_layout_need_no_new_graph(
    write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_llama()
    first = logits(OnnxCausalLM(folder))
    write_llama(seed=1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert abs(logits(OnnxCausalLM(folder)) - first).max() > 0.1


def test_graph_is_rebuilt_when_the_weights_move(write_llama: WriteLlama) -> None:
    folder = write_llama()
    first = logits(OnnxCausalLM(folder))
    write_llama(padding=400)
    assert (logits(OnnxCausalLM(folder)) == first).all()


def test_graph_is_rebuilt_when_the_configuration_changes(write_llama: WriteLlama) -> None:
    folder = write_llama()
    first = logits(OnnxCausalLM(folder))
    write_llama(rope_theta=100.0)
    changed = logits(OnnxCausalLM(folder))
    assert abs(changed - first).max() > 1e-3
    assert (changed == logits(OnnxCausalLM(write_llama("fresh", rope_theta=100.0)))).all()


def test_damaged_graph_is_rebuilt(write_llama: WriteLlama) -> None:
    folder = write_llama()
    first = logits(OnnxCausalLM(folder))
    (folder / "model.onnx").write_bytes(b"not a graph")
    assert (logits(OnnxCausalLM(folder)) == first).all()


def test_read_only_folder(write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_llama()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    found = logits(OnnxCausalLM(folder))
    assert not (folder / "model.onnx").exists()
    monkeypatch.undo()
    assert (logits(OnnxCausalLM(folder)) == found).all()


def test_folder_of_links_as_in_a_hub_cache(write_llama: WriteLlama, tmp_path: Path) -> None:
    real = write_llama("real")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for index, file in enumerate(sorted(real.iterdir())):
        file.rename(tmp_path / "blobs" / f"blob{index}")
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/blob{index}")
    found = logits(OnnxCausalLM(tmp_path / "snapshot"))
    with pytest.raises(ValueError, match="links into another folder"):
        llama_graph.export_onnx(tmp_path / "snapshot")
    assert (logits(OnnxCausalLM(write_llama("again"))) == found).all()


def test_shards(write_llama: WriteLlama) -> None:
    whole = logits(OnnxCausalLM(write_llama("whole")))
    assert (logits(OnnxCausalLM(write_llama("parts", shards=3))) == whole).all()


def test_without_onnx_the_message_names_the_extra(
    write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_llama()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"specpilot\[export\]"):
        OnnxCausalLM(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2'"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window: 16"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"head_dim": 8}, "head_dim: 8"),
        ({"num_attention_heads": 3}, "num_key_value_heads: 2"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type: 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings: None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_unsupported_configurations(changes: dict[str, Any], message: str, write_llama: WriteLlama) -> None:
    folder = write_llama(**changes)
    with pytest.raises(ValueError, match=message):
        OnnxCausalLM(folder)


def test_weights_that_do_not_fit_the_configuration(write_llama: WriteLlama) -> None:
    folder = write_llama()
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (
        ({"vocab_size": 51}, r"has shape \[50, 32\], config.json says \[51, 32\]"),
        ({"num_hidden_layers": 1}, "are not part of a Llama-family model"),
        ({"num_hidden_layers": 3}, "have no such tensor"),
        ({"tie_word_embeddings": False}, "lm_head.weight: the weights have no such tensor"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=message):
            OnnxCausalLM(folder)


def test_files_that_are_missing_or_damaged(write_llama: WriteLlama, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: does not exist"):
        OnnxCausalLM(tmp_path)
    folder = write_llama()
    for damage in (b"", b"\x05", b"\xff" * 20, b"\x04" + b"\0" * 7 + b"[1]x", b"\x04" + b"\0" * 7 + b"[12]"):
        (folder / "model.safetensors").write_bytes(damage)
        with pytest.raises(ValueError, match="safetensors"):
            OnnxCausalLM(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        OnnxCausalLM(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        OnnxCausalLM(folder)


def test_threads_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads: 0"):
        OnnxCausalLM(tmp_path, threads=0)


def test_another_models_cache(write_llama: WriteLlama) -> None:
    one, two = OnnxCausalLM(write_llama("one")), OnnxCausalLM(write_llama("two"))
    with pytest.raises(ValueError, match="not one of one's"):
        one.forward([ForwardItem(two.new_cache(), [1])])


def test_failure_in_the_engine_leaves_all_caches_as_they_were(
    write_llama: WriteLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxCausalLM(write_llama())
    caches = [model.new_cache() for _ in range(5)]  # four in a batch, then one
    items = [ForwardItem(cache, TOKENS) for cache in caches]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(OnnxCausalLM, "_run", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.forward(items)
    assert [list(cache.token_ids) for cache in caches] == [[]] * 5
    monkeypatch.undo()
    whole = logits(model)
    for rows in model.forward(items):
        assert abs(rows - whole).max() < 1e-4


def test_cache_grows_and_says_so(write_llama: WriteLlama) -> None:
    model = OnnxCausalLM(write_llama(max_position_embeddings=1000))
    cache = model.new_cache()
    assert isinstance(cache, OnnxCache)
    assert cache.nbytes == 0
    row_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head_dim, float32
    sizes = []
    for _ in range(5):
        model.forward([ForwardItem(cache, TOKENS * 7)])
        sizes.append(cache.nbytes // row_bytes)
    assert sizes == [64, 128, 192, 320, 320]
    cache.truncate(0)
    assert cache.nbytes // row_bytes == 320
