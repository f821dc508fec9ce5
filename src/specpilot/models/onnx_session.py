"""Opens ONNX Runtime sessions for a Hugging Face folder; builds graphs that are missing or stale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from specpilot.models.llama_config import LlamaConfig
from specpilot.models.llama_graph import FILE_NAMES, build_graph, export_onnx, graph_key
from specpilot.models.safetensors_index import read_index


def open_session(folder: Path, config: LlamaConfig, threads: int, slots: int) -> onnxruntime.InferenceSession:
    """A session of the folder's graph for ``slots`` sequences a pass.

    A graph that is missing, or that was made for another layout of the weights or another configuration, is
    built and written; in memory only where the folder cannot be written.

    Raises:
        ValueError: if a graph must be built and cannot be; the message says why.
    """
    index = read_index(folder)
    path = (folder / FILE_NAMES[slots]).resolve()
    graph: str | bytes = str(path)
    if path.parent != index.folder:  # a hub cache's links; no data is read outside the graph's folder
        graph = build_graph(folder, slots)
    elif not path.is_file() or graph_key(config, index).encode() not in path.read_bytes():
        try:
            export_onnx(folder)
        except OSError:  # a read-only folder
            graph = build_graph(folder, slots)
    options = _options(threads)
    if isinstance(graph, bytes):
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(index.folder)
        )
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # It would plan the memory of every combination of input shapes, and each context length is a new one.
    options.enable_mem_pattern = False
    # Threads that wait actively for work during a pass: measured with two on the bundled target, one token,
    # 30 % faster than one thread on two idle cores, but up to twice as slow where another process wants a
    # core. Without that two threads are no faster than one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
