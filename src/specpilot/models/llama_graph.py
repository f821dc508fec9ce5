"""Builds the ONNX graphs of a Llama-family Hugging Face folder, without torch and without copying a weight.

``python -m specpilot.models.llama_graph FOLDER`` writes ``model.onnx``, which passes one sequence, and
``model.batch.onnx``, which passes ``BATCH_SLOTS`` of them. Their initializers are external data that point
into the safetensors file, so the weights exist once; float16 and bfloat16 are cast to float32 at load.

======================  =======  =========================================================================
input                   type     meaning; T is the number of new tokens of all sequences, T_s of slot s
======================  =======  =========================================================================
input_ids               int64    (1, T) new tokens, one sequence after the other
position_ids            int64    (1, T) their absolute positions
logit_indices           int64    (N,) the tokens, of the T, whose logits are wanted
widths                  int64    (slots,) T_s, each ≥ 1; only in the batch graph
attention_mask.s        float32  (1, 1, T_s, S_s) added to the scores; S_s = ``total.s``. Causality is built
                                 in: zeros do for a chain, and a tree in topological order masks more.
last_row.s              int32    (1,) index of the last cache row after this pass
total.s                 int32    (1,) S_s, at least ``last_row.s`` + 1
past_{k,v}.layer.s      float32  (1, H_kv, C, D) cache buffers of any capacity C ≥ S_s, keys rotated
======================  =======  =========================================================================

Outputs are ``logits`` (N, vocab) and ``new_{k,v}.layer.s``, of the caches' shape. When an output is bound to
the same memory as its input, the new rows are written in place behind those held and nothing is copied.

The attention is ONNX Runtime's GroupQueryAttention, which also rotates. It takes several sequences at once
only with one new token each, hence one node a slot; all else runs over all tokens together, without padding.
Where S = T_s it reads only the first position and counts on from there; a tree there needs S > T_s.
Measured on the bundled pair, one thread, against plain operators on a time-major cache (scores of past and
new apart, fused transposes): 10–20 % faster for one token, 2–10 % for 9 to 33, equal for 200.

The last layer computes its MLP only for the rows whose logits are wanted: near half of a two-layer draft's
prefill.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specpilot.atomic import replace_file
from specpilot.models.llama_config import LlamaConfig, read_config
from specpilot.models.onnx_writer import CONTRIB, GraphWriter
from specpilot.models.safetensors_index import TensorIndex, read_index

if TYPE_CHECKING:
    import onnx

BATCH_SLOTS = 4
"""Sequences in a pass of the batch graph. An unused slot costs a token's arithmetic, so more would be dear
for two sequences (8 slots: no gain there). Eight in two passes take 15 to 65 % longer than in one."""
FILE_NAMES = {1: "model.onnx", BATCH_SLOTS: "model.batch.onnx"}
"""By the number of slots."""
_GRAPH_VERSION = 3


def graph_key(config: LlamaConfig, index: TensorIndex) -> str:
    """Identifies a folder's graphs: equal keys mean that every offset and constant is still right.

    The graph files hold it as text, so that it can be looked for without parsing.
    """
    text = f"{_GRAPH_VERSION}\n{BATCH_SLOTS}\n{config.graph_key()}\n{index.digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def build_graph(folder: Path, slots: int = 1) -> bytes:
    """A serialised graph of the model in ``folder``, for ``slots`` sequences a pass.

    Raises:
        ValueError: if the model is not one that the graph computes, or the ``onnx`` package is missing.
    """
    return _Builder(read_config(folder), read_index(folder), slots).build()


def export_onnx(folder: Path) -> Path:
    """Write both graphs beside the weights; returns the path of the first.

    Raises:
        ValueError: see :func:`build_graph`; also if the weights are a link into another folder, since
            ONNX Runtime reads no data outside the graph's.
        OSError: if the folder cannot be written.
    """
    if read_index(folder).folder != folder.resolve():
        raise ValueError(f"{folder}: its weights are links into another folder; export that one, or a copy")
    for slots, file in FILE_NAMES.items():
        # As a whole: another process that opens the folder must never load half a graph.
        replace_file(folder / file, build_graph(folder, slots), mode=0o644)
    return folder / FILE_NAMES[1]


class _Builder:
    """Builds one graph."""

    def __init__(self, config: LlamaConfig, index: TensorIndex, slots: int) -> None:
        self._config = config
        self._key = graph_key(config, index)
        self._slots = range(slots)
        self._writer = GraphWriter(index)

    def build(self) -> bytes:
        config, writer = self._config, self._writer
        embedding = writer.external("model.embed_tokens.weight", (config.vocab_size, config.hidden))
        # Rows are gathered first and cast then: the float32 copy of the table exists only for the head.
        rows = writer.node("Gather", [embedding, "input_ids"], "embedding.rows")
        residual = writer.node("Cast", [rows], "embedding", to=writer.types.FLOAT)
        normed = writer.node(
            "SimplifiedLayerNormalization",
            [residual, self._norm("model.layers.0.input_layernorm.weight")],
            "layers.0.input",
            epsilon=config.norm_epsilon,
            axis=-1,
            stash_type=1,
        )
        tables = self._rotary()
        positions = self._parts("position_ids")
        for layer in range(config.layers):
            normed, residual = self._layer(layer, normed, residual, positions, tables)
        head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
        writer.matmul(normed, head, (config.vocab_size, config.hidden), "logits")
        self._check_all_used()
        logits = writer.info("logits", writer.types.FLOAT, ["N", config.vocab_size])
        return writer.model(self._inputs(), [logits, *self._caches("new")], {"specpilot.key": self._key})

    def _layer(
        self, layer: int, normed: str, residual: str, positions: Sequence[str], tables: Sequence[str]
    ) -> tuple[str, str]:
        """One layer; takes and returns (normalised input, residual stream)."""
        config, writer, name = self._config, self._writer, f"model.layers.{layer}."
        width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
        parts = [
            self._parts(writer.linear(normed, f"{name}self_attn.{kind}_proj", (size, config.hidden)))
            for kind, size in (("q", width), ("k", kv_width), ("v", kv_width))
        ]
        attended = [f"{name}attended.{slot}" for slot in self._slots]
        for slot, output in enumerate(attended):
            writer.add(
                "GroupQueryAttention",
                [
                    *(part[slot] for part in parts),
                    *(f"past_{kind}.{layer}.{slot}" for kind in "kv"),
                    *(
                        f"last_row.{slot}",
                        f"total.{slot}",
                        *tables,
                        positions[slot],
                        f"attention_mask.{slot}",
                    ),
                ],
                [output, *(f"new_{kind}.{layer}.{slot}" for kind in "kv")],
                domain=CONTRIB,
                num_heads=config.heads,
                kv_num_heads=config.kv_heads,
                do_rotary=1,
                rotary_interleaved=0,
            )
        mixed = (
            attended[0] if len(attended) == 1 else writer.node("Concat", attended, name + "attended", axis=1)
        )
        last = layer == config.layers - 1
        if last:
            mixed = self._wanted_rows(mixed, width)
            residual = self._wanted_rows(residual, config.hidden)
        mixed = writer.linear(mixed, name + "self_attn.o_proj", (config.hidden, width))
        normed, residual = self._add_norm(mixed, residual, name + "post_attention_layernorm.weight")
        following = "model.norm.weight" if last else f"model.layers.{layer + 1}.input_layernorm.weight"
        return self._add_norm(self._mlp(normed, name + "mlp."), residual, following)

    def _mlp(self, normed: str, name: str) -> str:
        config, writer = self._config, self._writer
        inner = writer.place(name + "gate_proj.weight").shape[0]
        gate = writer.linear(normed, name + "gate_proj", (inner, config.hidden))
        up = writer.linear(normed, name + "up_proj", (inner, config.hidden))
        # QuickGelu with α = 1 is x · sigmoid(x), that is SiLU, in one kernel.
        gate = writer.node("QuickGelu", [gate], name + "silu", domain=CONTRIB, alpha=1.0)
        product = writer.node("Mul", [gate, up], name + "product")
        return writer.linear(product, name + "down_proj", (config.hidden, inner))

    def _add_norm(self, update: str, residual: str, weight: str) -> tuple[str, str]:
        """(norm(update + residual), update + residual)."""
        normed, summed = weight + ".normed", weight + ".sum"
        self._writer.add(
            "SkipSimplifiedLayerNormalization",
            [update, residual, self._norm(weight)],
            [normed, "", "", summed],
            domain=CONTRIB,
            epsilon=self._config.norm_epsilon,
        )
        return normed, summed

    def _parts(self, value: str) -> list[str]:
        """(1, T, …) by slots: (1, T_s, …) each."""
        if len(self._slots) == 1:
            return [value]
        parts = [f"{value}.{slot}" for slot in self._slots]
        self._writer.add("Split", [value, "widths"], parts, axis=1)
        return parts

    def _wanted_rows(self, value: str, width: int) -> str:
        """(1, T, width) → (N, width): the rows whose logits are wanted."""
        writer = self._writer
        shape = writer.constant(value + ".shape", np.array([-1, width], dtype=np.int64))
        flat = writer.node("Reshape", [value, shape], value + ".flat")
        return writer.node("Gather", [flat, "logit_indices"], value + ".wanted", axis=0)

    def _rotary(self) -> tuple[str, str]:
        """Tables of cosines and sines, (context limit + 1, D/2): computed at load, so the file stays small.

        The row more is for a ``total`` beyond the tokens, see the note on S = T_s above.
        """
        writer = self._writer
        limit = writer.constant("rotary.limit", np.float32(self._config.context_limit + 1))
        zero, one = (
            writer.constant("rotary.zero", np.float32(0)),
            writer.constant("rotary.one", np.float32(1)),
        )
        axes = writer.constant("rotary.axes", np.array([1], dtype=np.int64))
        frequencies = writer.constant(
            "rotary.frequencies", np.array([self._config.inverse_frequencies], dtype=np.float32)
        )
        positions = writer.node("Range", [zero, limit, one], "rotary.positions")
        column = writer.node("Unsqueeze", [positions, axes], "rotary.column")
        angles = writer.node("Mul", [column, frequencies], "rotary.angles")
        return writer.node("Cos", [angles], "rotary.cosines"), writer.node("Sin", [angles], "rotary.sines")

    def _norm(self, weight: str) -> str:
        return self._writer.floats(weight, (self._config.hidden,))

    def _check_all_used(self) -> None:
        """Refuse a tensor that the graph leaves out: it would compute another model."""
        expected = {"lm_head.weight"} if self._config.tied else set()
        unused = [
            name
            for name in self._writer.unused()
            if name not in expected and not name.endswith("rotary_emb.inv_freq")
        ]
        if unused:
            raise ValueError(
                f"{unused[0]}: this and {len(unused) - 1} more tensors are not part of a Llama-family model; "
                "load it with the transformers engine instead"
            )

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        info, types = self._writer.info, self._writer.types
        inputs = [
            info("input_ids", types.INT64, [1, "T"]),
            info("position_ids", types.INT64, [1, "T"]),
            info("logit_indices", types.INT64, ["N"]),
        ]
        if len(self._slots) > 1:
            inputs.append(info("widths", types.INT64, [len(self._slots)]))
        for slot in self._slots:
            inputs += [
                info(f"attention_mask.{slot}", types.FLOAT, [1, 1, f"T_{slot}", f"S_{slot}"]),
                info(f"last_row.{slot}", types.INT32, [1]),
                info(f"total.{slot}", types.INT32, [1]),
            ]
        return inputs + self._caches("past")

    def _caches(self, prefix: str) -> list[onnx.ValueInfoProto]:
        config, writer = self._config, self._writer
        return [
            writer.info(
                f"{prefix}_{kind}.{layer}.{slot}",
                writer.types.FLOAT,
                [1, config.kv_heads, f"C_{slot}", config.head_dim],
            )
            for slot in self._slots
            for layer in range(config.layers)
            for kind in "kv"
        ]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m specpilot.models.llama_graph FOLDER…")
    for argument in sys.argv[1:]:
        print(export_onnx(Path(argument)))
